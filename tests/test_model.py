"""The whole frame on the torch executor: the recorded tiny sequence, with the state that our own graph carries."""

import numpy as np
import pytest
import torch
from graph_io import TASKS, input_specs, num_active, output_specs, state_specs
from network_support import tiny_weights, torch_network
from support import assert_close, golden, max_error, shared_path, tolerance

from config import UniADConfig, load_config
from data.frames import Frame
from model import UniAD
from runtime.sequence import Sequence
from trtllm import Tensor

# Two float32 implementations of one formula differ as two runs of the original do; errors add up over frames.
FACTOR = 4
# Recorded tensors that our graph computes in the same arrangement: tap -> recorded key.
SAME = {
    "backbone.C3": "backbone.C3",
    "backbone.C4": "backbone.C4",
    "backbone.C5": "backbone.C5",
    **{f"fpn.{i}": f"fpn.{i}" for i in range(4)},
    **{f"bev.layer{i}": f"bev.layer{i}" for i in range(3)},
    "bev.query_plus_canbus": "bev.query_plus_canbus",
    "bev.out": "bev.out",
    "seg.memory": "seg.memory",
    "seg.query": "seg.query",
    "seg.query_pos": "seg.query_pos",
    "plan.query_in": "plan.query_in",
    "plan.bev_feat": "plan.bev_feat",
    "plan.query_out": "plan.query_out",
    "plan.sdc_traj_before_optim": "plan.sdc_traj_before_optim",
    "occ.bev_sampled": "occ.bev_sampled",
    "occ.base_state": "occ.base_state",
    "occ.future_states_in": "occ.future_states_in",
}
# Per query, in the original's order of rows: 901 fresh, then the carried tracks; here the used slots come first.
PER_QUERY = ["track.in_query", "track.in_ref_pts", "tracker.scores", "tracker.pred_boxes", "tracker.ref_pts"]
ACTIVE = ["boxes_3d", "scores_3d", "labels_3d", "track_scores", "track_ids"]
CARRIED = ["query", "ref_pts", "pred_boxes", "mem_bank"]
CARRIED_EXACT = ["obj_idxes", "disappear_time", "mem_padding_mask", "save_period"]


def as_tensor(array: np.ndarray) -> Tensor:
    array = np.ascontiguousarray(array)
    return Tensor(torch.from_numpy(array), str(array.dtype), array.shape)


def empty_state(config: UniADConfig, dtype: str = "float32") -> dict[str, Tensor]:
    return {s.name: as_tensor(np.zeros(s.shape, s.dtype)) for s in state_specs(config, dtype)}


def recorded_frame(recorded: dict[str, np.ndarray], sample_token: str) -> Frame:
    return Frame(
        img=recorded["in.img_u8"],
        can_bus=recorded["in.can_bus_raw"],
        lidar2img=recorded["in.lidar2img"],
        l2g_r_mat=recorded["in.l2g_r_mat"],
        l2g_t=recorded["in.l2g_t"],
        timestamp=float(recorded["in.timestamp"]),
        command=int(recorded["in.command"]),
        scene_token=str(recorded["in.scene_token"]),
        sample_token=sample_token,
    )


class Run:
    """The tiny model over recorded frames, one after another; keywords change its configuration."""

    def __init__(self, manifest="tiny/tiny_manifest.tsv", tasks=TASKS, max_tracks=96, **changes):
        self.config = load_config("tiny_e2e").replace(max_tracks=max_tracks, **changes)
        anchors = np.load(shared_path("golden", "motion_anchors_standin.npy")).astype(np.float32)
        self.model = UniAD(self.config, tasks)
        self.model.load({**tiny_weights("", manifest), "motion_head.kmeans_anchors": anchors})
        self.sequence = Sequence(self.config, "v2.0")
        self.state = empty_state(self.config)

    def frame(self, recorded: dict[str, np.ndarray], index: int, **changed: np.ndarray):
        """Outputs, state and taps of the next frame; `changed` replaces engine inputs."""
        inputs = {**self.sequence.inputs(recorded_frame(recorded, str(index))), **changed}
        with torch_network() as network:
            outputs, self.state = self.model({name: as_tensor(a) for name, a in inputs.items()}, self.state)
            taps = {name: t.handle.numpy() for name, t in network.taps.items()}
        return *({n: t.handle.numpy() for n, t in d.items()} for d in (outputs, self.state)), taps


