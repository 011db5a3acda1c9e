"""Every kernel on a GPU against float64 references: python3 tests/gpu/check_plugins.py [--small] [--library PATH]

Builds the library with plugins/build.sh (nvcc) unless one is given. Each case starts from a poisoned output with a
guard band behind it; a case fails where an element is unwritten or outside the bounds below, or the band was touched.
The merging of masks is compared bit by bit. For each operation a deliberately broken call must fail too. `--small`
leaves out the full-size cases (for compute-sanitizer). Exit status 1 where anything failed.
"""

import argparse
import functools
import os
import pathlib
import random
import subprocess
import sys

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "plugins"), str(ROOT / "tests")]

import attention_kernels as attention  # noqa: E402
import convolution_kernels as convolution  # noqa: E402
import kernel_calls  # noqa: E402
import kernel_cases as cases  # noqa: E402
import merge_kernels as merge  # noqa: E402
import rowwise_kernels as rowwise  # noqa: E402
from join_checks import check_joint_samples, check_temporal_inputs  # noqa: E402
from layout_checks import check_layout_kernels  # noqa: E402
from matrix_checks import DEVICE, FLOAT16_FACTOR, GUARD, check_matrix_kernels  # noqa: E402
from op_references import merge_by_loop  # noqa: E402

FLOAT32_BOUND = 1e-5
HALF_BLEND_FACTOR = 4.0  # variants that add a point's corners in float16
CONV_FLOAT16_FACTOR = 2.0  # samples are rounded to float16 before they are multiplied
TINY_SHAPES = [(16, 28), (8, 14), (4, 7), (2, 4)]


class Checks:
    """Runs cases, prints a line for each and counts the failures."""

    def __init__(self) -> None:
        self.failed = self.run = 0

    def report(self, name: str, good: bool, detail: str) -> None:
        self.run += 1
        self.failed += not good
        print(f"{'ok  ' if good else 'FAIL'} {name}: {detail}", flush=True)

    def compare(self, name: str, call, expected: torch.Tensor, dtype: torch.dtype, variant: int, factor: float) -> None:
        """`call(out, variant)` fills `out`, a poisoned view with a guard band behind it, with what must be `expected`.

        `factor`: the bound of float16 errors in terms of the noise of storing the exact result.
        """
        bound = FLOAT32_BOUND
        if dtype == torch.float16:
            bound = factor * cases.rounding_noise(expected, dtype)
        name = f"{name} {str(dtype)[6:]} variant {variant}"
        self.guarded(name, lambda out: call(out, variant), expected, dtype, bound)

    def guarded(self, name: str, call, expected: torch.Tensor, dtype: torch.dtype, bound: float) -> None:
        """`call(out=…)` fills `out`, and nothing behind it, with what must be `expected`; see compare."""
        buffer = torch.full((expected.numel() + GUARD,), float("nan"), dtype=dtype, device=DEVICE)
        out = buffer[: expected.numel()].view(expected.shape)
        try:
            call(out=out)
            torch.cuda.synchronize()
        except RuntimeError as error:
            return self.report(name, False, str(error))
        error = cases.relative_error(out, expected)
        guarded = bool(torch.isnan(buffer[expected.numel() :]).all())
        detail = f"error {error:.2e} (bound {bound:.2e}){'' if guarded else ', WROTE BEHIND THE OUTPUT'}"
        self.report(name, error <= bound and guarded, detail)

    def identical(self, name: str, call, expected: torch.Tensor) -> None:
        """As guarded, but bit by bit."""
        buffer = kernel_calls.poisoned((expected.numel() + GUARD,), expected)
        out = buffer[: expected.numel()].view(expected.shape)
        call(out=out)
        wrong, guarded = int((out != expected).sum()), bool(torch.isnan(buffer[expected.numel() :]).all())
        self.report(name, not wrong and guarded, f"{wrong} elements differ")

    def must_refuse(self, name: str, call, like: torch.Tensor) -> None:
        """`call(out, 0)` must say that there is no kernel for this."""
        refused = False
        try:
            call(torch.empty_like(like), 0)
        except RuntimeError as error:
            refused = "error" in str(error)
        self.report(f"{name} (has no kernel)", refused, "refused" if refused else "runs nothing, and says nothing")

    def must_differ(self, name: str, broken: torch.Tensor, expected: torch.Tensor) -> None:
        """A broken call must be far outside of every bound."""
        error = cases.relative_error(broken, expected)
        self.report(f"{name} (broken on purpose)", error > 0.01, f"error {error:.2e} is seen")


