"""check_plugins.py's checks of the kernels in plugins/matrix_kernels.py: against float64, from poisoned outputs with a
guard band behind them, and a broken call each."""

import functools

import kernel_cases as cases
import matrix_kernels as kernels
import resnet_kernels as resnet
import torch

FLOAT16_FACTOR = 1.5  # x the noise of storing the exact result as float16; tests/test_matrix_kernels.py
FLOAT32_BOUND = 1e-5  # of masks, float32: the order of sums
GUARD = 4096  # elements behind each output
DEVICE = torch.device("cuda")


def check_matrix_kernels(checks, library, small: bool) -> None:
    """`checks`: check_plugins.Checks."""
    check_memory_attention(checks, library, small)
    check_multihead_attention(checks, library, small)
    check_attention_masks(checks, library, small)
    check_occupancy(checks, library, small)
    check_narrow_conv(checks, library, small)
    check_expand_conv(checks, library, small)
    check_stem(checks, library, small)


def check_memory_attention(checks, library, small: bool) -> None:
    sizes = [(8, 300, 256), (70, 130, 128), (16, 1, 128), (33, 9000, 128)]
    sizes += [] if small else [(800, 40000, 256), (8, 40000, 256), (800, 1600, 128)]
    for rows, cells, width in sizes:
        name = f"attention of {rows} rows to {cells} cells of {width}"
        case = kernels.memory_attention_case(DEVICE, rows, cells, width)
        expected = kernels.memory_attention_reference(**case)
        bound = FLOAT16_FACTOR * max(cases.rounding_noise(expected, torch.float16), 1e-4)
        call = functools.partial(kernels.memory_attention, library, **case)
        checks.guarded(name, call, expected, torch.float16, bound)
        if cells > 1:
            checks.must_differ(name, kernels.memory_attention(library, -case["query"], case["memory"]), expected)


def check_multihead_attention(checks, library, small: bool) -> None:
    """Sizes: groups, queries, keys, heads, channels."""
    sizes = [((1, 70, 130, 2, 32), ()), ((2, 65, 67, 3, 16), (67,)), ((1, 130, 190, 1, 32), (130, 190)),
             ((2, 20, 66, 2, 16), (20, 66)), ((1, 17, 1, 2, 32), ()), ((3, 300, 300, 8, 32), ())]  # fmt: skip
    if not small:
        sizes += [((1, 1157, 1157, 8, 32), (1157,)), ((1, 625, 625, 8, 32), ()), ((1, 625, 256, 8, 32), (625, 256))]
        sizes += [((1, 1542, 257, 8, 32), (257,)), ((1, 2500, 2500, 8, 16), ())]
    joint = [((1, 70, 3000, 2, 32), 3), ((1, 33, 4200, 3, 16), 1)] + ([] if small else [((1, 100, 40000, 8, 32), 4)])
    for size, mask, layers in [(*size, 0) for size in sizes] + [(size, (), layers) for size, layers in joint]:
        name = f"attention of heads {size}{', masked' if mask else ''}{f' of {layers} layers' if layers else ''}"
        case = kernels.multihead_attention_case(DEVICE, *size, mask, layers)
        expected = kernels.multihead_attention_reference(**case)
        bound = FLOAT16_FACTOR * max(cases.rounding_noise(expected, torch.float16), 1e-4)
        checks.guarded(
            name, functools.partial(kernels.multihead_attention, library, **case), expected, torch.float16, bound
        )
        if size[2] > 1:
            broken = {**case, "value": case["value"].flip(1)}
            checks.must_differ(name, kernels.multihead_attention(library, **broken), expected)
        if mask:
            broken = {**case, "blocked": 1 - case["blocked"]}
            checks.must_differ(f"{name}, inverted", kernels.multihead_attention(library, **broken), expected)