def check_intermediates(recorded, taps):
    for name, key in SAME.items():
        if key in recorded:
            expected = recorded[key]
            assert_close(taps[name].reshape(expected.shape), expected, tolerance(key, FACTOR), key)
    for key in PER_QUERY:
        if key in recorded:
            assert_close(taps[key][: len(recorded[key])], recorded[key], tolerance(key, FACTOR), key)
    np.testing.assert_array_equal(taps["tracker.obj_idxes"][: len(recorded["tracker.obj_idxes"])],
                                  recorded["tracker.obj_idxes"])  # fmt: skip


def check_tracks(recorded, outputs, state):
    count = len(recorded["active.track_ids"])
    assert (outputs["track_ids"][count:] == -1).all()
    for name in ACTIVE:
        expected = recorded[f"active.{name}"]
        atol = 0 if expected.dtype.kind == "i" else tolerance(f"active.{name}", FACTOR)
        assert_close(outputs[name][:count], expected, atol, name)
    carried = int(recorded["qim.num_carried"])
    assert (state["track_obj_idxes"] >= 0).sum() == carried
    for name in CARRIED:
        key = f"carried.{name}"
        assert_close(state[f"track_{name}"][:carried], recorded[key], tolerance(key, FACTOR), key)
    for name in CARRIED_EXACT:
        assert_close(state[f"track_{name}"][:carried], recorded[f"carried.{name}"], 0, f"carried.{name}")
    assert state["max_obj_id"][0] == recorded["tracker.max_obj_id"]
    # The list of detections has near-ties, which may swap places: compared as a set.
    inside = outputs["det_mask"] == 1
    assert inside.sum() == len(recorded["result.scores_3d_det"])
    atol = tolerance("result.scores_3d_det", FACTOR)
    assert_close(np.sort(outputs["scores_3d_det"][inside]), np.sort(recorded["result.scores_3d_det"]), atol, "scores")


def check_tasks(recorded, outputs, decoded=True):
    """`decoded`: the recording has the trajectories as the original returns them, else of all layers."""
    count = len(recorded["active.track_ids"])
    for name in ("traj", "traj_scores"):
        rows = np.concatenate([outputs[name][:count], outputs[name][-1:]])
        layers = {"traj": "motion.all_traj_preds", "traj_scores": "motion.all_traj_scores"}[name]
        expected = recorded[f"result.{name}"] if decoded else recorded[layers][-1, 0]
        assert_close(rows, expected, tolerance(f"result.{name}", FACTOR), name)
    if "occ.seg_out" in recorded:
        np.testing.assert_array_equal(outputs["occ_seg"], recorded["occ.seg_out"][0, :, 0])
    if "occ.ins_seg_out" in recorded:
        # Two instances of frame 4 score 0.706871 and 0.706869 in one cell; the floor of these scores is 1.7e-4.
        assert (outputs["occ_ins"] != recorded["occ.ins_seg_out"][0]).sum() <= 1
    if "occ.seg_out" not in recorded:  # the original skips the head where there is no vehicle
        assert not outputs["occ_seg"].any() and not outputs["occ_ins"].any()
    if "seg.res.drivable" in recorded:
        np.testing.assert_array_equal(outputs["map_drivable"], recorded["seg.res.drivable"])
        np.testing.assert_array_equal(outputs["map_lane"], recorded["seg.res.lane"])
        score = "seg.res.lane_score"
        assert_close(outputs["map_lane_score"], recorded[score], tolerance(score, FACTOR), score)
    key = "plan.sdc_traj_before_optim"
    assert_close(outputs["sdc_traj_raw"], recorded[key][0], tolerance(key, FACTOR), key)


def test_recorded_sequence():
    """Frames 0-7 as one sequence: two scenes, ids that go on, tracks that fall asleep and die."""
    run = Run()
    for index in range(8):
        recorded = golden("tiny", f"frame_{index}.npz")
        outputs, state, taps = run.frame(recorded, index)
        check_intermediates(recorded, taps)
        check_tracks(recorded, outputs, state)
        check_tasks(recorded, outputs)
        for spec in output_specs(run.config):
            assert (outputs[spec.name].dtype, outputs[spec.name].shape) == (spec.dtype, spec.shape), spec.name
        for spec in state_specs(run.config, "float32"):
            assert (state[spec.name].dtype, state[spec.name].shape) == (spec.dtype, spec.shape), spec.name


