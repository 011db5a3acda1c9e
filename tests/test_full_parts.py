"""Each part of the full-size model with recorded inputs: tight where our own run is chaotic (see test_full.py).

The recorded reference points, tracks and goals are put in wherever the network feeds back its own, and the BEV is that
of our own run, which test_full.py judges.
"""

import numpy as np
import pytest
from full_support import (
    CONFIG,
    TRACK_STATE,
    Arrays,
    difference,
    expected_of,
    full_model,
    matching,
    own_runs,
    recorded,
)
from network_support import const, torch_network, value
from test_model import empty_state

from trtllm import Module, Tensor
from trtllm import functional as F
from trtllm import vision as V

pytestmark = pytest.mark.full

STEADY = 1e-4  # x the largest value: a part with recorded inputs and our BEV; measured at most 2.4e-5
FLIPS = 3  # of some 3000 integers that a threshold decides; measured 0
FRAMES = pytest.mark.parametrize("index", [0, 1])


def steady(index: int, key: str, array: np.ndarray) -> bool:
    """Whether a tensor of a part that was fed with recorded inputs is the recorded one."""
    expected = expected_of(recorded(index), key)
    error = difference(matching(recorded(index), key, array), expected)
    return error <= (FLIPS if expected.dtype.kind in "bi" else STEADY * np.abs(expected).max())


def assert_steady(index: int, arrays: dict[str, np.ndarray]) -> None:
    bad = [key for key, array in arrays.items() if not steady(index, key, array)]
    assert not bad, f"frame {index}: {', '.join(bad)} differ from the recording"


def bev(index: int) -> np.ndarray:
    """Our BEV of the frame, (B,D)."""
    return own_runs()[index].samples.whole["bev.out"]


# ---- tracks -----------------------------------------------------------------------------------------------------


def decode(bev_embed: np.ndarray, query: np.ndarray, ref_pts: np.ndarray, references: np.ndarray) -> Arrays:
    """Every layer of the track decoder from the reference points (layers,N,3) that were recorded before it."""
    head, layers = full_model().pts_bbox_head, []
    with torch_network():
        pos, x = F.chunk(const(query), 2, 1)
        empty, memory, reference = const(np.zeros(len(query), bool)), const(bev_embed), F.sigmoid(const(ref_pts))
        for index, layer in enumerate(head.transformer.decoder.layers):
            x = layer(x, pos, memory, F.narrow(reference, 1, 0, 2), empty)
            code = head.reg_branches[index](x)
            step = F.concat([F.narrow(code, 1, 0, 2), F.narrow(code, 1, 4, 1)], 1)
            refined = F.sigmoid(step + V.inverse_sigmoid(reference))
            past = F.view(head.past_traj_reg_branches[index](x), (len(query), -1, 2))
            layers.append(
                [value(t) for t in (x, refined, head.cls_branches[index](x), head._boxes(code, refined), past)]
            )
            reference = const(references[index])
    names = ("inter_states", "inter_references", "all_cls_scores", "all_bbox_preds", "all_past_traj_preds")
    return {f"track.{name}": np.stack(arrays) for name, arrays in zip(names, zip(*layers))}


def recorded_state() -> dict[str, Tensor]:
    """What frame 0 carried on in the original."""
    state, frame = empty_state(CONFIG), recorded(0)
    state["track_obj_idxes"].handle.fill_(-1)
    for name in TRACK_STATE:
        carried = frame[f"carried.{name}"]
        state[f"track_{name}"].handle.numpy()[: len(carried)] = carried
    state["max_obj_id"].handle.fill_(int(frame["tracker.max_obj_id"]))
    return state


def track(state: dict[str, Tensor]) -> Arrays:
    """Taps of the tracking part of frame 1."""
    with torch_network() as network:
        full_model()._track(own_runs()[1].inputs, state, const(bev(1)))
        return {name: value(tensor) for name, tensor in network.taps.items()}


@FRAMES
def test_decoder_layers(index):
    frame = recorded(index)
    query = full_model().query_embedding.weight.array if index == 0 else track(recorded_state())["track.in_query"]
    references, ref_pts = frame["track.inter_references"][:, 0], frame["track.in_ref_pts"]
    query = query[: len(ref_pts)]
    assert_steady(index, decode(bev(index), query, ref_pts, references))
    half_a_cell = decode(bev(index), query, ref_pts, references + np.float32(0.5 / CONFIG.bev_w))
    assert not steady(index, "track.inter_states", half_a_cell["track.inter_states"])