def attention_factor(variant: int) -> float:
    return HALF_BLEND_FACTOR if variant in attention.HALF_BLEND else FLOAT16_FACTOR


def deformable_sizes(small: bool) -> dict[str, dict]:
    """Arguments of deformable_case by name."""
    tiny = {"shapes": [(20, 20)], "channels": 16}
    sizes = {
        "temporal tiny": {**tiny, "batch": 2, "mean": True},
        "decoder tiny": {**tiny, "queries": 37},
        "map decoder tiny, boxes": {**tiny, "queries": 30, "reference_size": 4},
        "map encoder tiny, flat": {**tiny, "levels": 4, "flat_buffer": True},
        "map decoder tiny, flat boxes": {**tiny, "queries": 31, "reference_size": 4, "levels": 4, "flat_buffer": True},
        "motion tiny": {**tiny, "queries": 5 * 6 * 12},
    }
    full = {"shapes": [(200, 200)]}
    if not small:
        sizes |= {
            "temporal full": {**full, "batch": 2, "mean": True},
            "two maps full": {**full, "batch": 2},
            "decoder full": {**full, "queries": 1157},
            "map encoder full": full,
            "map encoder full, flat": {**full, "levels": 4, "flat_buffer": True},
            "map decoder full, flat boxes": {
                **full, "queries": 300, "reference_size": 4, "levels": 4, "flat_buffer": True},
            "motion full": {**full, "queries": 257 * 6 * 12},
        }  # fmt: skip
    draw = random.Random(5)
    for index in range(4 if small else 12):
        levels, flat = draw.randint(1, 4), draw.random() < 0.3
        shapes = [(draw.randint(1, 40), draw.randint(1, 40)) for _ in range(1 if flat else levels)]
        sizes[f"random {index}"] = {
            "shapes": shapes,
            "batch": draw.randint(1, 3),
            "heads": draw.choice([1, 3, 4, 8, 16]),
            "channels": draw.choice([16, 32]),
            "queries": draw.randint(1, 700),
            "levels": levels,
            "points": draw.choice([1, 2, 4, 5, 8]),
            "reference_size": draw.choice([2, 4]),
            "flat_buffer": flat,
        }
    return sizes


def check_deformable(checks: Checks, library, variants: list[int], small: bool) -> None:
    for name, size in deformable_sizes(small).items():
        for dtype in (torch.float32, torch.float16):
            case = attention.deformable_case(dtype, DEVICE, **size)
            expected = attention.deformable_reference(**case)
            tuned = dtype == torch.float16 and size.get("channels", 32) == 32 and size.get("heads", 8) == 8

            def call(out, variant, case=case):
                attention.deformable_attention(library, **case, out=out, variant=variant)

            for variant in variants if tuned else [0]:
                checks.compare(name, call, expected, dtype, variant, attention_factor(variant))
            check_joint_samples(checks, name, functools.partial(attention.deformable_attention, library), case)
        if name in ("temporal tiny", "map encoder tiny, flat"):
            swapped = {**case, "sampling_offsets": case["sampling_offsets"].flip(-1).contiguous()}
            broken = attention.deformable_attention(library, **swapped)
            checks.must_differ(f"{name}, x and y swapped", broken, expected)


