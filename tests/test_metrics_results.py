"""metrics/results.py: RESULT folders as the metrics read them."""

import json

import numpy as np
import pytest
from truth_support import perfect_results, real_truth

from errors import UniADError
from metrics.planning import evaluate_planning
from metrics.results import Shown, number, ratio, read_results
from runtime.results import KIND, frame_path, write_json, write_record


@pytest.fixture
def folder(tmp_path):
    truth = real_truth("clip")
    for order, (token, record) in enumerate(perfect_results(truth).records.items()):
        write_record(frame_path(tmp_path, order, token), record)
    write_json(tmp_path / "run.json", {"kind": KIND, "convention": "v1.0.1"})
    return tmp_path


def test_a_folder_is_as_good_as_its_records(folder):
    truth = real_truth("clip")
    results = read_results(folder)
    assert list(results.records) == truth.tokens and results.convention == "v1.0.1"
    assert evaluate_planning(results, truth) == evaluate_planning(perfect_results(truth), truth)
    record = results.records[truth.tokens[0]]
    assert "occ_ins" in record and "map_lane" not in record and len(record) == len(list(record)) == 14


def test_damaged_folders(folder):
    truth = real_truth("clip")
    path = frame_path(folder, 2, truth.tokens[2])
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.raises(UniADError, match=r"000002_.*npz: not a readable frame file"):
        evaluate_planning(read_results(folder), truth)
    with np.load(frame_path(folder, 0, truth.tokens[0])) as file:
        record = dict(file)
    write_record(path, {**record, "sdc_traj": np.full((6, 2), np.nan, np.float32)})
    with pytest.raises(UniADError, match="sdc_traj holds NaN or infinity"):
        evaluate_planning(read_results(folder), truth)
    path.unlink()
    with pytest.raises(UniADError, match=r"lacks 1 of the 4 keyframes, .*--scenes"):
        evaluate_planning(read_results(folder), truth)
    (folder / "run.json").write_text(json.dumps({"convention": "v3"}))
    with pytest.raises(UniADError, match=r"run.json: convention 'v3' is none of v1.0.1, v2.0"):
        read_results(folder)


def test_numbers():
    assert number(np.float32(0.5)) == 0.5 and number(np.nan) is None and number(np.inf) is None
    assert ratio(1, 4) == 0.25 and ratio(0, 0) is None
    assert list(Shown(["a", "b"], "test")) == ["a", "b"] == Shown(["a", "b"], "test")
