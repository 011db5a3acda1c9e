"""The merging of the map's masks by the kernels on the host (kernels_support.py), bit by bit."""

import kernel_calls
import merge_kernels as merge
import numpy as np
import pytest
import test_seg_head
import torch
from kernels_support import HostKernels
from op_references import merge_by_loop
from support import assert_close, golden, noise_floor


@pytest.mark.parametrize("index", test_seg_head.FRAMES)
def test_recorded_map(kernels, monkeypatch, index):
    """The recorded frames' maps merged by the kernels: as recorded, and bit by bit what the composition gives."""
    frame = golden("tiny", f"frame_{index}.npz")
    lane, lane_score = run_map(frame)
    assert kernels.calls["merge_masks"] == 1 and lane.any()
    np.testing.assert_array_equal(lane, frame["seg.res.lane"])
    bound = test_seg_head.FACTOR * noise_floor()["seg.res.lane_score"]
    assert_close(lane_score, frame["seg.res.lane_score"], bound)
    with monkeypatch.context() as patch:
        patch.setattr(HostKernels, "merge_masks", None)
        composed = run_map(frame)
    np.testing.assert_array_equal(lane, composed[0])
    np.testing.assert_array_equal(lane_score, composed[1])
    broken, _ = run_map({"bev.out": frame["bev.out"][:, ::-1].copy()})
    assert (broken != lane).any()


def run_map(frame):
    outputs, _ = test_seg_head.run(frame["bev.out"][0])
    return outputs["map_lane"], outputs["map_lane_score"]


@pytest.mark.parametrize("seed", range(5))
def test_merge_of_rectangles(kernels, seed):
    """With a broken case in it."""
    test_seg_head.test_merge(seed)
    assert kernels.calls["merge_masks"] == 1


MERGES = [  # masks, size of the map, classes; 128 pixels are a vector, of which a thread owns one, two or four
    (100, (40, 40), 3),
    (60, (30, 31), 3),  # rows not aligned
    (33, (7, 11), 3),  # less than a vector
    (31, (50, 83), 5),
    (1024, (9, 13), 3),
    (20, (257, 256), 2),
    (9, (401, 500), 3),
]


@pytest.mark.parametrize(("count", "size", "classes"), MERGES)
def test_merge_masks(library, count, size, classes):
    torch.manual_seed(10)
    case = merge.merge_case("cpu", count, size, classes)
    arrays = {name: x.numpy() if torch.is_tensor(x) else x for name, x in case.items()}
    lane, lane_score, drawn = merge_by_loop(**arrays)
    assert 1 < drawn < count
    assert_merged(library, case, lane, lane_score)
    for name in ("scores", "labels"):  # another order, other classes
        other = {**case, name: case[name].flip(0)}
        with pytest.raises(AssertionError, match="lane"):
            assert_merged(library, other, lane, lane_score)


def assert_merged(library, case, lane, lane_score) -> None:
    """What the kernels give, bit by bit. Nothing is written behind the outputs and the workspace."""
    (classes, pixels), guard = lane.shape, 64
    workspace = merge.merge_workspace(library, case["masks"], classes)
    memory = torch.full((len(workspace) + guard,), 255, dtype=torch.uint8)
    out = [kernel_calls.poisoned((classes * pixels + guard,), like) for like in (case["labels"], case["masks"])]
    views = tuple(x[: classes * pixels].view(classes, pixels) for x in out)
    merge.merge_masks(library, **case, workspace=memory[: len(workspace)], out=views)
    np.testing.assert_array_equal(views[0].numpy(), lane, "lane")
    np.testing.assert_array_equal(views[1].numpy(), lane_score, "lane_score")
    assert (memory[-guard:] == 255).all() and (out[0][-guard:] == -1).all() and out[1][-guard:].isnan().all()


NAN = float("nan")
# Masks in eighths, class scores, labels; then the mask that shows at each pixel of the classes 0, 1 and 2, "." is none.
SMALL_MERGES = {
    "of equals the first": (["88880000", "00088880"], [0.9, 0.9], [2, 1], "........ ....111. 0000...."),
    "two fifths taken": (["88000", "88888"], [3.0, 0.9], [1, 2], "..... 00... ..111"),
    "three sevenths taken": (["8880000", "8888888"], [3.0, 0.9], [1, 2], "....... 000.... ......."),
    "class 0 takes none": (["8888", "6666", "8888"], [3.0, 2.0, 1.0], [0, 0, 2], "1111 .... 2222"),
    "class 0 is left what is free": (["8800", "0888", "0066"], [3.0, 2.0, 1.0], [1, 0, 0], "..22 00.. ...."),
    "at the threshold": (["8000"], [0.4], [1], ".... 0... ...."),
    "all below": (["8888", "6666"], [0.1, 0.1], [1, 2], ".... .... ...."),
    "nothing inside": (["4444", "0000"], [9.0, 9.0], [1, 2], ".... .... ...."),
    "no such class": (["88000", "08888"], [3.0, 1.0], [7, 1], "..... ..111 ....."),
    "not a number goes first": (["8800", "0888"], [9.0, NAN], [1, 2], ".... .... .111"),
}


@pytest.mark.parametrize("name", SMALL_MERGES)
def test_rules_of_the_merge(library, name):
    masks, scores, labels, shown = SMALL_MERGES[name]
    case = {
        "masks": torch.tensor([[int(eighths) / 8 for eighths in row] for row in masks]),
        "scores": torch.tensor(scores),
        "labels": torch.tensor(labels, dtype=torch.int32),
        "num_classes": 3,
        "quality_thresh": 0.1,
    }
    rows = shown.split()
    lane = np.array([[mask != "." for mask in row] for row in rows], np.int32)
    values = [[0.0 if mask == "." else case["masks"][int(mask), x] for x, mask in enumerate(row)] for row in rows]
    assert_merged(library, case, lane, np.array(values, np.float32))
    everything = {**case, **{key: torch.ones_like(case[key]) for key in ("masks", "scores", "labels")}}
    with pytest.raises(AssertionError, match="lane"):
        assert_merged(library, everything, lane, np.array(values, np.float32))


def test_merge_sizes_that_are_refused(library):
    for count, pixels, classes in ((1025, 4, 3), (2, 262145, 3), (2, 4, 65)):
        tensors = torch.zeros(count, pixels), torch.zeros(count), torch.zeros(count, dtype=torch.int32)
        with pytest.raises(RuntimeError, match="uniad_merge_masks: error 1"):
            merge.merge_masks(library, *tensors, classes, 0.1)
