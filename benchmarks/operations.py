"""The operations of benchmark_ops.py: full-size inputs, the call of the kernel and the composition that it replaces."""

import importlib
from collections.abc import Callable
from typing import NamedTuple

import attention_kernels
import convolution_kernels
import kernel_cases as cases
import layout_kernels
import matrix_kernels
import merge_kernels
import resnet_kernels
import rowwise_kernels
import torch

DEVICE = torch.device("cuda")
MAP = [(200, 200)]


class Operation(NamedTuple):
    """One operation at full size."""

    name: str
    target: float | None  # ms at most on an H100
    make: Callable[[], cases.Case]
    call: Callable  # (library, case, out, variant)
    compose: Callable  # (case): the composition, on the current network
    out_shape: tuple[int, ...]
    flops: float
    matrix: bool = False  # the floor of the arithmetic is that of the matrix units
    dtype: torch.dtype = torch.float16  # of the output


def composed(function: str, module: str = "trtllm.vision"):
    """The composition of trtllm.vision, or another module, on torch tensors."""
    from trtllm import Network, Tensor, net_guard
    from trtllm.torch_executor import TORCH, TorchExecutor

    names = {dtype: name for name, dtype in TORCH.items()}

    def wrap(x):
        return Tensor(x, names[x.dtype], tuple(x.shape)) if isinstance(x, torch.Tensor) else x

    def run(case: cases.Case):
        arguments = {key: wrap(x) for key, x in case.items() if key not in ("mean", "workspace")}
        with net_guard(Network(TorchExecutor("cuda"), "float16")):
            return getattr(importlib.import_module(module), function)(**arguments)

    return run


def attention_operations() -> list[Operation]:
    half, module = torch.float16, "trtllm.sampled_attention"
    queries, width = 40000, 256
    points, mask, columns = rowwise_kernels.camera_rig_points("base_e2e")
    pairs = float(mask.any(2).sum())  # (camera, query) pairs that are sampled
    sample = 2 * 4 * width  # operations of one point of all heads: four corners

    def deformable(library, case, out, variant):
        attention_kernels.deformable_attention(library, **case, out=out, variant=variant)

    def camera(library, case, out, variant):
        attention_kernels.camera_cross_attention(library, **case, grid_width=columns, out=out, variant=variant)

    def temporal_composed(case: cases.Case):
        plain = {
            **case,
            "reference_points": case["reference_points"].expand(2, -1, -1, -1),
            "sampling_offsets": case["sampling_offsets"].permute(2, 0, 1, 3, 4).unsqueeze(3),
            "attention_logits": case["attention_logits"].permute(2, 0, 1, 3),
        }
        return composed("deformable_attention", module)(plain).handle.mean(0)

    def camera_composed(case: cases.Case):
        return composed("camera_cross_attention", module)({**case, "visible": case["visible"].bool()})

    def make(**size):
        return lambda: attention_kernels.deformable_case(half, DEVICE, MAP, **size)

    return [
        Operation(
            "temporal self-attention, 2 x 40000 x 8 x 4", 0.15, make(batch=2, mean=True), deformable,
            temporal_composed, (queries, width), 2 * queries * 4 * sample),
        Operation(
            "camera cross-attention, 6 cameras", 0.6,
            lambda: attention_kernels.camera_case(half, DEVICE, cases.PYRAMID, points, mask), camera, camera_composed,
            (queries, width), pairs * 32 * sample),
        Operation(
            "camera cross-attention, values of six layers", 0.6,
            lambda: attention_kernels.camera_case(
                half, DEVICE, cases.PYRAMID, points, mask, value_heads=48, first_head=40),
            camera, camera_composed, (queries, width), pairs * 32 * sample),
        Operation(
            "map encoder attention, 40000 x 8 x 4", 0.08, make(), deformable, composed("deformable_attention", module),
            (1, queries, width), queries * 4 * sample),
        Operation(
            "map encoder attention, flat buffer", 0.08, make(levels=4, flat_buffer=True), deformable,
            composed("deformable_attention", module), (1, queries, width), queries * 4 * sample),
        Operation(
            "decoder attention, 1157 queries", None, make(queries=1157), deformable,
            composed("deformable_attention", module), (1, 1157, width), 1157 * 4 * sample),
        Operation(
            "motion attention, 257 x 6 x 12", None, make(queries=18504), deformable,
            composed("deformable_attention", module), (1, 18504, width), 18504 * 4 * sample),
    ]  # fmt: skip


