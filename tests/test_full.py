"""The full-size model against the original's recorded frames 0 and 1, as one run of our own (`make test-full`).

The recipe's weights make the refinement of reference points chaotic: each decoder layer enlarges a difference about
eightfold, and 1e-6 in the BEV becomes 3e-2 in the queries after six layers. Everything up to the BEV is therefore
judged tightly here, and what follows loosely. test_full_parts.py judges that tightly, part by part.
"""

import numpy as np
import pytest
from full_support import (
    CHAOTIC,
    CONFIG,
    FROM_BEV,
    IMAGE_SIDE,
    allowed,
    difference,
    expected_of,
    full_model,
    matching,
    noise,
    own_runs,
    peak_memory,
    recorded,
)
from network_support import const, torch_network, value
from support import max_error

pytestmark = pytest.mark.full

FACTOR = 8  # x noise.tsv before chaos: two implementations in float32; measured at most 4.4
FROM_BEV_FACTOR = 16  # x noise.tsv of what a few layers make of our BEV; measured at most 9.3
CHAOS = 32  # x noise.tsv after it: 1e-6 in the BEV, less than our difference there, moves as much; measured at most 16
TRACK = 8  # x noise.tsv's rows of frame 0, for tracks matched by id; measured at most 5
PEAK_GB = 7.0


@pytest.mark.parametrize("index", [0, 1])
def test_up_to_the_bev_and_straight_from_it(index):
    samples = own_runs()[index].samples
    for factor, keys in ((FACTOR, IMAGE_SIDE), (FROM_BEV_FACTOR, FROM_BEV)):
        for key in keys:
            if key == "bev.prev_bev_rotated" and index == 0:
                continue  # nothing is carried into the first frame
            error = difference(samples[key], expected_of(recorded(index), key))
            assert error <= allowed(key, index, factor), f"{key}: {error:.2e}"


def test_a_wrong_shift_is_seen(monkeypatch):
    """The first encoder layer of frame 1 on our own features; half a cell's shift less must not pass."""
    run, encoder = own_runs()[1], full_model().pts_bbox_head.transformer.encoder
    monkeypatch.setattr(encoder, "layers", [encoder.layers[0]])

    def error(shift: float) -> float:
        inputs = {name: run.inputs[name] for name in ("can_bus", "lidar2img", "shift", "rotation")}
        with torch_network():
            levels = [const(run.samples.whole[f"fpn.{i}"]) for i in range(4)]
            inputs["shift"] = inputs["shift"] - shift / CONFIG.bev_w
            bev, _ = full_model().pts_bbox_head.get_bev_features(
                levels, *inputs.values(), const(own_runs()[0].samples.whole["bev.out"]), run.inputs["has_prev"]
            )
            ours = matching(recorded(1), "bev.layer0", value(bev))
        return difference(ours, expected_of(recorded(1), "bev.layer0"))

    assert error(0.0) <= allowed("bev.layer0", 1, FACTOR) < error(0.5)


@pytest.mark.parametrize("index", [0, 1])
def test_end_of_our_own_run(index):
    run, frame = own_runs()[index], recorded(index)
    for key in CHAOTIC:
        error = difference(run.samples[key], expected_of(frame, key))
        assert error <= allowed(key, index, CHAOS), f"{key}: {error:.2e}"
    # Of the carried queries, which come last in the frame, and the fresh ones: who is a track?
    ours, theirs = run.samples["tracker.obj_idxes"] >= 0, frame["tracker.obj_idxes"] >= 0
    doubtful = np.abs(frame["tracker.scores"] - CONFIG.score_thresh) <= allowed("tracker.scores", index, 1)
    assert not (ours != theirs)[~doubtful].any()

    ids, expected_ids = run.outputs["track_ids"].tolist(), frame["active.track_ids"].tolist()
    both = [track for track in expected_ids if track in ids]
    assert len(both) >= len(expected_ids) - doubtful.sum()
    rows, expected_rows = [ids.index(track) for track in both], [expected_ids.index(track) for track in both]
    for name, row in (("boxes_3d", "tracker.pred_boxes"), ("scores_3d", "tracker.scores")):
        error = max_error(run.outputs[name][rows], frame[f"active.{name}"][expected_rows])
        assert error <= allowed(row, 0, TRACK), f"{name}: {error:.2e}"
    error = max_error(run.outputs["traj"][[*rows, -1]], frame["out.traj"][[*expected_rows, -1]])
    assert error <= allowed("out.traj", 0, TRACK), f"traj: {error:.2e}"

    maps = {"map_drivable": "seg.res.drivable", "map_lane": "seg.res.lane", "occ_seg": "occ.seg_out",
            "occ_ins": "occ.ins_seg_out"}  # fmt: skip
    for name, key in maps.items():
        flips = difference(matching(frame, key, run.outputs[name]), expected_of(frame, key))
        floor, size = noise()[f"{key}@sample", index]
        assert flips <= 4 * floor + size / 100, f"{name}: {flips:.0f} of {size:.0f} differ"


def test_peak_memory():
    """Weights, both frames, what the tests keep of them, and torch itself; measured 3.2 GB."""
    own_runs()
    assert peak_memory() < PEAK_GB
