"""The kernels that multiply on tensor cores, on the host: their threads are fibers (host_block.h). Against float64, a
broken case each; sizes that leave parts of tiles empty, and several tiles for one block."""

import functools
import shutil
import subprocess

import kernel_calls
import kernel_cases as cases
import matrix_kernels as kernels
import pytest
import resnet_kernels as resnet
import torch
from support import ROOT

# Stored as float16, the exact result has this much more error at most; weights are float16 too. Measured: 1.04, and
# 1.22 of many heads, where more keys share the weight.
FLOAT16_FACTOR = 1.5
FLOAT32_BOUND = 1e-6  # measured: 2.2e-7


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++: the kernels' headers can't be compiled for the host")
    return build(tmp_path_factory.mktemp("kernels"), ROOT / "plugins" / "src")


def build(folder, sources):
    """The kernels of plugins/src, or of a copy, as a library for the host."""
    path = folder / "libmatrix_kernels_host.so"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror", "-shared", "-fPIC"]
    source = [ROOT / "tests" / "kernels_host_blocks.cpp", "-I", sources]
    subprocess.run([shutil.which("g++"), *flags, *source, "-o", path], check=True)
    return kernel_calls.load(path)


@pytest.mark.parametrize(
    ("rows", "cells", "width"), [(8, 300, 256), (70, 130, 128), (1, 8193, 128), (65, 64, 256), (16, 1, 128)]
)
def test_memory_attention(library, rows, cells, width):
    torch.manual_seed(rows)
    case = kernels.memory_attention_case("cpu", rows, cells, width)
    expected = kernels.memory_attention_reference(**case)
    bound = FLOAT16_FACTOR * max(cases.rounding_noise(expected, torch.float16), 1e-4)
    assert cases.relative_error(kernels.memory_attention(library, **case), expected) < bound
    broken = {**case, "query": -case["query"]} if cells > 1 else {**case, "memory": -case["memory"]}
    assert cases.relative_error(kernels.memory_attention(library, **broken), expected) > 0.1


def test_memory_attention_of_large_logits(library):
    """Products of hundreds: their exponentials alone would be infinite."""
    case = kernels.memory_attention_case("cpu", 20, 200, 128, sharp=30.0)
    expected = kernels.memory_attention_reference(**case)
    assert cases.relative_error(kernels.memory_attention(library, **case), expected) < 1e-3


@pytest.mark.parametrize(
    ("sizes", "mask"),  # groups, queries, keys, heads, channels
    [
        ((1, 70, 130, 2, 32), ()),
        ((3, 64, 64, 1, 16), ()),
        ((2, 65, 67, 3, 16), (67,)),
        ((1, 130, 190, 1, 32), (130, 190)),
        ((2, 20, 66, 2, 16), (20, 66)),
        ((1, 5, 300, 1, 32), (300,)),
        ((1, 17, 1, 2, 32), ()),
    ],
)
def test_multihead_attention(library, sizes, mask):
    torch.manual_seed(sizes[1])
    case = kernels.multihead_attention_case("cpu", *sizes, mask)
    expected = kernels.multihead_attention_reference(**case)
    bound = FLOAT16_FACTOR * max(cases.rounding_noise(expected, torch.float16), 1e-4)
    assert cases.relative_error(kernels.multihead_attention(library, **case), expected) < bound
    broken = {**case, "value": case["value"].flip(1) if sizes[2] > 1 else -case["value"]}
    assert cases.relative_error(kernels.multihead_attention(library, **broken), expected) > 0.1
    if mask:
        assert cases.relative_error(kernels.multihead_attention(library, **{**case, "blocked": None}), expected) > 0.1