def convolution_operations() -> list[Operation]:
    def conv(library, case, out, variant):
        default = convolution_kernels.deform_conv_layout(library, case["x"], len(case["bias"]))
        layout = default if variant == 0 else convolution_kernels.COMMON_LAYOUT
        arguments = convolution_kernels.deform_conv_arguments(case, layout)
        convolution_kernels.deform_conv(library, **arguments, out=out, variant=variant)

    def conv_composed(case: cases.Case):
        plain = {"input": case["x"], "offset_mask": case["offset_mask"], "weight": case["plain_weight"]}
        return (composed("modulated_deform_conv2d")(plain).handle + case["bias"].half().view(-1, 1, 1)).relu()

    operations = []
    for channels, h, w in ((256, 58, 100), (512, 29, 50)):
        size, flops = (6, channels, h, w), 2.0 * 6 * h * w * channels * channels * 9

        def make(size=size):
            return convolution_kernels.deform_conv_case(torch.float16, DEVICE, size, size[1])

        operations.append(
            Operation(
                f"deformable convolution, 6 x {channels} x {h} x {w}",
                0.22,
                make,
                conv,
                conv_composed,
                size,
                flops,
                True,
            )
        )
    return operations


def merge_operation(library) -> Operation:
    """All of the map head's merging: 100 masks of 200 x 200 pixels, 3 classes, some 30 of them drawn."""
    classes, pixels = 3, 40000

    def make():
        case = merge_kernels.merge_case(DEVICE, 100, MAP[0], classes)
        return {**case, "workspace": merge_kernels.merge_workspace(library, case["masks"], classes)}

    def merge(library, case, out, variant):
        outputs = (out[:classes].view(torch.int32), out[classes:])
        merge_kernels.merge_masks(library, **case, out=outputs)

    return Operation(
        "merging of map masks, 100 x 40000", None, make, merge, composed("merge_masks", "layers.seg_merge"),
        (2 * classes, pixels), 0.0, dtype=torch.float32)  # fmt: skip


def rotate_operation(library) -> Operation:
    """The last frame's BEV, turned."""

    def rotate(library, case, out, variant):
        rowwise_kernels.rotate_nearest(library, **case, out=out)

    return Operation(
        "turning of the BEV map, 40000 x 256", None,
        lambda: rowwise_kernels.rotate_case(torch.float16, DEVICE, MAP[0], 256, 1.3), rotate,
        composed("rotate_nearest", "layers.bev_geometry"),
        (40000, 256), 0.0)  # fmt: skip