def check_camera(checks: Checks, library, variants: list[int], small: bool) -> None:
    draw = torch.Generator().manual_seed(3)
    tiny_points, tiny_mask, tiny_columns = rowwise.camera_rig_points("tiny_e2e")
    settings = [("camera tiny", tiny_points, tiny_mask, tiny_columns, TINY_SHAPES, 16, 8, 8, {})]
    joint = {"value_heads": 24, "first_head": 8}  # the second of three layers
    settings.append(("camera tiny, joint values", *settings[0][1:-1], joint))
    if not small:
        full = (*rowwise.camera_rig_points("base_e2e"), cases.PYRAMID, 32, 8, 8)
        settings.append(("camera full", *full, {}))
        for layer in (0, 5):
            joint = {"value_heads": 48, "first_head": 8 * layer}
            settings.append((f"camera full, joint values, layer {layer}", *full, joint))
    for index in range(2 if small else 5):
        queries, anchors = 50 + 37 * index, [4, 4, 2, 1, 3][index]
        points = torch.rand(6, queries, anchors, 2, generator=draw) * 1.6 - 0.3
        mask = torch.rand(6, queries, anchors, generator=draw) > 0.9
        heads, channels = [8, 2, 4, 8, 1][index], [32, 16, 32, 32, 16][index]
        more = {"value_heads": 2 * heads + 1, "first_head": heads + 1} if index % 2 else {}
        settings.append((f"camera random {index}", points, mask, 0, TINY_SHAPES, channels, heads, 2 * anchors, more))
    for name, points, mask, columns, shapes, channels, heads, count, joint in settings:
        for dtype in (torch.float32, torch.float16):
            case = attention.camera_case(dtype, DEVICE, shapes, points, mask, heads, channels, count, **joint)
            expected = attention.camera_reference(**case)

            def call(out, variant, case=case, columns=columns):
                attention.camera_cross_attention(library, **case, grid_width=columns, out=out, variant=variant)

            for variant in variants if dtype == torch.float16 and channels == 32 and heads == 8 else [0]:
                checks.compare(name, call, expected, dtype, variant, attention_factor(variant))
            joint_call = functools.partial(attention.camera_cross_attention, library, grid_width=columns)
            check_joint_samples(checks, name, joint_call, case)
        if name == "camera tiny":
            other = {**case, "visible": case["visible"].flip(0).contiguous()}
            broken = attention.camera_cross_attention(library, **other)
            checks.must_differ("camera tiny, another camera's mask", broken, expected)
        if name == "camera tiny, joint values":
            broken = attention.camera_cross_attention(library, **{**case, "first_head": 16})
            checks.must_differ(f"{name}, another layer's heads", broken, expected)
            beyond = {**case, "first_head": 17}

            def call_beyond(out, variant, case=beyond):
                attention.camera_cross_attention(library, **case, out=out, variant=variant)

            checks.must_refuse(f"{name}, beyond the last head", call_beyond, broken)


def check_deform_conv(checks: Checks, library, facts: dict[str, str], small: bool) -> None:
    sizes = [((6, 64, 8, 14), 64, 1), ((6, 128, 4, 7), 128, 1), ((2, 32, 13, 17), 64, 2), ((1, 96, 31, 9), 256, 1)]
    sizes += [((1, 64, 5, 3), 512, 1), ((3, 64, 19, 30), 256, 2), ((2, 128, 17, 20), 512, 1)]
    sizes += [((1, 64, 197, 199), 256, 1)]  # three tiles for some processors
    if not small:
        sizes += [((6, 256, 58, 100), 256, 1), ((6, 512, 29, 50), 512, 1)]
    for size, outputs, stride in sizes:
        name = f"deformable convolution {size} to {outputs}, stride {stride}"
        for dtype in (torch.float32, torch.float16):
            case = convolution.deform_conv_case(dtype, DEVICE, size, outputs, stride)
            expected = convolution.deform_conv_reference(**case)
            half = dtype == torch.float16

            def call(out, variant, case=case, half=half, layout=convolution.COMMON_LAYOUT):
                # The poisoned buffer is plain memory; what it means follows the type's layout.
                n, o, ho, wo = out.shape
                out = out.view(n, ho, wo, o).permute(0, 3, 1, 2) if half else out
                arguments = convolution.deform_conv_arguments(case, layout)
                convolution.deform_conv(library, **arguments, out=out, variant=variant)

            laid_out = expected.permute(0, 2, 3, 1).reshape(expected.shape) if half else expected
            for variant in convolution.conv_variants(facts, outputs) if half else [0]:
                checks.compare(name, call, laid_out, dtype, variant, CONV_FLOAT16_FACTOR)
            if not half:
                continue
            calls = {name: call}
            hopper_name = f"{name}, Hopper's kernel"
            call_hopper = functools.partial(call, layout=convolution.HOPPER_LAYOUT)
            if convolution.deform_conv_layout(library, case["x"], outputs) == convolution.HOPPER_LAYOUT:
                calls[hopper_name] = call_hopper
                checks.compare(hopper_name, call_hopper, laid_out, dtype, 0, CONV_FLOAT16_FACTOR)
            elif case["hopper_weight"] is not None:
                checks.must_refuse(hopper_name, call_hopper, laid_out.half())
            last = case["offset_mask"].contiguous(memory_format=torch.channels_last)
            for which, one in calls.items():
                call_last = functools.partial(one, case={**case, "offset_mask": last})
                last_name = f"{which}, channels-last offsets"
                checks.compare(last_name, call_last, laid_out, dtype, 0, CONV_FLOAT16_FACTOR)
        if size == (6, 64, 8, 14):
            moved = {**case, "offset_mask": case["offset_mask"] + 0.1}
            broken = convolution.deform_conv(library, **convolution.deform_conv_arguments(moved))
            checks.must_differ(f"{name}, moved", broken, expected)


