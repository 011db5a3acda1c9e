"""The CPU executor's table sampling: block edges, borders, positions far outside, NaN. Plain torch is the reference.

That it equals the compositions in the network's own use is tested in test_functional.py, test_backbone.py and
test_bev_encoder.py.
"""

import numpy as np
import pytest
import torch
from support import assert_close, assert_differs

from trtllm import torch_sampling
from trtllm.torch_sampling import LevelTable, bordered_rows, deform_conv

SHAPES = [(5, 7), (3, 4), (1, 1)]
QUERIES, HEADS, POINTS, CHANNELS = 23, 2, 3, 4


def sampled(value, locations, weights) -> np.ndarray:
    """The same with grid_sample."""
    out, start = torch.zeros(HEADS, CHANNELS, QUERIES), 0
    for level, (h, w) in enumerate(SHAPES):
        plane = value[start : start + h * w].permute(1, 2, 0).reshape(HEADS, CHANNELS, h, w)
        grid = locations[:, :, level].transpose(0, 1) * 2 - 1  # (M,Q,P,2)
        samples = torch.nn.functional.grid_sample(plane, grid, align_corners=False)  # (M,C,Q,P)
        out += (samples * weights[:, :, level].transpose(0, 1).unsqueeze(1)).sum(3)
        start += h * w
    return out.permute(2, 0, 1).reshape(QUERIES, -1).numpy()


def arrays():
    generator = torch.Generator().manual_seed(3)
    value = torch.randn(sum(h * w for h, w in SHAPES), HEADS, CHANNELS, generator=generator)
    locations = torch.rand(QUERIES, HEADS, len(SHAPES), POINTS, 2, generator=generator) * 1.6 - 0.3
    locations[0] = torch.tensor([0.0, 1.0])
    locations[1] = torch.tensor([1.0, 0.5])
    locations[2] = torch.tensor([-3e6, 0.5])
    locations[3] = torch.tensor([0.5, 5e6])
    weights = torch.randn(QUERIES, HEADS, len(SHAPES), POINTS, generator=generator)
    return value, locations, weights


@pytest.mark.parametrize("block", [5, 23, 4096])
def test_samples_equal_grid_sample(block, monkeypatch):
    monkeypatch.setattr(torch_sampling, "BLOCK", block)
    value, locations, weights = arrays()
    expected = sampled(value, locations, weights)
    table = LevelTable(value, SHAPES)
    assert_close(table.sample(locations, weights).numpy(), expected, 3e-6, "samples")
    assert not expected[2:4].any()
    assert_differs(table.sample(locations.flip(-1), weights).numpy(), expected, 0.1, "x and y swapped")


def test_a_position_that_is_no_number_spoils_its_query_only():
    value, locations, weights = arrays()
    expected = sampled(value, locations, weights)
    locations[7, 1, 2, 0, 1] = torch.nan
    out = LevelTable(value, SHAPES).sample(locations, weights).numpy()
    assert np.isnan(out[7, CHANNELS:]).all()
    out[7], expected[7] = 0, 0
    assert_close(out, expected, 3e-6, "the others")


def test_border_is_zero():
    value = torch.ones(sum(h * w for h, w in SHAPES), 2)
    table, starts = bordered_rows(value, SHAPES)
    assert starts == [0, 7 * 9, 7 * 9 + 5 * 6] and len(table) == 7 * 9 + 5 * 6 + 3 * 3
    assert table[:, 0].sum() == len(value)
    inner = table[: 7 * 9, 0].view(7, 9)
    assert inner[1:-1, 1:-1].all() and inner.sum() == 35


def test_deformable_convolution_in_blocks(monkeypatch):
    """Without offsets and with all masks one half it is half a convolution."""
    generator = torch.Generator().manual_seed(4)
    images = torch.randn(2, 3, 9, 11, generator=generator)
    weight = torch.randn(5, 3, 3, 3, generator=generator)
    expected = 0.5 * torch.nn.functional.conv2d(images, weight, padding=1).numpy()
    numbers = torch.zeros(2, 27, 9, 11)
    monkeypatch.setattr(torch_sampling, "BLOCK", 8)
    assert_close(deform_conv(images, numbers, weight, 1, 1).numpy(), expected, 5e-6, "no offsets")
    numbers[:, 0] = 1.0
    assert_differs(deform_conv(images, numbers, weight, 1, 1).numpy(), expected, 0.1, "one tap moved")
