"""Two result folders compared, output by output.

`load_result` reads and checks a folder, `compare_frame` measures one frame, `compare` a whole run. A measurement is
either an *error* (a distance, best 0) or a *share* (an agreement or an intersection over union, best 1). Errors are
averaged over all matched objects of all frames; shares are pooled: sums of hits over sums of candidates.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from errors import UniADError
from files import UNREADABLE
from runtime.boxes import wrap_angle
from runtime.results import STAGES

MATCH_DISTANCE = 2.0  # metres between centres at most, to take two detections for the same object
PLAN_STEP = 0.5  # seconds

# The result record: name -> (kinds of numbers, shape). Letters are sizes that must agree within a frame and, all but
# N (tracks) and D (detections), between the two results.
RECORD: dict[str, tuple[str, tuple[Any, ...]]] = {
    "boxes_3d": ("f", ("N", 9)),
    "scores_3d": ("f", ("N",)),
    "labels_3d": ("iu", ("N",)),
    "track_scores": ("f", ("N",)),
    "track_ids": ("iu", ("N",)),
    "boxes_3d_det": ("f", ("D", 9)),
    "scores_3d_det": ("f", ("D",)),
    "labels_3d_det": ("iu", ("D",)),
    "traj": ("f", ("N+1", "modes", "steps", 5)),
    "traj_scores": ("f", ("N+1", "modes")),
    "occ_seg": ("iub", ("occupancy frames", "occupancy rows", "occupancy columns")),
    "occ_ins": ("iu", ("occupancy frames", "occupancy rows", "occupancy columns")),
    "map_drivable": ("iub", ("map rows", "map columns")),
    "map_lane": ("iub", (3, "map rows", "map columns")),
    "map_lane_score": ("f", (3, "map rows", "map columns")),
    "sdc_traj_raw": ("f", ("plan steps", 2)),
    "sdc_traj": ("f", ("plan steps", 2)),
}


class Metric(NamedTuple):
    """One measured quantity and the limit it has by default (None: shown only)."""

    name: str
    title: str
    unit: str
    limit: float | None

    @property
    def is_share(self) -> bool:
        return self.unit == ""


def _box_metrics(prefix: str, title: str, limits: tuple[float | None, ...]) -> tuple[Metric, ...]:
    """The seven metrics of matched boxes."""
    names = (
        ("agreement", "in both results", ""),
        ("label_agreement", "same class", ""),
        ("centre_error", "centre", "m"),
        ("size_error", "size", "m"),
        ("yaw_error", "yaw", "rad"),
        ("velocity_error", "velocity", "m/s"),
        ("score_error", "score", "score"),
    )
    return tuple(Metric(f"{prefix}_{n}", f"{title}: {t}", u, limit) for (n, t, u), limit in zip(names, limits))


METRICS: tuple[Metric, ...] = (
    *_box_metrics("track", "tracks by id", (0.95, 0.98, 0.10, 0.05, 0.05, 0.10, 0.02)),
    *_box_metrics("detection", "detections", (0.90, 0.95, 0.20, 0.10, 0.10, 0.20, 0.02)),
    Metric("traj_error", "trajectories: ADE of all modes", "m", 0.20),
    Metric("best_mode_agreement", "trajectories: same best mode", "", 0.90),
    Metric("mode_score_error", "trajectories: mode scores", "score", 0.02),
    Metric("ego_traj_error", "ego: ADE of all modes", "m", 0.20),
    Metric("drivable_iou", "map: drivable area", "", 0.95),
    Metric("lane_divider_iou", "map: lane dividers", "", 0.90),
    Metric("lane_crossing_iou", "map: crossings", "", 0.90),
    Metric("lane_edge_iou", "map: road edges", "", 0.90),
    Metric("lane_score_error", "map: lane score per cell", "score", 0.02),
    Metric("occ_iou", "occupancy: occupied cells", "", 0.95),
    Metric("occ_instance_agreement", "occupancy: same instance", "", 0.90),
    Metric("raw_plan_error", "plan, raw: L2 of all steps", "m", 0.05),
    *(Metric(f"raw_plan_{s}s_error", f"plan, raw: L2 at {s} s", "m", None) for s in (1, 2, 3)),
    Metric("plan_error", "plan, optimised: L2, all steps", "m", 0.10),
    *(Metric(f"plan_{s}s_error", f"plan, optimised: L2 at {s} s", "m", None) for s in (1, 2, 3)),
)
_LANES = ("divider", "crossing", "edge")


@dataclasses.dataclass(frozen=True)
class Result:
    """A result folder: `frames` maps frame names (`<order>_<sample token>`, in order) to files."""

    path: pathlib.Path
    run: dict[str, Any]  # run.json
    frames: dict[str, pathlib.Path]
    latency: dict[str, np.ndarray] | None  # seconds per stage and frame; None: there is no latency.json

    @property
    def by_token(self) -> dict[str, str]:
        """Frame names by sample token, in order."""
        return {name.split("_", 1)[1]: name for name in self.frames}

    @property
    def lacks(self) -> list[str]:
        """Outputs that its frames were never given (report/original.py)."""
        return self.run.get("lacks", [])


# --- reading ---


def load_result(path: pathlib.Path, what: str) -> Result:
    """Read a result folder; `what` ("result", "base result") names it in errors.

    Raises UniADError: not a folder, not a result, no frames, frame names or latencies that make no sense.
    """
    if not path.is_dir():
        raise UniADError(f"{what} {path}: no such folder")
    if not (path / "run.json").is_file() or not (path / "frames").is_dir():
        raise UniADError(f"{what} {path}: not a result of run.py (it holds run.json and frames/)")
    frames, orders, tokens = {}, set(), set()
    for file in sorted((path / "frames").glob("*.npz")):
        name = re.fullmatch(r"(\d{6,})_(.+)", file.stem)
        if not name:
            raise UniADError(f"{what} {path}: {file.name} is not named <order>_<sample token>.npz")
        order, token = int(name[1]), name[2]
        if order in orders or token in tokens:
            raise UniADError(f"{what} {path}: two files for frame {order} or sample {token}; make the result again")
        orders.add(order)
        tokens.add(token)
        frames[file.stem] = file
    if not frames:
        raise UniADError(f"{what} {path}: no frames in it; run.py has not finished one")
    latency = path / "latency.json"
    return Result(path, _read_json(path / "run.json"), frames, _read_latency(latency) if latency.exists() else None)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UniADError(f"{path}: not readable JSON ({error})") from error
    if not isinstance(value, dict):
        raise UniADError(f"{path}: holds no JSON object")
    return value


def _read_latency(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Seconds per stage, each (frames), from latency.json. Raises UniADError."""
    rows = _read_json(path).get("frames")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UniADError(f"{path}: holds no list of frames")
    try:
        table = {stage: np.array([float(row[stage]) for row in rows]) for stage in STAGES}
    except (KeyError, TypeError, ValueError) as error:
        raise UniADError(f"{path}: a stage is missing or not a number ({error})") from error
    for stage, seconds in table.items():
        if not np.isfinite(seconds).all() or (seconds < 0).any():
            raise UniADError(f"{path}: stage {stage} holds a negative or non-finite time")
    return table