def check_merge(checks: Checks, library, small: bool) -> None:
    """Bit by bit: every rule compares whole numbers, and shown values are copies."""
    torch.manual_seed(11)  # no scores so near to each other that their order hangs on rounding
    sizes = [(100, (40, 40), 3), (60, (30, 31), 3), (33, (7, 11), 3), (1024, (9, 13), 5), (20, (257, 256), 2)]
    sizes += [] if small else [(100, (200, 200), 3), (1024, (200, 200), 3), (100, (512, 512), 64)]
    for count, size, classes in sizes:
        case = merge.merge_case(DEVICE, count, size, classes)
        tensors, numbers = ("masks", "scores", "labels"), {"num_classes": classes, "quality_thresh": 0.1}
        *expected, drawn = merge_by_loop(*(case[name].cpu().numpy() for name in tensors), **numbers)
        elements = expected[0].size
        name = f"merging of {count} masks {size}, {classes} classes"

        def errors(case, elements=elements, classes=classes, expected=expected):
            """Elements of lane and lane_score that differ, and those written behind outputs and workspace."""
            size = len(merge.merge_workspace(library, case["masks"], classes))
            workspace = torch.full((size + GUARD,), 255, dtype=torch.uint8, device=DEVICE)
            buffers = [kernel_calls.poisoned((elements + GUARD,), like) for like in (case["labels"], case["masks"])]
            outputs = tuple(x[:elements].view(classes, -1) for x in buffers)
            merge.merge_masks(library, **case, workspace=workspace[:size], out=outputs)
            wrong = [int((x.cpu().numpy() != y).sum()) for x, y in zip(outputs, expected)]
            lane_guard, score_guard = (x[elements:] for x in buffers)
            behind = (lane_guard != -1).sum() + (~score_guard.isnan()).sum() + (workspace[size:] != 255).sum()
            return wrong, int(behind)

        wrong, behind = errors(case)
        good = not any(wrong) and not behind
        checks.report(name, good, f"{drawn} drawn; {wrong} of {elements} elements differ, {behind} written behind")
        wrong, _ = errors({**case, "labels": (case["labels"] + 1) % classes})
        checks.report(f"{name} (broken on purpose)", any(wrong), f"{wrong} elements differ")


