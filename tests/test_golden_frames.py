"""The comparison that the GPU check of the session uses: it passes the torch executor, and sees what is broken."""

import sys

import numpy as np
import pytest
from support import ROOT

sys.path.append(str(ROOT / "tests" / "gpu"))

import golden_frames

from runtime.sequence import Sequence
from runtime.session import open_session
from runtime.torch_plan import write_torch_plan

FRAMES = 3  # tracks die and are born between them


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Recording, outputs and carried state of each frame, by the torch executor in float32."""
    path = tmp_path_factory.mktemp("plan") / "engine.plan"
    c_model = golden_frames.recipe_c_model(golden_frames.TINY)
    write_torch_plan(c_model, c_model.config, "float32", path)
    session, sequence = open_session(path), Sequence(c_model.config, c_model.convention)
    rows = []
    for index, frame in enumerate(golden_frames.frames(golden_frames.TINY, FRAMES)):
        outputs = session.infer(sequence.inputs(frame))
        recorded = golden_frames.read_recording(golden_frames.GOLDEN / "tiny" / f"frame_{index}.npz")
        rows.append((recorded, outputs, session.carried_state()))
    return c_model.config, rows


def compare(results, exact, change=lambda index, outputs, state: None):
    """Largest error and all complaints over the frames, after a change."""
    config, rows = results
    comparison, worst, wrong = golden_frames.Comparison(config, exact), 0.0, []
    for index, (recorded, outputs, state) in enumerate(rows):
        outputs, state = ({name: array.copy() for name, array in group.items()} for group in (outputs, state))
        change(index, outputs, state)
        errors, complaints = comparison.frame(recorded, outputs, state)
        assert {"boxes_3d", "traj", "sdc_traj_raw", "track_query"} <= errors.keys()
        worst, wrong = max(worst, *errors.values()), wrong + complaints
    return worst, wrong


@pytest.mark.parametrize("exact", [True, False])
def test_what_is_right_passes(results, exact):
    worst, wrong = compare(results, exact)
    assert worst < 1e-3 and not wrong


def swap_ids(index, outputs, state):
    """Of two tracks that lived in the frame before."""
    if index == 1:
        ids = outputs["track_ids"]
        ids[np.isin(ids, (0, 2))] = ids[np.isin(ids, (0, 2))][::-1].copy()


def other_numbering(index, outputs, state):
    """All ids three higher: nothing that float16 may not do."""
    for ids in (outputs["track_ids"], state["track_obj_idxes"]):
        ids[ids >= 0] += 3


def lose_tracks(index, outputs, state):
    outputs["track_ids"][3:] = -1


def age(index, outputs, state):
    state["track_disappear_time"][state["track_obj_idxes"] >= 0] += 1


def forget_tracks(index, outputs, state):
    state["track_obj_idxes"][4:] = -1


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("change", [swap_ids, lose_tracks, age, forget_tracks])
def test_broken_tracking_is_seen(results, exact, change):
    assert compare(results, exact, change)[1]


@pytest.mark.parametrize("exact", [True, False])
def test_no_track_at_all_is_seen(results, exact):
    """As of an engine that computes NaN: no crash."""
    config, ((recorded, outputs, state), *_) = results
    nothing = np.full_like(outputs["track_ids"], -1)
    _, wrong = golden_frames.Comparison(config, exact).frame(recorded, {**outputs, "track_ids": nothing}, state)
    assert wrong


def test_ids_count_in_float32_only(results):
    assert compare(results, True, other_numbering)[1]
    assert not compare(results, False, other_numbering)[1]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name", ["boxes_3d", "traj", "sdc_traj_raw", "map_lane", "occ_seg", "scores_3d_det"])
def test_wrong_numbers_are_seen(results, exact, name):
    def change(index, outputs, state):
        array = outputs[name]
        array += array.dtype.type(1) if array.dtype.kind == "i" else np.float32(0.3)

    assert compare(results, exact, change)[0] > (1e-3 if exact else 0.02)


def test_nan_is_seen(results):
    def change(index, outputs, state):
        outputs["sdc_traj_raw"][2, 0] = np.nan

    config, rows = results
    for exact in (True, False):
        recorded, outputs, state = rows[0]
        spoilt = {name: array.copy() for name, array in outputs.items()}
        change(0, spoilt, state)
        errors, _ = golden_frames.Comparison(config, exact).frame(recorded, spoilt, state)
        assert not errors["sdc_traj_raw"] <= 1e9