def test_multihead_attention_in_parts(library):
    """More keys than blocks of queries: parts of them, out of the keys and values of three attentions."""
    torch.manual_seed(3)
    case = kernels.multihead_attention_case("cpu", 1, 33, 4200, 2, 32, layers=3)
    expected = kernels.multihead_attention_reference(**case)
    bound = FLOAT16_FACTOR * max(cases.rounding_noise(expected, torch.float16), 1e-4)
    assert cases.relative_error(kernels.multihead_attention(library, **case), expected) < bound
    for first_heads in ((6, 10), (8, 8)):
        broken = kernels.multihead_attention(library, **{**case, "first_heads": first_heads})
        assert cases.relative_error(broken, expected) > 0.1
    with pytest.raises(RuntimeError, match="uniad_multihead_attention: error 1"):
        kernels.multihead_attention(library, **{**case, "first_heads": (8, 11)})


def test_multihead_attention_that_sees_nothing(library):
    """The mean of the values that there are; and keys of the first tile alone, or of the last, that are seen."""
    case = kernels.multihead_attention_case("cpu", 1, 20, 133, 2, 32, (133,))
    for seen in ([], [1], [132], [63, 64]):
        case["blocked"] = torch.ones(133, dtype=torch.int32)
        case["blocked"][seen] = 0
        found, expected = kernels.multihead_attention(library, **case), kernels.multihead_attention_reference(**case)
        assert cases.relative_error(found, expected) < 1e-3
        if not seen:
            assert cases.relative_error(found, case["value"].double().mean(1, True).expand(found.shape)) < 1e-3


def test_multihead_attention_of_large_logits(library):
    """Products of hundreds: their exponentials alone would be infinite."""
    case = kernels.multihead_attention_case("cpu", 1, 20, 200, 1, 32)
    case["query"] *= 50
    expected = kernels.multihead_attention_reference(**case)
    assert cases.relative_error(kernels.multihead_attention(library, **case), expected) < 1e-3


@pytest.mark.parametrize(("queries", "cells", "width"), [(100, 300, 256), (1, 65, 128), (140, 257, 128), (5, 64, 256)])
def test_attention_masks(library, queries, cells, width):
    torch.manual_seed(queries)
    case = kernels.attention_masks_case("cpu", queries, cells, width)
    expected = kernels.attention_masks_reference(**case)
    assert cases.relative_error(kernels.attention_masks(library, *case.values()), expected) < FLOAT32_BOUND
    broken = {**case, "mix": case["mix"].flip(1).contiguous()}
    assert cases.relative_error(kernels.attention_masks(library, *broken.values()), expected) > 0.01


@pytest.mark.parametrize(
    ("steps", "instances", "cells", "width"), [(2, 256, 300, 256), (5, 7, 129, 128), (1, 97, 513, 128)]
)
def test_occupancy(library, steps, instances, cells, width):
    torch.manual_seed(instances)
    case = kernels.occupancy_case("cpu", steps, instances, cells, width)
    found = kernels.occupancy(library, **case)
    assert kernels.occupancy_errors(found, **case) == 0
    assert 0.2 < (found > 0).float().mean() < 0.8
    assert kernels.occupancy_errors(found, **{**case, "score": case["score"].flip(0)}) > cells // 10
    assert kernels.occupancy_errors(found, **{**case, "threshold": case["threshold"] * 1.2}) > cells // 50


def test_rows_without_a_track_are_left_out(library):
    """Whole groups of them; what they hold does not matter."""
    case = kernels.occupancy_case("cpu", 1, 200, 130, 128)
    case["score"][40:180] = 0
    found = kernels.occupancy(library, **case)
    assert kernels.occupancy_errors(found, **case) == 0 and (found > 180).any()
    case["query"][:, 64:160] = float("nan")
    assert torch.equal(kernels.occupancy(library, **case), found)
    assert not kernels.occupancy(library, **{**case, "score": torch.zeros(200)}).any()


