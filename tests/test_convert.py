"""pytorch_convert.py: what it accepts, what it writes, and how it refuses everything else."""

import configparser
import csv
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import pytorch_convert
import torch
from support import SCRIPTS, shared_path

from checkpoint import compare_keys, detect_convention, fit_config, load_anchors, load_checkpoint
from config import load_config
from data.recipe import recipe_anchors, recipe_state
from errors import UniADError, one_line_errors
from files import sha256_of
from weight import ANCHORS_KEY, key_shapes, load_c_model

TINY = load_config("tiny_e2e")
V2 = {"mmdet_version": "2.26.0", "mmdet3d_version": "1.0.0rc6"}


@pytest.fixture(scope="module")
def state():
    """The recipe's tiny checkpoint; tests copy the dict and never write into its tensors."""
    return {key: torch.from_numpy(array) for key, array in recipe_state(TINY)}


@pytest.fixture(scope="module")
def files(state, tmp_path_factory):
    """A folder with tiny.pth and anchors.npy."""
    folder = tmp_path_factory.mktemp("given")
    torch.save({"meta": V2, "state_dict": state}, folder / "tiny.pth")
    np.save(folder / "anchors.npy", recipe_anchors(TINY))
    return folder


def convert(*arguments) -> None:
    """Run the script's main in this process."""
    argv = sys.argv
    sys.argv = ["pytorch_convert.py", *map(str, arguments)]
    try:
        with one_line_errors():
            pytorch_convert.main()
    finally:
        sys.argv = argv


def fails(capsys, out: pathlib.Path, *arguments) -> str:
    """The single line on stderr of a run that must fail with status 2 and leave nothing of `out` behind."""
    with pytest.raises(SystemExit) as stop:
        convert("-o", out, *arguments)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert not out.exists() and not leftovers(out)
    return lines[0]


def leftovers(out: pathlib.Path) -> list[pathlib.Path]:
    return list(out.parent.glob(f".{out.name}.tmp-*"))


def run_script(*arguments, cwd) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPTS / "pytorch_convert.py", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