def check_attention_masks(checks, library, small: bool) -> None:
    sizes = [(100, 300, 256), (1, 65, 128), (140, 257, 128)] + ([] if small else [(100, 40000, 256), (1, 40000, 256)])
    for queries, cells, width in sizes:
        name = f"masks of {queries} queries, {cells} cells of {width}"
        case = kernels.attention_masks_case(DEVICE, queries, cells, width)
        expected = kernels.attention_masks_reference(**case)
        call = functools.partial(kernels.attention_masks, library, *case.values())
        checks.guarded(name, call, expected, torch.float32, FLOAT32_BOUND)
        broken = {**case, "mix": case["mix"].flip(1).contiguous()}
        checks.must_differ(name, kernels.attention_masks(library, *broken.values()), expected)


def check_occupancy(checks, library, small: bool) -> None:
    sizes = [(2, 256, 300, 256), (5, 7, 129, 128), (1, 97, 3000, 128)] + ([] if small else [(5, 256, 40000, 256)])
    for steps, instances, cells, width in sizes:
        name = f"occupancy of {instances} instances, {steps} x {cells} cells of {width}"
        case = kernels.occupancy_case(DEVICE, steps, instances, cells, width)
        buffer = torch.full((steps * cells + GUARD,), -1, dtype=torch.int32, device=DEVICE)
        found = kernels.occupancy(library, **case, out=buffer[: steps * cells].view(steps, cells))
        wrong, behind = kernels.occupancy_errors(found, **case), int((buffer[steps * cells :] != -1).sum())
        checks.report(name, not wrong and not behind, f"{wrong} cells wrong, {behind} written behind")
        wrong = kernels.occupancy_errors(found, **{**case, "score": case["score"].flip(0)})
        checks.report(f"{name} (broken on purpose)", wrong > steps * cells // 10, f"{wrong} cells wrong")


def check_packed(checks, name: str, kernel, reference, case: cases.Case, turned: str, axis: int) -> None:
    """`kernel`(packed arguments, out=…) of a case with plain weights beside the packed ones; the broken call has the
    input `turned` in reverse order along `axis`."""
    expected, packed = reference(**case), cases.packed_only(case)
    bound = FLOAT16_FACTOR * cases.rounding_noise(expected, torch.float16)
    checks.guarded(name, functools.partial(kernel, **packed), expected, torch.float16, bound)
    broken = {**packed, turned: packed[turned].flip(axis).contiguous()}
    checks.must_differ(name, kernel(**broken), expected)


def check_narrow_conv(checks, library, small: bool) -> None:
    call, reference = functools.partial(kernels.narrow_conv, library), kernels.narrow_conv_reference
    sizes = [(1, 64, 8, 16), (2, 128, 9, 21), (1, 96, 3, 5)]
    sizes += [(20, 32, 8, 128), (34, 32, 8, 128)]  # blocks of two and of three tiles on 132 processors
    for size in sizes + ([] if small else [(6, 256, 58, 100), (6, 512, 29, 50)]):
        case = kernels.narrow_conv_case(DEVICE, size)
        check_packed(checks, f"convolution {size} to 27 outputs", call, reference, case, "x", 2)


def check_expand_conv(checks, library, small: bool) -> None:
    call, reference = functools.partial(resnet.expand_conv, library), resnet.expand_conv_reference
    sizes = [(70, 64, 256), (200, 128, 512), (33, 256, 256), (9000, 256, 512)]
    for size in sizes + ([] if small else [(6 * 232 * 400, 64, 256), (6 * 116 * 200, 128, 512), (34800, 256, 1024)]):
        name, case = f"end of a block of {size}", resnet.expand_conv_case(DEVICE, *size)
        check_packed(checks, name, call, reference, case, "residual", 1)


def check_stem(checks, library, small: bool) -> None:
    call, reference = functools.partial(resnet.stem, library), resnet.stem_reference
    for size in [(1, 28, 56), (2, 32, 64), (1, 4, 8), (3, 256, 704)] + ([] if small else [(6, 928, 1600)]):
        check_packed(checks, f"stem of {size}", call, reference, resnet.stem_case(DEVICE, *size), "x", 3)