def matrix_operations(library) -> list[Operation]:
    """What multiplies on tensor cores, but for the convolutions; occupancy's composition is plain torch's."""
    names = ("query", "memory")

    def attend(library, case, out, variant):
        matrix_kernels.memory_attention(library, *(case[n] for n in names), workspace=case["workspace"], out=out)

    def attention(rows: int) -> Operation:
        def make():
            case = matrix_kernels.memory_attention_case(DEVICE, rows, 40000, 256)
            return {**case, "workspace": matrix_kernels.attention_workspace(library, **case)}

        return Operation(
            f"attention of {rows} rows to 40000 x 256", None, make, attend,
            composed("memory_attention", "layers.basic"), (rows, 256), 4.0 * rows * 40000 * 256, True)  # fmt: skip

    def heads(queries: int, keys: int, *mask: int, layers: int = 0) -> Operation:
        def make():
            case = matrix_kernels.multihead_attention_case(DEVICE, 1, queries, keys, 8, 32, mask, layers)
            return {**case, "workspace": matrix_kernels.heads_workspace(library, **case)}

        def compose(case: cases.Case):
            plain = {**case, "blocked": case["blocked"].bool()} if mask else case
            return composed("multihead_attention")(plain)

        def call(library, case, out, variant):
            matrix_kernels.multihead_attention(library, **case, out=out)

        return Operation(
            f"attention of 8 heads, {queries} x {keys}{', masked' if mask else ''}{', one of four' if layers else ''}",
            None, make, call, compose,
            (queries, 256), 4.0 * queries * keys * 256, True)  # fmt: skip

    def occupancy_composed(case: cases.Case):
        scores = (case["query"] @ case["state"].transpose(1, 2)).float().sigmoid() * case["score"].view(1, -1, 1)
        best, index = scores.max(1)
        return torch.where(best > case["threshold"], index + 1, 0)

    def masks_composed(case: cases.Case):
        query, key = (case[n].view(len(case[n]), 8, 32).transpose(0, 1) for n in ("query", "key"))  # (M,N,C) (M,B,C)
        logits = (query @ key.transpose(1, 2) * 32**-0.5).unsqueeze(0)  # (1,M,N,B)
        for name in ("mix", "sum"):
            weight, bias = case[name].half(), case[f"{name}_bias"].half()
            logits = torch.nn.functional.conv2d(logits, weight.view(*weight.shape, 1, 1), bias).relu()
        return logits

    def narrow(channels: int, height: int, width: int) -> Operation:
        def compose(case: cases.Case):
            image, (weight, bias) = case["x"].permute(0, 3, 1, 2), (case[f"plain_{n}"] for n in ("weight", "bias"))
            return torch.nn.functional.conv2d(image, weight, bias, padding=1)

        def call(library, case, out, variant):
            matrix_kernels.narrow_conv(library, **cases.packed_only(case), out=out)

        size = (6, channels, height, width)
        return Operation(
            f"convolution to 27 outputs, 6 x {channels} x {height} x {width}", None,
            lambda: matrix_kernels.narrow_conv_case(DEVICE, size), call, compose, (6 * height * width, 32),
            2.0 * 6 * height * width * 27 * 9 * channels, True)  # fmt: skip

    def end_of_block(rows: int, channels: int, outputs: int) -> Operation:
        def compose(case: cases.Case):
            linear = torch.nn.functional.linear(case["x"], case["plain_weight"], case["bias"].half())
            return linear.add_(case["residual"]).relu_()

        def call(library, case, out, variant):
            resnet_kernels.expand_conv(library, **cases.packed_only(case), out=out)

        return Operation(
            f"end of a block, {rows} x {channels} to {outputs}", None,
            lambda: resnet_kernels.expand_conv_case(DEVICE, rows, channels, outputs), call, compose,
            (rows, outputs), 2.0 * rows * channels * outputs, True)  # fmt: skip

    def stem_composed(case: cases.Case):
        x, weight, bias = case["x"], case["plain_weight"], case["bias"].half()
        out = torch.nn.functional.conv2d(x, weight, bias, stride=2, padding=3).relu_()
        return torch.nn.functional.max_pool2d(out, 3, 2, 1)

    return [
        attention(800),
        attention(8),
        heads(1157, 1157, 1157),
        heads(625, 625),
        heads(625, 256, 625, 256),
        heads(1542, 257, 257),
        heads(300, 300),
        heads(100, 40000, layers=4),
        narrow(256, 58, 100),
        narrow(512, 29, 50),
        Operation(
            "stem, 6 x 928 x 1600", None, lambda: resnet_kernels.stem_case(DEVICE, 6, 928, 1600),
            lambda library, case, out, variant: resnet_kernels.stem(
                library, **cases.packed_only(case), out=out),
            stem_composed, (6 * 232 * 400, 64), 2.0 * 6 * 464 * 800 * 64 * 147, True),
        end_of_block(6 * 232 * 400, 64, 256),
        end_of_block(6 * 116 * 200, 128, 512),
        end_of_block(6 * 58 * 100, 256, 1024),
        Operation(
            "masks of 100 queries, 40000 cells", None,
            lambda: matrix_kernels.attention_masks_case(DEVICE, 100, 40000, 256),
            lambda library, case, out, variant: matrix_kernels.attention_masks(library, *case.values(), out=out),
            masks_composed, (100, 40000), 2.0 * 100 * 40000 * (256 + 72), True, torch.float32),
        Operation(
            "occupancy of 256 instances, 5 x 40000 cells", None,
            lambda: matrix_kernels.occupancy_case(DEVICE, 5, 256, 40000, 256),
            lambda library, case, out, variant: matrix_kernels.occupancy(library, **case, out=out),
            occupancy_composed, (5, 40000), 2.0 * 5 * 256 * 40000 * 256, True, torch.int32),
    ]  # fmt: skip


