"""Checks of what the BEV encoder's attentions read: their joined inputs and samples; run by check_plugins.py."""

import functools
import math

import attention_kernels as attention
import kernel_calls
import kernel_cases as cases
import rowwise_kernels as rowwise
import torch
from matrix_checks import DEVICE, GUARD


def check_temporal_inputs(checks, library, small: bool) -> None:
    """Bit by bit, and nothing behind either output; NaNs in what must not be read."""
    for cells, channels in [(1600, 128), (7, 8), (257, 24)] + ([] if small else [(40000, 256)]):
        for dtype in (torch.float32, torch.float16):
            for has_prev in (True, False):
                case = rowwise.temporal_inputs_case(dtype, DEVICE, cells, channels, has_prev)
                expected = rowwise.temporal_inputs_reference(**case)

                def wrong(case=case, expected=expected) -> list[int]:
                    """Elements of each output that differ, and of what lies behind it that are written."""
                    memory = [kernel_calls.poisoned((x.numel() + GUARD,), x) for x in expected]
                    outputs = tuple(m[: x.numel()].view(x.shape) for m, x in zip(memory, expected))
                    rowwise.temporal_inputs(library, **case, out=outputs)
                    behind = [int((~m[x.numel() :].isnan()).sum()) for m, x in zip(memory, expected)]
                    return [int((out != x).sum()) for out, x in zip(outputs, expected)] + behind

                name = f"temporal inputs {cells} x {channels} {str(dtype)[6:]}{'' if has_prev else ', no history'}"
                counts = wrong()
                checks.report(name, not any(counts), f"{counts} elements differ or are written behind the outputs")
                pair, maps, *_ = wrong({**case, "has_prev": 1 - case["has_prev"]})
                checks.report(f"{name} (broken on purpose)", pair > 0 and maps > 0, f"{[pair, maps]} elements differ")
    case = rowwise.temporal_inputs_case(torch.float16, DEVICE, 4, 12, True)
    checks.must_refuse("temporal inputs 4 x 12", lambda *_: rowwise.temporal_inputs(library, **case), case["query"])


def check_joint_samples(checks, name: str, call, case: cases.Case) -> None:
    """Offsets and logits in one tensor: bit by bit what `call(**case, out=…)` gives with two; rows of no whole vectors
    of 16 bytes are refused."""
    joint, out = attention.joint_samples(case), call(**case)
    name = f"{name} {str(out.dtype)[6:]}, joint samples"
    if math.prod(joint["sampling_offsets"].shape[-3:]) * out.element_size() % 16:
        return checks.must_refuse(name, lambda out, _: call(**joint, out=out), out)
    checks.identical(name, functools.partial(call, **joint), out)
    samples = joint["sampling_offsets"].roll(1, -4).contiguous()
    broken = call(**{**joint, "sampling_offsets": samples})
    checks.must_differ(f"{name}, logits before offsets", broken, out.double())