def check_propagate(checks: Checks, library) -> None:
    case, range_ = rowwise.propagate_case(DEVICE, 256), (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
    expected = torch.sigmoid(rowwise.propagate_reference(range_, **case)) * 102.4

    def error(case) -> float:
        out = rowwise.propagate(library, *case.values(), low=range_[:3], size=(102.4, 102.4, 8.0))
        return float((torch.sigmoid(out.cpu()) * 102.4 - expected).abs().max())

    metres = error(case)
    checks.report("propagation", metres < 1e-3, f"{metres:.1e} m at most")
    coarse = {name: x.half().float() if name.startswith("l2g_t") else x for name, x in case.items()}
    metres = error(coarse)
    checks.report("propagation (broken on purpose)", metres > 0.1, f"{metres:.1e} m")


def check_point_sampling(checks: Checks, library, small: bool) -> None:
    """Bit by bit what the composition gives on the CPU."""
    for model in ("tiny_e2e",) if small else ("tiny_e2e", "base_e2e"):
        case, (expected, mask, _) = rowwise.point_sampling_case(model, DEVICE), rowwise.camera_rig_points(model)
        points, visible = (x.cpu() for x in rowwise.point_sampling(library, **case))
        wrong = [int((points != expected).sum()), int((visible != mask).sum())]
        checks.report(f"projection, {model}", not any(wrong), f"{wrong} elements differ")
        wider = case["lidar2img"] * torch.tensor([1.05, 1.0, 1.0, 1.0], device=DEVICE).view(4, 1)
        points, _ = rowwise.point_sampling(library, **{**case, "lidar2img": wider})
        count = int((points.cpu() != expected).sum())
        checks.report(f"projection, {model} (broken on purpose)", count > points.numel() // 4, f"{count} differ")


def check_rotate(checks: Checks, library, small: bool) -> None:
    """Bit by bit: rows are copied, and which ones is decided as in the composition."""
    sizes = [((40, 40), 128, 1.3), ((30, 47), 8, -23.0), ((5, 9), 24, 90.0)]
    sizes += [] if small else [((200, 200), 256, degrees) for degrees in (0.0, 0.7, -3.1, 178.0)]
    for shape, channels, degrees in sizes:
        for dtype in (torch.float32, torch.float16):
            case = rowwise.rotate_case(dtype, DEVICE, shape, channels, degrees)
            expected = rowwise.rotate_reference(**case).to(DEVICE)
            name = f"map {shape} of {channels} channels turned by {degrees} degrees"
            call = functools.partial(rowwise.rotate_nearest, library, **case)
            checks.identical(f"{name} {str(dtype)[6:]}", call, expected)
        broken = rowwise.rotate_nearest(library, **{**case, "matrix": case["matrix"] * 1.3})
        checks.must_differ(f"{name}, larger", broken, expected.double())


def check_images(checks: Checks, library, small: bool) -> None:
    """Bit by bit."""
    sizes = [(6, (7, 11), (32, 32)), (2, (5, 3), (5, 3)), (6, (256, 448), (256, 448))]
    sizes += [] if small else [(6, (900, 1600), (928, 1600))]
    for count, shape, size in sizes:
        for dtype, last in ((torch.float32, False), (torch.float16, False), (torch.float16, True)):
            case = rowwise.images_case(dtype, DEVICE, count, shape, size, last)
            expected = rowwise.images_reference(**case)
            layout = ", channels last" if last else ""
            name = f"{count} images {shape} padded to {size} {str(dtype)[6:]}{layout}"
            checks.identical(name, functools.partial(rowwise.normalise_images, library, **case), expected)
        broken = rowwise.normalise_images(library, **{**case, "mean": case["mean"][::-1]})
        checks.must_differ(f"{name}, RGB's mean", broken, expected.double())


def check_norm(checks: Checks, library, small: bool) -> None:
    sizes = [(1600, 128), (7, 256), (1, 8), (33, 48), (100, 1024), (5, 1000)]
    sizes += [] if small else [(40000, 256)]
    for rows, channels in sizes:
        for dtype in (torch.float32, torch.float16):
            for residual in (True, False):
                case = rowwise.norm_case(dtype, DEVICE, rows, channels, residual)
                expected = rowwise.norm_reference(**case)

                def call(out, variant, case=case):
                    rowwise.add_layer_norm(library, **case, out=out)

                name = f"layer norm {rows} x {channels}{' of a sum' if residual else ''}"
                checks.compare(name, call, expected, dtype, 0, FLOAT16_FACTOR)
        broken = rowwise.add_layer_norm(library, **case, eps=1.0)
        checks.must_differ(f"{name}, another eps", broken, expected)
    case = rowwise.norm_case(torch.float16, DEVICE, 4, 1032)
    checks.must_refuse(
        "layer norm 4 x 1032", lambda out, _: rowwise.add_layer_norm(library, **case, out=out), case["x"]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="no full-size cases")
    parser.add_argument("--library", help="a built libuniad_plugins.so (default: build one)")
    options = parser.parse_args()
    path = options.library
    if path is None:
        build = ROOT / "build" / "plugins"
        environment = {**os.environ, "VARIANTS": "1"}
        subprocess.run([ROOT / "plugins" / "build.sh", build], check=True, env=environment)
        path = build / "libuniad_plugins.so"
    library = kernel_calls.load(path)
    build_facts = kernel_calls.build_facts(library)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, library {build_facts}")
    every = build_facts["variants"] == "1"
    variants = list(attention.VARIANTS) if every else [0]
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    checks = Checks()
    with torch.inference_mode():
        check_deformable(checks, library, variants, options.small)
        check_camera(checks, library, variants, options.small)
        check_deform_conv(checks, library, build_facts, options.small)
        check_merge(checks, library, options.small)
        check_rotate(checks, library, options.small)
        check_norm(checks, library, options.small)
        check_images(checks, library, options.small)
        check_temporal_inputs(checks, library, options.small)
        check_point_sampling(checks, library, options.small)
        check_propagate(checks, library)
        check_matrix_kernels(checks, library, options.small)
        check_layout_kernels(checks, library, options.small)
    print(f"{checks.run - checks.failed} of {checks.run} checks passed")
    return checks.failed > 0


if __name__ == "__main__":
    sys.exit(main())