class Opens:
    """Unpickling this creates a file, where the unpickler lets it."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


# --- what it writes ---------------------------------------------------------------------------------------------------


def test_round_trip(files, state, tmp_path, capsys):
    out = tmp_path / "c_model"
    convert("-i", files / "tiny.pth", "-o", out, "--anchors", files / "anchors.npy", "-p", 2)
    printed = capsys.readouterr().out
    assert "tiny_e2e" in printed and "v2.0" in printed
    model = load_c_model(out)
    assert model.config == TINY and model.convention == "v2.0"
    assert model.source["checkpoint_sha256"] == sha256_of(files / "tiny.pth")
    assert model.source["mmdet_version"] == "2.26.0"
    stored = {key for key in state if not key.endswith("num_batches_tracked")}
    assert set(model.tensors) == stored | {ANCHORS_KEY}
    for key in stored:
        np.testing.assert_array_equal(model.tensors[key], state[key].numpy(), strict=True)
    np.testing.assert_array_equal(model.tensors[ANCHORS_KEY], recipe_anchors(TINY))
    # The files are what docs/design.md says: raw, little-endian.
    key = "reference_points.weight"
    assert (out / f"{key}.bin").read_bytes() == state[key].numpy().astype("<f4").tobytes()
    ini = configparser.ConfigParser(interpolation=None)
    ini.optionxform = str
    ini.read(out / "config.ini")
    assert ini["c_model"]["seg_num_levels"] == "4" and ini["tensors"][key].startswith("float32 3x128 ")


def test_any_current_folder_and_replacing(files, tmp_path):
    """As a script from elsewhere, over an older c-model, with relative paths."""
    out = tmp_path / "c_model"
    convert("-i", files / "tiny.pth", "-o", out, "--anchors", files / "anchors.npy", "-t", "float16")
    given = os.path.relpath(files, tmp_path)
    run = run_script("-i", f"{given}/tiny.pth", "-o", "c_model", "--anchors", f"{given}/anchors.npy", cwd=tmp_path)
    assert run.returncode == 0 and run.stderr == ""
    assert load_c_model(out).tensors["reference_points.weight"].dtype == np.float32
    assert [path.name for path in tmp_path.iterdir()] == ["c_model"]


def test_float16_storage(files, state, tmp_path):
    out = tmp_path / "c_model"
    convert("-i", files / "tiny.pth", "-o", out, "--anchors", files / "anchors.npy", "-t", "float16")
    model = load_c_model(out)
    for key, array in model.tensors.items():
        expected = recipe_anchors(TINY) if key == ANCHORS_KEY else state[key].numpy()
        half = expected.ndim >= 2 and key != ANCHORS_KEY
        np.testing.assert_array_equal(array, expected.astype(np.float16 if half else np.float32), strict=True)


def test_float16_storage_refuses_what_it_cannot_hold(files, state, tmp_path, capsys):
    changed = {**state, "reference_points.weight": state["reference_points.weight"] + 1e5}
    torch.save(changed, tmp_path / "big.pth")
    line = fails(capsys, tmp_path / "out", "-i", tmp_path / "big.pth", "--anchors", files / "anchors.npy", "-tfloat16")
    assert "reference_points.weight exceeds float16's range" in line


# --- checkpoints it accepts -------------------------------------------------------------------------------------------


def test_bare_prefixed_legacy_and_cast(files, state, tmp_path, capsys):
    """A bare state_dict with `module.` keys, other float types, no counters, in the format of torch < 1.6."""
    changed = {f"module.{key}": value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    changed["module.reference_points.weight"] = state["reference_points.weight"].double()
    changed["module.query_embedding.weight"] = state["query_embedding.weight"].half()
    torch.save(changed, tmp_path / "bare.pth", _use_new_zipfile_serialization=False)
    convert("-i", tmp_path / "bare.pth", "-o", tmp_path / "out", "--anchors", files / "anchors.npy")
    assert "convention v1.0.1 assumed" in capsys.readouterr().out
    model = load_c_model(tmp_path / "out")
    assert model.convention == "v1.0.1"
    for key in ("reference_points.weight", "query_embedding.weight"):
        array = model.tensors[key]
        np.testing.assert_array_equal(array, changed[f"module.{key}"].float().numpy(), strict=True)


def test_meta_may_hold_numpy_scalars_and_containers(tmp_path):
    meta = {"epoch": np.int64(6), "best": np.float64(0.4), "flag": np.bool_(True), "hooks": {"a": [1, (2, "x")]}}
    torch.save({"meta": meta, "state_dict": {"a": torch.ones(2)}}, tmp_path / "a.pth")
    state, loaded = load_checkpoint(tmp_path / "a.pth")
    assert loaded == meta and list(state) == ["a"]


@pytest.mark.parametrize(
    "meta, convention",
    [
        ({"mmdet_version": "2.14.0", "mmdet3d_version": "0.17.1"}, "v1.0.1"),
        ({"mmdet3d_version": "0.17.1"}, "v1.0.1"),
        (V2, "v2.0"),
        ({"mmdet_version": "2.26.0"}, "v2.0"),
        ({}, None),
        ({"mmdet_version": "2.140.0"}, None),  # not 2.14
        ({"mmdet_version": "2.14.0", "mmdet3d_version": "1.0.0rc6"}, None),  # contradictory
        ({"mmdet_version": 5}, None),
    ],
)
def test_convention(meta, convention):
    assert detect_convention(meta) == convention


def test_seg_levels_are_read_off_the_checkpoint():
    config = TINY.replace(seg_num_levels=1)
    shapes = key_shapes(config)
    assert shapes != key_shapes(TINY)
    assert fit_config({key: torch.empty(shape) for key, shape in shapes.items()}) == config
    # Two levels are neither the original's four nor the repaired one.
    shapes = key_shapes(TINY.replace(seg_num_levels=2))
    with pytest.raises(UniADError, match=r"16 misshapen: .*attentions.0.attention_weights.weight \(64x128"):
        fit_config({key: torch.empty(shape) for key, shape in shapes.items()})


@pytest.mark.parametrize("name", ["base_e2e", "tiny_e2e"])
def test_configuration_is_decided_from_the_shapes(name):
    config = load_config(name)
    state = {key: torch.empty(shape, device="meta") for key, shape in key_shapes(config).items()}
    assert fit_config(state) == config


@pytest.mark.parametrize(
    "config, manifest",
    [
        (load_config("base_e2e"), ("base_e2e_manifest.tsv",)),
        (TINY, ("tiny", "tiny_manifest.tsv")),
        (TINY.replace(seg_num_levels=1), ("tiny_segL1", "manifest.tsv")),
    ],
)
def test_key_table_equals_the_recorded_state_dict(config, manifest):
    with open(shared_path("golden", *manifest), newline="") as file:
        rows = [(row["key"], row["shape"]) for row in csv.DictReader(file, delimiter="\t")]
    ours = {key: "x".join(map(str, shape)) or "scalar" for key, shape in key_shapes(config).items()}
    assert list(ours.items()) == rows


# --- checkpoints it refuses -------------------------------------------------------------------------------------------


def test_all_key_faults_in_one_error(files, state, tmp_path, capsys):
    changed = dict(state)
    del changed["reference_points.bias"], changed["occ_head.mode_fuser.0.weight"]
    del changed["img_backbone.bn1.num_batches_tracked"]  # a counter: not missed
    changed["reference_points.weight"] = state["reference_points.weight"].T
    changed["img_backbone.bn1.weight"] = torch.ones(16, dtype=torch.int64)
    changed["extra.weight"] = torch.ones(1)
    torch.save({"state_dict": changed}, tmp_path / "bad.pth")
    line = fails(capsys, tmp_path / "out", "-i", tmp_path / "bad.pth", "--anchors", files / "anchors.npy")
    assert "model tiny_e2e" in line
    assert "2 missing: reference_points.bias, occ_head.mode_fuser.0.weight;" in line
    assert "1 unexpected: extra.weight;" in line
    assert "reference_points.weight (128x3, not 3x128)" in line and "img_backbone.bn1.weight (int64" in line
    assert "2 misshapen" in line and "num_batches" not in line


def test_wrong_model_size(files, state, tmp_path, capsys):
    arguments = ("-i", files / "tiny.pth", "--anchors", files / "anchors.npy")
    line = fails(capsys, tmp_path / "out", *arguments, "--model", "base_e2e")
    assert "it fits --model tiny_e2e" in line and len(line) < 1500
    assert "no model configuration 'huge'" in fails(capsys, tmp_path / "out", *arguments, "--model", "huge")
    with pytest.raises(UniADError, match="does not fit any of base_e2e, tiny_e2e"):
        fit_config({"conv.weight": torch.ones(3)})
    assert not len(compare_keys(state, TINY))


def test_values_that_are_not_finite(files, state, tmp_path, capsys):
    changed = {key: value.clone() if key.startswith("reference_points") else value for key, value in state.items()}
    changed["reference_points.weight"][0, 0] = float("nan")
    changed["reference_points.bias"][0] = float("inf")
    torch.save(changed, tmp_path / "nan.pth")
    line = fails(capsys, tmp_path / "out", "-i", tmp_path / "nan.pth", "--anchors", files / "anchors.npy")
    assert "reference_points.weight has NaN" in line and "reference_points.bias has NaN" in line
    assert line.count("has NaN") == 2


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_hostile_checkpoint(form, tmp_path, capsys):
    created, path = tmp_path / "created", tmp_path / "hostile.pth"
    content = {"meta": {"x": Opens(created)}, "state_dict": {"a": torch.ones(1)}}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    line = fails(capsys, tmp_path / "out", "-i", path)
    assert "no code of it was run" in line and ".open" in line and not created.exists()
    if form == "zip":  # the trap works: an unrestricted load does create the file
        torch.load(path, weights_only=False)["meta"]["x"].close()
        assert created.exists()


def test_hostile_checkpoint_as_a_script(tmp_path):
    created, path = tmp_path / "created", tmp_path / "hostile.pth"
    torch.save({"state_dict": Opens(created)}, path)
    run = run_script("-i", path, "-o", tmp_path / "out", cwd=tmp_path)
    assert run.returncode == 2 and not created.exists()
    assert len(run.stderr.splitlines()) == 1 and "no code of it was run" in run.stderr


def test_not_a_checkpoint(files, tmp_path, capsys):
    whole = (files / "tiny.pth").read_bytes()
    contents = {"truncated": whole[: len(whole) // 2], "text": b"hello", "empty": b"", "cut": whole[:-100]}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        line = fails(capsys, tmp_path / "out", "-i", tmp_path / name)
        assert "not a PyTorch checkpoint, truncated" in line and "weights_only" not in line, name
    assert "no such checkpoint" in fails(capsys, tmp_path / "out", "-i", tmp_path / "absent.pth")
    for content in ([1, 2], {"state_dict": {"a": 1}}, {}, torch.ones(2)):
        torch.save(content, tmp_path / "other.pth")
        assert "holds no state_dict" in fails(capsys, tmp_path / "out", "-i", tmp_path / "other.pth")


# --- anchors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_anchor_pickle(protocol, tmp_path):
    anchors = recipe_anchors(TINY).astype(np.float64)
    content = {"anchors_all": list(anchors), "grouped_classes": [["car"], ["cyclist"]], "count": np.float64(4)}
    path = tmp_path / "anchors.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    np.testing.assert_array_equal(load_anchors(path, TINY), anchors.astype(np.float32), strict=True)
    if protocol == 2:  # numpy 2 writes the same under other names, which only this protocol has as plain lines
        path.write_bytes(path.read_bytes().replace(b"numpy.core", b"numpy._core"))
        np.testing.assert_array_equal(load_anchors(path, TINY), anchors.astype(np.float32), strict=True)


def test_anchors_refused(files, tmp_path, capsys):
    anchors = recipe_anchors(TINY)
    bad = {
        "shape.npy": (anchors[:3], "shape 3x6x12x2, but model tiny_e2e takes 4x6x12x2"),
        "nan.npy": (np.where(anchors > 1, np.nan, anchors), "not finite"),
        "object.npy": (np.array([{}] * 4), "not an anchors file"),
        "text.npy": (np.full(anchors.shape, "x"), "not arrays of numbers"),
        "other.pkl": ({"anchors": list(anchors)}, "not an anchors file"),
        "list.pkl": ([1, 2], "not an anchors file"),
        "ragged.pkl": ({"anchors_all": [anchors[0], anchors[1, :2]]}, "not an anchors file"),
        "objects.pkl": ({"anchors_all": [np.array([{}], object)] * 4}, "not arrays of numbers"),
    }
    for name, (content, expected) in bad.items():
        path = tmp_path / name
        if name.endswith(".npy"):
            np.save(path, content)
        else:
            path.write_bytes(pickle.dumps(content))
        with pytest.raises(UniADError, match=expected):
            load_anchors(path, TINY)
    (tmp_path / "cut.pkl").write_bytes(pickle.dumps({"anchors_all": list(anchors)})[:-400])
    with pytest.raises(UniADError, match="not an anchors file"):
        load_anchors(tmp_path / "cut.pkl", TINY)
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(1 << 25)
    with pytest.raises(UniADError, match="larger than 16 MB"):
        load_anchors(tmp_path / "huge", TINY)
    line = fails(capsys, tmp_path / "out", "-i", files / "tiny.pth")
    assert "give --anchors" in line and "motion_anchor_infos_mode6.pkl" in line
    assert "No such file" in fails(capsys, tmp_path / "out", "-i", files / "tiny.pth", "--anchors", tmp_path / "none")


def test_hostile_anchors(files, tmp_path):
    created, path = tmp_path / "created", tmp_path / "anchors.pkl"
    path.write_bytes(pickle.dumps({"anchors_all": [Opens(created)]}))
    run = run_script("-i", files / "tiny.pth", "-o", tmp_path / "out", "--anchors", path, cwd=tmp_path)
    assert run.returncode == 2 and not created.exists() and not (tmp_path / "out").exists()
    assert len(run.stderr.splitlines()) == 1 and ".open, which is no plain data" in run.stderr
    pickle.loads(path.read_bytes())["anchors_all"][0].close()
    assert created.exists()  # the trap works


@pytest.mark.parametrize(
    "name", ["numpy.load", "numpy.core.multiarray.fromfile", "builtins.eval", "numpy.lib.os.system"]
)
def test_anchor_pickle_admits_arrays_only(name, tmp_path):
    module, _, function = name.rpartition(".")
    path = tmp_path / "anchors.pkl"
    path.write_bytes(f"c{module}\n{function}\n(S'x'\ntR.".encode())
    with pytest.raises(UniADError, match=f"asks for {name}, which is no plain data"):
        load_anchors(path, TINY)


# --- the folder it writes ---------------------------------------------------------------------------------------------


def test_interrupted_and_run_again(files, tmp_path):
    out = tmp_path / "c_model"
    arguments = ("-i", files / "tiny.pth", "-o", out, "--anchors", files / "anchors.npy", "-p", 1)
    command = [sys.executable, SCRIPTS / "pytorch_convert.py", *map(str, arguments)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while not any(any(folder.glob("*.bin")) for folder in leftovers(out)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists() and leftovers(out)  # half of it, under its temporary name
    convert(*arguments)
    assert load_c_model(out).config == TINY and not leftovers(out)


def test_output_that_is_something_else(files, tmp_path, capsys):
    arguments = ("-i", files / "tiny.pth", "--anchors", files / "anchors.npy")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for content in (None, "[c_model]\n", "[other]\n"):  # a c-model with other files in it is not replaced either
        if content:
            (mine / "config.ini").write_text(content)
        with pytest.raises(SystemExit) as stop:
            convert("-o", mine, *arguments)
        assert stop.value.code == 2 and "exists and is not a c-model" in capsys.readouterr().err
        assert (mine / "thesis.txt").read_text() == "years of work"
    # A parent that is a file cannot be written, whoever runs this.
    with pytest.raises(SystemExit) as stop:
        convert("-o", mine / "thesis.txt" / "out", *arguments)
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and "cannot write" in lines[0]
    with pytest.raises(SystemExit):
        convert("-o", mine / "thesis.txt", *arguments)
    assert "exists and is not a c-model" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    convert("-o", empty, *arguments)
    assert load_c_model(empty).config == TINY


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write read-only folders")
def test_read_only_parent(files, tmp_path, capsys):
    parent = tmp_path / "locked"
    parent.mkdir(mode=0o555)
    with pytest.raises(SystemExit):
        convert("-i", files / "tiny.pth", "--anchors", files / "anchors.npy", "-o", parent / "out")
    assert "cannot write" in capsys.readouterr().err


def test_disk_full_leaves_the_old_one(files, tmp_path, capsys, monkeypatch):
    out = tmp_path / "c_model"
    arguments = ("-i", files / "tiny.pth", "-o", out, "--anchors", files / "anchors.npy")
    convert(*arguments)
    before = (out / "config.ini").read_bytes()
    monkeypatch.setattr(pytorch_convert, "write_config", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(SystemExit) as stop:
        convert(*arguments)
    assert stop.value.code == 2 and "No space left" in capsys.readouterr().err
    assert (out / "config.ini").read_bytes() == before and not leftovers(out)