def test_equal_instances_give_the_first(library):
    case = kernels.occupancy_case("cpu", 1, 40, 130, 128)
    query = case["query"][:, :1].expand(1, 40, 128).contiguous()
    arguments = {**case, "query": query, "score": torch.full((40,), 0.5), "threshold": 0.0}
    assert (kernels.occupancy(library, **arguments) == 1).all()


def check_packed(kernel, reference, case, turned: str, axis: int) -> torch.Tensor:
    """What a kernel gives for a case with plain weights beside the packed ones is right; with the input `turned` in
    reverse order along `axis` it is not."""
    expected, packed = reference(**case), cases.packed_only(case)
    bound = FLOAT16_FACTOR * cases.rounding_noise(expected, torch.float16)
    found = kernel(**packed)
    assert cases.relative_error(found, expected) < bound
    broken = {**packed, turned: packed[turned].flip(axis).contiguous()}
    assert cases.relative_error(kernel(**broken), expected) > 0.1
    return found


@pytest.mark.parametrize("size", [(1, 64, 8, 16), (2, 128, 9, 21), (1, 32, 19, 16), (1, 96, 3, 5)])
def test_narrow_conv(library, size):
    """Blocks of one, two and three tiles. Zeros behind the outputs, too."""
    torch.manual_seed(size[2])
    case, call = kernels.narrow_conv_case("cpu", size), functools.partial(kernels.narrow_conv, library)
    found = check_packed(call, kernels.narrow_conv_reference, case, "x", 2)
    assert not found[..., 27:].any()


@pytest.mark.parametrize(
    ("rows", "channels", "outputs"), [(70, 64, 256), (200, 128, 512), (33, 256, 256), (3, 256, 256)]
)
def test_expand_conv(library, rows, channels, outputs):
    """More tiles than stages, and none for the second worker."""
    torch.manual_seed(rows)
    case = resnet.expand_conv_case("cpu", rows, channels, outputs)
    check_packed(functools.partial(resnet.expand_conv, library), resnet.expand_conv_reference, case, "residual", 1)


@pytest.mark.parametrize("size", [(1, 28, 56), (2, 32, 64), (1, 4, 8), (1, 60, 120)])
def test_stem(library, size):
    """Whole tiles and parts of them; three tiles for a worker."""
    torch.manual_seed(size[1])
    case = resnet.stem_case("cpu", *size)
    check_packed(functools.partial(resnet.stem, library), resnet.stem_reference, case, "x", 3)


def test_sizes_that_are_refused(library):
    with pytest.raises(RuntimeError, match="uniad_memory_attention: error 1"):
        kernels.memory_attention(library, **kernels.memory_attention_case("cpu", 8, 100, 64))
    with pytest.raises(RuntimeError, match="uniad_attention_masks: error 1"):
        kernels.attention_masks(library, *kernels.attention_masks_case("cpu", 8, 100, 256, heads=4).values())
    for sizes, mask in (((1, 8, 8, 2, 64), ()), ((1, 8, 9, 2, 32), (8, 9)), ((1, 8, 8, 2, 32), (4, 8))):
        with pytest.raises(RuntimeError, match="uniad_multihead_attention: error 1"):
            kernels.multihead_attention(library, **kernels.multihead_attention_case("cpu", *sizes, mask))
    with pytest.raises(RuntimeError, match="uniad_narrow_conv: error 1"):
        x = torch.zeros(1, 4, 4, 16, dtype=torch.float16)
        kernels.narrow_conv(library, x, torch.zeros(9, 32, 16, dtype=torch.float16), torch.zeros(32))
    for channels, outputs in ((32, 256), (64, 128)):
        with pytest.raises(RuntimeError, match="uniad_expand_conv: error 1"):
            case = resnet.expand_conv_case("cpu", 5, channels, outputs)
            resnet.expand_conv(library, **cases.packed_only(case))
    for height, width in ((30, 64), (32, 60)):
        with pytest.raises(RuntimeError, match="uniad_stem: error 1"):
            resnet.stem(library, **cases.packed_only(resnet.stem_case("cpu", 1, height, width)))
    with pytest.raises(RuntimeError, match="uniad_occupancy: error 1"):
        kernels.occupancy(library, **kernels.occupancy_case("cpu", 1, 257, 16, 128))