def read_frame(path: pathlib.Path, lacks: Iterable[str] = ()) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The arrays of one frame file and the sizes found, checked against RECORD less `lacks`. Raises UniADError."""
    record = {key: value for key, value in RECORD.items() if key not in set(lacks)}
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in record if key not in file.files]
            if missing:
                raise UniADError(f"{path}: not a whole result record, {', '.join(missing)} missing")
            arrays = {key: file[key] for key in record}
    except UNREADABLE as error:
        raise UniADError(f"{path}: not a readable frame file ({error}); make the result again") from error
    sizes: dict[str, int] = {}
    for key, (kinds, shape) in record.items():
        array = arrays[key]
        if array.dtype.kind not in kinds:
            raise UniADError(f"{path}: {key} holds {array.dtype}")
        if array.ndim != len(shape):
            raise UniADError(f"{path}: {key} has shape {array.shape}, expected ({', '.join(map(str, shape))})")
        for found, wanted in zip(array.shape, shape):
            if wanted == "N+1":
                found, wanted = found - 1, "N"
            if found != (wanted if isinstance(wanted, int) else sizes.setdefault(wanted, found)):
                raise UniADError(f"{path}: {key} has shape {array.shape}, expected ({', '.join(map(str, shape))})")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UniADError(f"{path}: {key} holds NaN or infinity")
    if "track_ids" in arrays and len(np.unique(arrays["track_ids"])) != sizes["N"]:
        raise UniADError(f"{path}: a track id occurs twice")
    return arrays, sizes


# --- measuring one frame ---

# metric -> the errors of a frame (any shape), or hits and candidates of a share
Errors = dict[str, np.ndarray]
Shares = dict[str, tuple[int, int]]


def match_by_distance(a: np.ndarray, b: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Greedy one-to-one matching of points (n,k) and (m,k), nearest pair first, at most `limit` apart.

    Returns the matched indices into a and into b. Of equally near pairs the one of more equal rank comes first.
    """
    distance = np.linalg.norm(a[:, None] - b[None], axis=-1)  # (n,m)
    rows, columns = np.nonzero(distance <= limit)
    order = np.lexsort((np.abs(rows - columns), distance[rows, columns]))
    free_a, free_b, pairs = np.ones(len(a), bool), np.ones(len(b), bool), []
    for i, j in zip(rows[order], columns[order]):
        if free_a[i] and free_b[j]:
            free_a[i] = free_b[j] = False
            pairs.append((i, j))
    matched = np.array(pairs, np.int64).reshape(-1, 2)
    return matched[:, 0], matched[:, 1]