def test_tracks_from_the_recorded_state():
    """Frame 1 from what the original carried: before the decoder every number, after it every decision."""
    taps, state = track(recorded_state()), recorded_state()
    before = ("velo.out", "track.in_query", "track.in_ref_pts", "tracker.before.obj_idxes",
              "tracker.before.disappear_time", "membank.in.mem_bank", "membank.in.mem_padding_mask",
              "membank.in.save_period")  # fmt: skip
    assert_steady(1, {key: taps[key] for key in before})
    decided = ("tracker.obj_idxes", "tracker.disappear_time", "active.track_ids", "active.labels_3d",
               "membank.out.mem_padding_mask", "carried.obj_idxes", "carried.disappear_time")  # fmt: skip
    for key in decided:
        np.testing.assert_array_equal(matching(recorded(1), key, taps[key]), expected_of(recorded(1), key), key)
    state["track_pred_boxes"].handle[:, 8:] *= -1
    assert not steady(1, "velo.out", track(state)["velo.out"])  # the tracks driven backwards


@FRAMES
def test_memory_bank_and_query_interaction(index):
    frame, model = recorded(index), full_model()
    stored = {
        name: frame[f"membank.in.{name}"] for name in ("output_embedding", "scores", "mem_bank", "mem_padding_mask")
    }
    period = frame["membank.in.save_period"].astype(np.int32)

    def run(period: np.ndarray) -> Arrays:
        with torch_network():
            embedding, mem_bank, mask, _ = model.memory_bank(*map(const, (*stored.values(), period)))
            kept = const(np.zeros(len(period), bool))
            query = model.query_interact(const(frame["membank.in.query"]), embedding, kept)
            return {"membank.out.output_embedding": value(embedding), "membank.out.mem_bank": value(mem_bank),
                    "membank.out.mem_padding_mask": value(mask), "carried.query": value(query)}  # fmt: skip

    assert_steady(index, run(period))
    never = run(np.full_like(period, 2))
    assert not steady(index, "membank.out.mem_bank", never["membank.out.mem_bank"])


# ---- map --------------------------------------------------------------------------------------------------------


def seg(index: int, beside: float = 0.0) -> tuple[Arrays, np.ndarray]:
    """Recorded keys of the map head with the recorded boxes between its decoder's layers, and the lane queries."""
    head, frame, coords = full_model().seg_head, recorded(index), []
    with torch_network() as network:
        pos, x = F.chunk(head.query_embedding.weight.value, 2, 1)
        memory = const(own_runs()[index].samples.whole["seg.memory"])
        reference = F.sigmoid(head.transformer.reference_points(pos))
        for layer, (block, branch) in enumerate(zip(head.transformer.decoder.layers, head.reg_branches)):
            x = block(x, pos, memory, reference)
            logits = V.inverse_sigmoid(reference)
            coords.append(value(F.sigmoid(branch(x) + F.pad(logits, (0, 4 - logits.shape[1])))))
            reference = const(frame["seg.outputs_coords"][layer, 0] + np.float32(beside))
        outputs = {name: value(tensor) for name, tensor in head.map_outputs(memory, x).items()}
        taps = {name: value(tensor) for name, tensor in network.taps.items() if name.startswith("seg.")}
    names = {"seg.res.drivable": "map_drivable", "seg.res.lane": "map_lane", "seg.res.lane_score": "map_lane_score"}
    keys = ("seg.things.mask", *(f"seg.things.query{i}" for i in range(4)), "seg.res.score_list", "seg.res.labels")
    arrays = {"seg.outputs_coords": np.stack(coords), "seg.query": value(x)}
    return arrays | {key: taps[key] for key in keys} | {key: outputs[name] for key, name in names.items()}, value(x)


@FRAMES
def test_map(index):
    assert_steady(index, seg(index)[0])
    assert not steady(index, "seg.query", seg(index, beside=0.5 / CONFIG.bev_w)[0]["seg.query"])


# ---- motion, occupancy, plan ------------------------------------------------------------------------------------


class RecordedMoves:
    """A trajectory branch whose answer ends where the recorded one does; `own` keeps what it said itself."""

    def __init__(self, branch: Module, path: np.ndarray):
        self.branch, self.path = branch, path

    def __call__(self, x: Tensor) -> Tensor:
        raw = value(self.branch(x))
        steps = raw.reshape(*self.path.shape[:3], 5).copy()
        self.own = np.cumsum(steps[..., :2], 2)
        steps[..., :2] = np.diff(self.path, axis=2, prepend=0)
        return const(steps.reshape(raw.shape))


