"""The kernels between maps and rows of cells, on the host (kernels_support.py)."""

import kernel_calls
import layout_kernels
import numpy as np
import pytest
import torch
from kernels_support import HostKernels
from network_support import const, torch_network

from config import load_config
from layers.occ_head import slicer_grid
from trtllm import map_layout

FLATTEN = [(6, 256, [(5, 7), (3, 4), (2, 2), (1, 1)], True), (1, 8, [(6, 9)], False), (2, 24, [(3, 3), (2, 5)], True)]


@pytest.mark.parametrize(("images", "channels", "shapes", "embeds"), FLATTEN)
def test_flatten_maps(library, images, channels, shapes, embeds):
    """Bit by bit; nothing is written behind the output."""
    torch.manual_seed(21)
    case = layout_kernels.flatten_case("cpu", images, channels, shapes, embeds)
    expected = layout_kernels.flatten_reference(**case)
    memory = kernel_calls.poisoned((expected.numel() + 64,), expected)
    out = layout_kernels.flatten_maps(library, **case, out=memory[: expected.numel()].view(expected.shape))
    assert torch.equal(out, expected) and memory[expected.numel() :].isnan().all()
    turned = {**case, "maps": [x.roll(1, 3).contiguous(memory_format=torch.channels_last) for x in case["maps"]]}
    assert not torch.equal(layout_kernels.flatten_maps(library, **turned), expected)
    if embeds:
        other = {**case, "embeds": case["embeds"].roll(1, 1)}
        assert not torch.equal(layout_kernels.flatten_maps(library, **other), expected), "another map's"


@pytest.mark.parametrize(("shape", "channels", "points"), [((5, 7), 16, 40), ((9, 4), 256, 33), ((3, 8), 8, None)])
def test_sample_map(library, shape, channels, points):
    torch.manual_seed(22)
    case = layout_kernels.sample_case("cpu", shape, channels, points)
    expected = layout_kernels.sample_reference(**case)
    memory = kernel_calls.poisoned((expected.numel() + 64,), case["rows"])
    out = layout_kernels.sample_map(library, **case, out=memory[: expected.numel()].view(expected.shape))
    assert (out.double() - expected).abs().max() <= expected.abs().max() * 2**-11  # float16's last bit, half of it
    assert memory[expected.numel() :].isnan().all(), "nothing is written behind the output"
    moved = {**case, "rows": case["rows"].roll(1, 0)}
    assert (layout_kernels.sample_map(library, **moved).double() - expected).abs().max() > 0.1
    if points is not None:
        moved = {**case, "positions": case["positions"] + 0.25}
        assert (layout_kernels.sample_map(library, **moved).double() - expected).abs().max() > 0.1


def test_sizes_that_are_refused(library):
    with pytest.raises(RuntimeError, match="uniad_flatten_maps: error 1"):
        layout_kernels.flatten_maps(library, **layout_kernels.flatten_case("cpu", 1, 12, [(2, 3)]))
    with pytest.raises(RuntimeError, match="uniad_sample_map: error 1"):
        layout_kernels.sample_map(library, **layout_kernels.sample_case("cpu", (2, 3), 12, 5))


def test_network_by_the_kernels(kernels, monkeypatch):
    """In a float16 network: rows to the bit what the composition gives, samples within float16's last bit."""
    rng, results, config = np.random.default_rng(5), [], load_config("tiny_e2e")
    maps = [rng.standard_normal((6, 128, *shape)).astype(np.float16) for shape in ((3, 5), (2, 3))]
    images, levels = (rng.standard_normal((count, 128)).astype(np.float16) for count in (6, 2))
    rows = rng.standard_normal((1600, 128)).astype(np.float16)
    for method in (True, False):
        with torch_network("float16"):
            if not method:
                monkeypatch.setattr(HostKernels, "flatten_maps", None)
                monkeypatch.setattr(HostKernels, "sample_map", None)
            results.append(
                [
                    x.handle
                    for x in (
                        map_layout.flatten_maps([half(x) for x in maps], *map(half, (images, levels))),
                        map_layout.flatten_maps([half(maps[0])]),
                        map_layout.sample_map(half(rows), (40, 40)),
                        map_layout.sample_map(half(rows), (40, 40), slicer_grid(config)),
                    )
                ]
            )
    assert kernels.calls["flatten_maps"] == kernels.calls["sample_map"] == 2
    assert all(map(torch.equal, results[0][:3], results[1][:3]))
    difference = (results[0][3].double() - results[1][3].double()).abs().max()
    assert difference <= results[1][3].abs().max() * 2**-10


def half(array):
    return const(array, "float16")