FAULTS = {  # what a GPU may forgive for a while, the host must show: file, text, its replacement
    "a copy that is not waited for": ("memory_attention.cuh", "template wait<1>()", "template wait<2>()"),
    "rows and columns exchanged": ("online_softmax.cuh", "block.load_transposed(", "block.load("),
    "banks by another rule": ("warp_block.cuh", "& (kTurns - 1)", "& (kTurns - 1) & vector"),
    "a mask of other queries": ("multihead_attention.cuh", "blocked_keys(a, query + 8", "blocked_keys(a, query"),
    "a part that is left out": ("part_sums.cuh", "seen += shares[part]", "seen += (part > 0) * shares[part]"),
    "keys that are not waited for": ("multihead_attention.cuh", "template wait<1>()", "template wait<2>()"),
    "the wrong half of the rows": ("attention_masks.cuh", "row + j % 2 * 8", "row + j / 2 * 8"),
    "a border of the wrong side": ("narrow_conv.cuh", "tiles.column(tile) - 1", "tiles.column(tile)"),
    "a tile that is not waited for": ("expand_conv.cuh", "wait<kExpandStages - 2>()", "wait<kExpandStages - 1>()"),
    "a column beside": ("stem.cuh", "2 * column + 2 + lane", "2 * column + lane"),
    "results beyond the border": ("stem.cuh", "y < 2 * rows && x >= 0", "y < 2 * rows"),
    "a lane that is left out": ("occupancy.cuh", "mask < 4", "mask < 2"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_seen(fault, tmp_path):
    """The host's threads are good enough to fail where the kernels are wrong."""
    torch.manual_seed(0)  # one case in a hundred does not need the lane
    file, text, other = FAULTS[fault]
    shutil.copytree(ROOT / "plugins" / "src", tmp_path / "src")
    path = tmp_path / "src" / "kernels" / file
    assert path.read_text().count(text) >= 1
    path.write_text(path.read_text().replace(text, other))
    library, wrong = build(tmp_path, tmp_path / "src"), 0
    case = kernels.memory_attention_case("cpu", 20, 150, 128)
    expected = kernels.memory_attention_reference(**case)
    wrong += cases.relative_error(kernels.memory_attention(library, **case), expected) > 1e-2
    case = kernels.multihead_attention_case("cpu", 1, 20, 250, 1, 32, (20, 250))
    expected = kernels.multihead_attention_reference(**case)
    wrong += cases.relative_error(kernels.multihead_attention(library, **case), expected) > 1e-2
    case = kernels.attention_masks_case("cpu", 20, 150, 128)
    expected = kernels.attention_masks_reference(**case)
    wrong += cases.relative_error(kernels.attention_masks(library, *case.values()), expected) > 1e-2
    case = kernels.occupancy_case("cpu", 1, 40, 150, 128)
    wrong += kernels.occupancy_errors(kernels.occupancy(library, **case), **case) > 0
    case = kernels.narrow_conv_case("cpu", (1, 64, 9, 18))
    out = kernels.narrow_conv(library, **cases.packed_only(case))
    wrong += cases.relative_error(out, kernels.narrow_conv_reference(**case)) > 1e-2
    case = resnet.expand_conv_case("cpu", 140, 64, 256)
    out = resnet.expand_conv(library, **cases.packed_only(case))
    wrong += cases.relative_error(out, resnet.expand_conv_reference(**case)) > 1e-2
    case = resnet.stem_case("cpu", 1, 32, 64)
    out = resnet.stem(library, **cases.packed_only(case))
    wrong += cases.relative_error(out, resnet.stem_reference(**case)) > 1e-2
    assert wrong