def norm_operation(library) -> Operation:
    """One "add and norm" of an encoder's 40000 cells."""

    def norm(library, case, out, variant):
        rowwise_kernels.add_layer_norm(library, **case, out=out)

    return Operation(
        "layer norm of a sum, 40000 x 256", 0.03,
        lambda: rowwise_kernels.norm_case(torch.float16, DEVICE, 40000, 256), norm,
        composed("add_layer_norm"), (40000, 256), 0.0)  # fmt: skip


def images_operation(library) -> Operation:
    """The camera images as the stem convolution reads them; its composition takes uint8 and leaves out the layout."""

    def normalise(library, case, out, variant):
        rowwise_kernels.normalise_images(library, **case, out=out)

    def normalise_composed(case: cases.Case):
        x = (case["img"].float() - torch.tensor(case["mean"], device=DEVICE)).permute(0, 3, 1, 2).half()
        return torch.nn.functional.pad(x, (0, 0, 0, 28))

    return Operation(
        "normalised images, 6 x 900 x 1600", 0.1,
        lambda: rowwise_kernels.images_case(torch.float16, DEVICE, 6, (900, 1600), (928, 1600)), normalise,
        normalise_composed, (18, 928, 1600), 0.0)  # fmt: skip


def temporal_operation(library) -> Operation:
    """What a layer's temporal self-attention reads, with a history; its outputs as one tensor, the pair first."""
    cells, width = 40000, 256

    def join(library, case, out, variant):
        pair, maps = out.view(2, 2 * cells * width)
        outputs = pair.view(cells, 2 * width), maps.view(2, cells, width)
        rowwise_kernels.temporal_inputs(library, **case, out=outputs)

    def join_composed(case: cases.Case):
        return composed("temporal_inputs", "layers.bev_encoder")({**case, "has_prev": case["has_prev"].bool()})

    return Operation(
        "temporal inputs, 40000 x 256", 0.07,
        lambda: rowwise_kernels.temporal_inputs_case(torch.float16, DEVICE, cells, width, True), join, join_composed,
        (4, cells, width), 0.0)  # fmt: skip


def layout_operations(library) -> list[Operation]:
    """Between maps and rows of cells; both compositions are plain torch's."""
    flat, rows = sum(h * w for h, w in cases.PYRAMID), MAP[0][0] * MAP[0][1]

    def make_maps():
        case = layout_kernels.flatten_case(DEVICE, 6, 256, cases.PYRAMID)
        return {**{f"map{i}": x for i, x in enumerate(case["maps"])}, "embeds": case["embeds"]}

    def maps(case: cases.Case) -> list[torch.Tensor]:
        return [case[f"map{i}"] for i in range(len(cases.PYRAMID))]

    def flatten(library, case, out, variant):
        layout_kernels.flatten_maps(library, maps(case), case["embeds"], out=out)

    def sample(library, case, out, variant):
        layout_kernels.sample_map(library, **case, out=out)

    def sample_composed(case: cases.Case):
        planes = case["rows"].T.reshape(1, -1, *case["shape"]).float()
        size = torch.tensor([case["shape"][1], case["shape"][0]], device=planes.device)
        grid = (2 * case["positions"] + 1) / size - 1
        return torch.nn.functional.grid_sample(planes, grid.view(1, *MAP[0], 2), align_corners=False).half()

    return [
        Operation(
            "image features to rows, 6 x 4 maps of 256", None, make_maps, flatten,
            lambda case: layout_kernels.flatten_reference(maps(case), case["embeds"]), (6, flat, 256), 0.0),
        Operation(
            "samples of the BEV map, 40000 x 256", None,
            lambda: layout_kernels.sample_case(DEVICE, MAP[0], 256, rows), sample, sample_composed, (rows, 256), 0.0),
    ]  # fmt: skip


def operations(library, facts: dict[str, str]) -> list[tuple[Operation, list[int]]]:
    """All of them, each with the kernel variants that a library of these facts has."""
    variants = list(attention_kernels.VARIANTS) if facts["variants"] == "1" else [0]
    tried = [(operation, variants) for operation in attention_operations()]
    tried += [(o, convolution_kernels.conv_variants(facts, o.out_shape[1])) for o in convolution_operations()]
    single = [*matrix_operations(library), merge_operation(library), rotate_operation(library)]
    single += [norm_operation(library), images_operation(library), temporal_operation(library)]
    return tried + [(operation, [0]) for operation in single + layout_operations(library)]