def motion(monkeypatch, index: int, hidden: int | None = None) -> tuple[Arrays, dict[str, np.ndarray]]:
    """Recorded keys of the motion head, and its outputs by field; agent `hidden` is not to be seen by the others."""
    head, frame = full_model().motion_head, recorded(index)
    paths = frame["motion.former.inter_references"][:, 0]  # (layers,N,modes,steps,2)
    branches = [RecordedMoves(branch, path) for branch, path in zip(head.traj_reg_branches, paths)]
    queries, boxes, labels = frame["motion.in.track_query"][0, 0], frame["motion.in.boxes"], frame["motion.in.labels"]
    valid = np.arange(len(labels) - 1) != hidden
    lane_query = seg(index)[1]
    with monkeypatch.context() as patch, torch_network() as network:
        patch.setattr(head, "traj_reg_branches", branches)
        lane_pos, _ = F.chunk(full_model().seg_head.query_embedding.weight.value, 2, 1)
        # The ego's label chooses its anchors; motion.in.labels has already been overwritten for the vehicle filter.
        tracks = map(const, (queries[:-1], boxes[:-1], labels[:-1], valid))
        ego = map(const, (queries[-1:], boxes[-1:], frame["sdc.labels"]))
        out = head(*tracks, *ego, const(bev(index)), const(lane_query), lane_pos)
        arrays = {name: value(tensor) for name, tensor in network.taps.items() if name in frame}
    arrays["motion.former.inter_references"] = np.stack([branch.own for branch in branches])
    return arrays, {name: value(tensor) for name, tensor in out._asdict().items()}


@FRAMES
def test_motion(monkeypatch, index):
    frame = recorded(index)
    arrays, out = motion(monkeypatch, index)
    layers = [
        f"motion.layer{i}.{name}" for i in range(CONFIG.motion_num_layers) for name in ("track_agent", "map", "bev")
    ]
    assert set(layers) <= set(arrays)
    assert_steady(index, arrays | {"out.traj": out["traj"], "out.traj_scores": out["traj_scores"]})
    vehicles = out["is_vehicle"]
    for name in ("track_query", "track_query_pos"):
        assert_steady(index, {f"motion.out.{name}": out[name][:-1][vehicles]})
    sdc = frame["motion.out.sdc_traj_query"][-1, 0]
    assert difference(out["sdc_traj_query"], sdc) <= STEADY * np.abs(sdc).max()
    key = "motion.layer0.track_agent"
    assert not steady(index, key, motion(monkeypatch, index, hidden=0)[0][key])


@FRAMES
def test_occupancy(monkeypatch, index):
    """In frame 0 one pixel's attention mask hangs on 1e-5: only what is decided is compared there."""
    frame = recorded(index)
    if index == 0:
        out = motion(monkeypatch, index)[1]
        traj_query = out["traj_query"][:-1][out["is_vehicle"]]  # (A,modes,D)
    else:
        traj_query = frame["motion.out.traj_query"][-1, 0]
    queries = (traj_query, frame["motion.out.track_query"][0], frame["motion.out.track_query_pos"][0])
    scores, size = frame["motion.out.track_scores"][0], CONFIG.occ_size

    def run(vehicle: np.ndarray) -> Arrays:
        with torch_network() as network:
            occ_seg, occ_ins = full_model().occ_head(*map(const, (bev(index), *queries, scores, vehicle)))
            taps = {key: value(network.taps[key]) for key in ("occ.ins_query", "occ.future_states_in")}
            logits = value(network.taps["occ.ins_occ_logits"])  # (5,A,OO)
        taps["occ.ins_occ_logits"] = logits.reshape(*logits.shape[:2], size, size).transpose(1, 0, 2, 3)
        if index == 0:
            taps = {"occ.ins_query": taps["occ.ins_query"]}
        return taps | {"occ.seg_out": value(occ_seg), "occ.ins_seg_out": value(occ_ins)}

    everyone = np.ones(len(scores), bool)
    assert_steady(index, run(everyone))
    assert not steady(index, "occ.ins_seg_out", run(everyone & (np.arange(len(scores)) > 0))["occ.ins_seg_out"])


@FRAMES
def test_plan(index):
    frame, model = recorded(index), full_model()

    def run(command: int) -> Arrays:
        queries = (frame["motion.out.sdc_traj_query"][-1, 0], frame["motion.out.sdc_track_query"])
        with torch_network() as network:
            bev_pos = model.pts_bbox_head.positional_encoding()
            plan = model.planning_head(const(bev(index)), bev_pos, *map(const, queries), const(np.array([command])))
            taps = {key: value(network.taps[key]) for key in ("plan.query_in", "plan.query_out")}
            return taps | {"plan.sdc_traj_before_optim": value(plan)}

    command = int(frame["in.command"])
    assert_steady(index, run(command))
    assert not steady(index, "plan.sdc_traj_before_optim", run((command + 1) % 3)["plan.sdc_traj_before_optim"])
