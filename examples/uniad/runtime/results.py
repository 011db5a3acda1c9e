"""The result folder of run.py: one record per frame, run.json, latency.json, and what a resumed run needs.

    RESULT/frames/<order:06d>_<sample_token>.npz   docs/design.md, "Result record"
    RESULT/run.json                                what ran on what; `complete` once everything is there
    RESULT/latency.json                            seconds per frame and stage
    RESULT/profile.json                            with --profile: milliseconds per layer and module
    RESULT/results_nusc.json                       tracking submission (runtime/submission.py)
    RESULT/pictures/                               with --visualize
    RESULT/resume.npz                              only while a run is under way
    RESULT/scenes/                                 the same with --workers (runtime/scale_out.py)

Every file appears whole or not at all.
"""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from errors import UniADError
from files import UNREADABLE, whole_file

KIND = "uniad-result"
STAGES = ("load", "preprocess", "engine", "postprocess", "optimise", "whole")
PARTS = (
    "frames",
    "pictures",
    "videos",
    "latency.json",
    "profile.json",
    "results_nusc.json",
    "summary.json",
    "summary.md",
    "summary.html",
    "resume.npz",
    "scenes",
)

_TRACK_ROWS = ("boxes_3d", "scores_3d", "labels_3d", "track_scores", "track_ids")
_DETECTION_ROWS = ("boxes_3d_det", "scores_3d_det", "labels_3d_det")
_WITH_EGO = ("traj", "traj_scores")
_WHOLE = ("map_drivable", "map_lane", "map_lane_score", "occ_seg", "occ_ins", "sdc_traj_raw", "num_dropped")


class ResultError(UniADError):
    """A result can't be written, read or continued."""


def make_record(outputs: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """The result record of a frame (all but `sdc_traj`) from the engine's outputs: only the rows that mean something.

    Outputs that an engine was built without are left out. Raises ResultError where a value is not finite.
    """
    record: dict[str, np.ndarray] = {}
    if "track_ids" in outputs:
        tracks = np.flatnonzero(outputs["track_ids"] >= 0)  # row numbers: several times faster than masks
        record |= {key: outputs[key].take(tracks, axis=0) for key in _TRACK_ROWS}
        detections = np.flatnonzero(outputs["det_mask"])
        record |= {key: outputs[key].take(detections, axis=0) for key in _DETECTION_ROWS}
        if "traj" in outputs:
            with_ego = np.append(tracks, len(outputs["track_ids"]))  # the last of (A+1)
            record |= {key: outputs[key].take(with_ego, axis=0) for key in _WITH_EGO}
    record |= {key: outputs[key] for key in _WHOLE if key in outputs}
    if "map_drivable" in record:
        record["map_drivable"] = record["map_drivable"] != 0
    for key, array in record.items():
        if array.dtype.kind == "f" and not _all_finite(array):
            raise ResultError(
                f"{where}: the engine's {key} holds NaN or infinity; check the checkpoint, and try --dtype float32"
            )
    return record


def _all_finite(array: np.ndarray) -> bool:
    """Whether no value is NaN or infinite. The sum of squares says so without memory of its own, unless it is out of
    range itself."""
    return bool(np.isfinite(np.vdot(array, array)) or np.isfinite(array).all())


def frame_path(folder: pathlib.Path, order: int, sample_token: str) -> pathlib.Path:
    return folder / "frames" / f"{order:06d}_{sample_token}.npz"


def write_record(path: pathlib.Path, record: Mapping[str, np.ndarray]) -> None:
    """Write one frame's record. The same record gives the same bytes."""
    with whole_file(path) as part, open(part, "wb") as file:
        np.savez_compressed(file, **record)


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of a file written here. Raises ResultError where it is unreadable."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except UNREADABLE as error:
        raise ResultError(f"{path}: not readable ({error}); run again with --fresh") from error


def write_json(path: pathlib.Path, value: Any) -> None:
    with whole_file(path) as part:
        part.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_latency(folder: pathlib.Path, rows: np.ndarray) -> None:
    """latency.json from seconds (frames, stages), one row per frame in order.

    `whole` is the latency of a frame: the sum of its stages, although decoding runs ahead of the engine. Writing
    the record and drawing pictures are not in it.
    """
    frames = [{stage: round(float(seconds), 7) for stage, seconds in zip(STAGES, row)} for row in rows]
    median = {stage: round(float(seconds), 7) for stage, seconds in zip(STAGES, np.median(rows, axis=0))}
    write_json(folder / "latency.json", {"unit": "s", "median": median, "frames": frames})


# --- starting and continuing ---


def read_run(folder: pathlib.Path) -> dict[str, Any] | None:
    """run.json of a result folder, or None where the folder is absent or empty.

    Raises ResultError where the folder is something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        run = json.loads((folder / "run.json").read_text())
    except (OSError, ValueError):
        run = None
    if not isinstance(run, dict) or run.get("kind") != KIND:
        raise ResultError(f"{folder} exists and is not a result of run.py; give another folder")
    return run


def clear(folder: pathlib.Path) -> None:
    """Remove a result, and nothing else that may lie in its folder. run.json goes last: it says whose folder it is."""
    for name in (*PARTS, "run.json"):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def check_same_run(folder: pathlib.Path, earlier: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raise ResultError naming what differs between an earlier run's `identity` and this one's."""
    before, now = (json.loads(json.dumps(value)) for value in (earlier.get("identity", {}), identity))
    differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if differing:
        raise ResultError(
            f"{folder} holds the result of another run ({', '.join(differing)} differ); "
            "give another folder, or --fresh to replace it"
        )


def save_progress(
    folder: pathlib.Path,
    next_frame: int,
    sequence: Mapping[str, np.ndarray],
    session: Mapping[str, np.ndarray],
    latency: np.ndarray,
) -> None:
    """Note that all frames before `next_frame`, which starts a scene, are written, and the state it starts from."""
    arrays = {"next_frame": np.array(next_frame), "latency": latency}
    arrays |= {f"sequence.{key}": value for key, value in sequence.items()}
    arrays |= {f"session.{key}": value for key, value in session.items()}
    write_record(folder / "resume.npz", arrays)


def load_progress(
    folder: pathlib.Path,
) -> tuple[int, dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray] | None:
    """What `save_progress` noted, or None where no scene was finished."""
    path = folder / "resume.npz"
    if not path.exists():
        return None
    arrays = read_arrays(path)

    def group(prefix: str) -> dict[str, np.ndarray]:
        return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}

    return int(arrays["next_frame"]), group("sequence."), group("session."), arrays["latency"]