def instance_agreement(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    """Cells of two instance maps (any shape, 0 = free) that belong to the same instance, and cells not free in either.

    Which number of `a` stands for which of `b` is free: the one-to-one assignment with most common cells counts.
    """
    numbers_a, index_a = np.unique(a, return_inverse=True)
    numbers_b, index_b = np.unique(b, return_inverse=True)
    common = np.zeros((len(numbers_a), len(numbers_b)), np.int64)
    np.add.at(common, (index_a.ravel(), index_b.ravel()), 1)
    common = common[numbers_a != 0][:, numbers_b != 0]
    rows, columns = linear_sum_assignment(common, maximize=True)
    return int(common[rows, columns].sum()), int(((a != 0) | (b != 0)).sum())


def _iou(a: np.ndarray, b: np.ndarray) -> tuple[int, int]:
    a, b = a != 0, b != 0
    return int((a & b).sum()), int((a | b).sum())


def _compare_boxes(
    prefix: str, a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], suffix: str, pairs: tuple
) -> tuple[Errors, Shares]:
    """The seven box metrics for matched pairs (indices into a, into b)."""
    i, j = pairs
    boxes_a, boxes_b = (r[f"boxes_3d{suffix}"].astype(np.float64)[k] for r, k in ((a, i), (b, j)))  # (P,9)
    scores_a, scores_b = (r[f"scores_3d{suffix}"].astype(np.float64)[k] for r, k in ((a, i), (b, j)))  # (P)
    same_label = a[f"labels_3d{suffix}"][i] == b[f"labels_3d{suffix}"][j]
    delta = boxes_a - boxes_b
    errors = {
        f"{prefix}_centre_error": np.linalg.norm(delta[:, :3], axis=1),
        f"{prefix}_size_error": np.abs(delta[:, 3:6]).max(axis=1, initial=0.0),
        f"{prefix}_yaw_error": np.abs(wrap_angle(delta[:, 6])),
        f"{prefix}_velocity_error": np.linalg.norm(delta[:, 7:9], axis=1),
        f"{prefix}_score_error": np.abs(scores_a - scores_b),
    }
    candidates = len(a[f"boxes_3d{suffix}"]) + len(b[f"boxes_3d{suffix}"]) - len(i)
    shares = {
        f"{prefix}_agreement": (len(i), candidates),
        f"{prefix}_label_agreement": (int(same_label.sum()), len(i)),
    }
    return errors, shares