def test_panseg_with_one_level():
    run = Run("tiny_segL1/manifest.tsv", seg_num_levels=1)
    for index in range(2):
        recorded = golden("tiny_segL1", f"frame_{index}.npz")
        inputs = golden("tiny", f"frame_{index}.npz")
        outputs, state, _ = run.frame({**inputs, **recorded}, index)
        check_tracks({**inputs, **recorded}, outputs, state)  # the tracks do not depend on the map
        check_tasks(recorded, outputs, decoded=False)


@pytest.mark.parametrize("broken", [{"shift": np.zeros(2, np.float32)}, {"has_prev": np.zeros(1, np.int32)}])
def test_broken_inputs_are_seen(broken):
    """The checks above can fail: the second frame without its ego motion, or without its history."""
    run = Run()
    run.frame(golden("tiny", "frame_0.npz"), 0)
    recorded = golden("tiny", "frame_1.npz")
    _, _, taps = run.frame(recorded, 1, **broken)
    with pytest.raises(AssertionError):
        check_intermediates(recorded, taps)


def test_track_slots_overflow():
    """Six slots for twelve tracks: the best six stay, the others are counted, the next frame goes on."""
    run = Run(max_tracks=6)
    recorded = golden("tiny", "frame_0.npz")
    outputs, state, _ = run.frame(recorded, 0)
    assert num_active(run.config) == 6
    assert outputs["num_dropped"][0] == len(recorded["carried.obj_idxes"]) - 6
    best = np.argsort(-recorded["carried.scores"])[:6]
    np.testing.assert_array_equal(state["track_obj_idxes"], np.sort(recorded["carried.obj_idxes"][best]))
    assert state["max_obj_id"][0] == recorded["tracker.max_obj_id"]
    outputs, _, _ = run.frame(golden("tiny", "frame_1.npz"), 1)
    assert all(np.isfinite(outputs[s.name]).all() for s in output_specs(run.config))
    assert max_error(outputs["boxes_3d"][0], 0) > 0


def test_slots_that_stay_empty_change_nothing():
    small, large = Run(max_tracks=40), Run(max_tracks=96)
    for index in range(2):
        recorded = golden("tiny", f"frame_{index}.npz")
        few, many = small.frame(recorded, index)[0], large.frame(recorded, index)[0]
        np.testing.assert_array_equal(few["track_ids"], many["track_ids"][:40])
        for name in ("boxes_3d", "scores_3d"):
            assert_close(few[name], many[name][:40], tolerance(f"active.{name}", FACTOR), name)
        assert_close(few["sdc_traj_raw"], many["sdc_traj_raw"], tolerance("plan.sdc_traj_before_optim", FACTOR), "plan")


def test_no_active_track():
    """A threshold that nothing reaches: no track, empty occupancy, and still a plan and the ego's trajectory."""
    run = Run(score_thresh=2.0)
    for index in range(2):
        outputs, state, _ = run.frame(golden("tiny", f"frame_{index}.npz"), index)
        assert (outputs["track_ids"] == -1).all() and (state["track_obj_idxes"] == -1).all()
        assert not outputs["occ_seg"].any() and not outputs["occ_ins"].any()
        assert all(np.isfinite(outputs[s.name]).all() for s in output_specs(run.config))
    key = "plan.sdc_traj_before_optim"  # the plan does see the other tracks, through the motion head
    assert max_error(outputs["sdc_traj_raw"], golden("tiny", "frame_1.npz")[key][0]) > tolerance(key, FACTOR)


def test_tasks_prune_the_graph():
    """Leaving out outputs leaves the others as they are."""
    recorded = golden("tiny", "frame_0.npz")
    whole = Run()
    expected, _, _ = whole.frame(recorded, 0)
    run = Run(tasks=["track", "plan"])
    outputs, _, taps = run.frame(recorded, 0)
    assert {s.task for s in output_specs(run.config) if s.name in outputs} == {"track", "plan"}
    assert "occ.ins_query" not in taps and "seg.things.mask" not in taps
    for name, array in outputs.items():
        np.testing.assert_array_equal(array, expected[name], name)


def test_input_specs_are_what_the_sequence_gives():
    recorded = golden("tiny", "frame_0.npz")
    inputs = Sequence(load_config("tiny_e2e"), "v2.0").inputs(recorded_frame(recorded, "0"))
    specs = input_specs(load_config("tiny_e2e"))
    assert {s.name: (s.dtype, s.shape) for s in specs} == {n: (str(a.dtype), a.shape) for n, a in inputs.items()}