def compare_frame(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> tuple[Errors, Shares]:
    """Every metric of one frame of a result against the same frame of the base, of the outputs that both have."""
    errors: Errors = {}
    shares: Shares = {}
    for key, compare_outputs in _COMPARED.items():
        if key in a and key in b:
            found = compare_outputs(a, b)
            errors |= found[0]
            shares |= found[1]
    return errors, shares


def _compare_tracks(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> tuple[Errors, Shares]:
    _, i, j = np.intersect1d(a["track_ids"], b["track_ids"], assume_unique=True, return_indices=True)
    return _compare_boxes("track", a, b, "", (i, j))


def _compare_detections(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> tuple[Errors, Shares]:
    centres = (a["boxes_3d_det"][:, :3].astype(np.float64), b["boxes_3d_det"][:, :3].astype(np.float64))
    return _compare_boxes("detection", a, b, "_det", match_by_distance(*centres, MATCH_DISTANCE))


def _compare_trajectories(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> tuple[Errors, Shares]:
    _, i, j = np.intersect1d(a["track_ids"], b["track_ids"], assume_unique=True, return_indices=True)
    rows_a, rows_b = np.append(i, -1), np.append(j, -1)  # matched tracks, then the ego
    paths = a["traj"][rows_a, ..., :2].astype(np.float64) - b["traj"][rows_b, ..., :2]  # (P+1,modes,steps,2)
    ade = np.linalg.norm(paths, axis=-1).mean(axis=-1)  # (P+1,modes)
    scores_a, scores_b = a["traj_scores"][rows_a].astype(np.float64), b["traj_scores"][rows_b].astype(np.float64)
    mode_scores = np.abs(np.exp(scores_a) - np.exp(scores_b))  # the record holds logarithms
    same_mode = scores_a.argmax(axis=1) == scores_b.argmax(axis=1)
    errors = {"traj_error": ade[:-1], "ego_traj_error": ade[-1], "mode_score_error": mode_scores}
    return errors, {"best_mode_agreement": (int(same_mode.sum()), len(same_mode))}


def _compare_maps(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> tuple[Errors, Shares]:
    shares = {"drivable_iou": _iou(a["map_drivable"], b["map_drivable"])}
    for lane, mask_a, mask_b in zip(_LANES, a["map_lane"], b["map_lane"]):
        shares[f"lane_{lane}_iou"] = _iou(mask_a, mask_b)
    return {"lane_score_error": np.abs(a["map_lane_score"].astype(np.float64) - b["map_lane_score"])}, shares


def _compare_occupancy(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> tuple[Errors, Shares]:
    instances = instance_agreement(a["occ_ins"], b["occ_ins"])
    return {}, {"occ_iou": _iou(a["occ_seg"], b["occ_seg"]), "occ_instance_agreement": instances}


def _compare_plans(
    key: str, name: str, a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]
) -> tuple[Errors, Shares]:
    distance = np.linalg.norm(a[key].astype(np.float64) - b[key], axis=-1)  # (plan steps)
    errors = {f"{name}_error": distance}
    for seconds in (1, 2, 3):
        step = round(seconds / PLAN_STEP)
        errors[f"{name}_{seconds}s_error"] = distance[step - 1 : step]
    return errors, {}


# the output that stands for a group -> how the group is compared
_COMPARED: dict[str, Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], tuple[Errors, Shares]]] = {
    "boxes_3d": _compare_tracks,
    "boxes_3d_det": _compare_detections,
    "traj": _compare_trajectories,
    "map_lane": _compare_maps,
    "occ_seg": _compare_occupancy,
    "sdc_traj_raw": functools.partial(_compare_plans, "sdc_traj_raw", "raw_plan"),
    "sdc_traj": functools.partial(_compare_plans, "sdc_traj", "plan"),
}


# --- measuring a run ---


def check_same_frames(result: Result, base: Result) -> None:
    """Raise UniADError naming the frames that only one of the two results has."""
    for one, other, what in ((result, base, "base result"), (base, result, "result")):
        lacking = [name for name in one.frames if name not in other.frames]
        if lacking:
            names = ", ".join(lacking[:3]) + (", ..." if len(lacking) > 3 else "")
            raise UniADError(
                f"{what} {other.path} lacks {len(lacking)} of the {len(one.frames)} frames of {one.path}: {names}; "
                "run both on the same frames"
            )
    conventions = result.run.get("convention"), base.run.get("convention")
    if conventions[0] != conventions[1]:
        raise UniADError(f"box conventions differ: {conventions[0]} in the result, {conventions[1]} in the base")


def compare(result: Result, base: Result, progress: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
    """All metrics of a run, by name: `mean` (None: nothing to measure), `worst` frame's value, `frame`, `count`.

    For errors `worst` is the largest single error, for shares the lowest share of one frame; `frame` names it and
    `count` is the number of single errors, or of candidates. `progress` may wrap the iteration over frame names.
    Raises UniADError where the frames differ, or one is unreadable.
    """
    check_same_frames(result, base)
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    worst: dict[str, tuple[float, str]] = {}
    for name in progress if progress is not None else result.frames:
        (a, sizes_a), (b, sizes_b) = (read_frame(side.frames[name], side.lacks) for side in (result, base))
        for size in sizes_a.keys() & sizes_b.keys():
            if size not in "ND" and sizes_a[size] != sizes_b[size]:
                raise UniADError(f"frame {name}: {sizes_a[size]} {size}, but {sizes_b[size]} in the base: other models")
        errors, shares = compare_frame(a, b)
        for key, values in errors.items():
            if values.size:
                sums[key] += float(values.sum())
                counts[key] += values.size
                worst[key] = max(worst.get(key, (-1.0, "")), (float(values.max()), name), key=lambda w: w[0])
        for key, (hits, candidates) in shares.items():
            if candidates:
                sums[key] += hits
                counts[key] += candidates
                worst[key] = min(worst.get(key, (2.0, "")), (hits / candidates, name), key=lambda w: w[0])
    report = {}
    for metric in METRICS:
        count = counts[metric.name]
        value, frame = worst.get(metric.name, (None, None))
        mean = sums[metric.name] / count if count else None
        report[metric.name] = {"mean": mean, "worst": value, "frame": frame, "count": count, "unit": metric.unit}
    return report


def summarize_latency(seconds: Mapping[str, np.ndarray], skip: int) -> dict[str, dict[str, float]]:
    """Milliseconds per stage: p50, p90, p99 and mean over the frames after the first `skip`."""
    table = {}
    for stage, values in seconds.items():
        kept = 1e3 * values[min(skip, len(values) - 1) :]
        p50, p90, p99 = np.percentile(kept, (50, 90, 99))
        table[stage] = {"p50": float(p50), "p90": float(p90), "p99": float(p99), "mean": float(kept.mean())}
    return table
