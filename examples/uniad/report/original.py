"""results.pkl of the original repository's tools/test.py as a base result.

Upstream: uniad/apis/test.py, uniad/detectors/uniad_track.py and uniad_e2e.py, datasets/nuscenes_e2e_dataset.py. It
holds `bbox_results`, one dictionary per keyframe: `token`, tracks, detections, trajectories, intersections and unions
of the map (`ret_iou`) and the optimised plan; and the scores of occupancy and planning, which the original computes
while it runs and keeps no grids for. Nothing in it says which convention its boxes are in.
"""

from __future__ import annotations

import io
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from data.plain_pickle import load_plain_pickle
from errors import UniADError
from report.compare import RECORD
from runtime.results import write_json, write_record

KIND = "uniad-original"
_ROWS = ("scores_3d", "labels_3d", "track_scores", "track_ids", "scores_3d_det", "labels_3d_det", "traj", "traj_scores")
_BOXES = ("boxes_3d", "boxes_3d_det")
_HELD = (*_ROWS, *_BOXES, "sdc_traj")
_MAP = {"divider": "divider", "crossing": "crossing", "boundary": "contour", "lanes": "lanes", "drivable": "drivable"}
_OCCUPANCY = {"iou": "iou", "vpq": "pq", "vsq": "sq", "vrq": "rq"}
_SECONDS = {"1s": 1, "2s": 3, "3s": 5}


class _Boxes:
    """Stands in for mmdet3d's box classes: their state has `tensor` (N,9)."""

    tensor: Any = None


def _rebuild_tensor(flat: Any, offset: int, size: Any, stride: Any, *rest: Any) -> np.ndarray:
    return flat.as_strided(tuple(size), tuple(stride), offset).numpy().copy()


def _load_storage(data: bytes) -> Any:
    """The numbers of a pickled tensor, a flat tensor on the CPU."""
    import torch  # only this needs it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # typed storages are deprecated; old pickles have no others
        storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return torch.empty(0, dtype=storage.dtype).set_(storage.untyped())


_CLASSES = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch.storage", "_load_from_bytes"): _load_storage,
    ("torch", "Size"): tuple,
    **{
        (module, "LiDARInstance3DBoxes"): _Boxes
        for module in ("mmdet3d.core.bbox.structures.lidar_box3d", "mmdet3d.structures.bbox_3d.lidar_box3d")
    },
}


def write_original(pickle: pathlib.Path, names: Mapping[str, str], convention: str, folder: pathlib.Path) -> None:
    """Write a result folder from a results.pkl.

    Args:
        names: sample token -> name of the frame's file: the frames that are wanted.
        convention: that of the checkpoint it was made with.
        folder: gets frames/ with what the file holds of a record, and run.json with `lacks` (record keys it has not)
            and `scores` (what the original computed, where its frames are the wanted ones).
    Raises:
        UniADError: not such a file, or a wanted frame is not in it.
    """
    data = load_plain_pickle(pickle, _CLASSES)
    results: Any = data.get("bbox_results") if isinstance(data, dict) else data
    try:
        frames = {str(result["token"]): result for result in results}
        records = {token: _record(frames[token]) for token in names if token in frames}
    except (TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
        raise UniADError(f"{pickle}: not a results.pkl of the original's tools/test.py ({error!r})") from error
    missing = [token for token in names if token not in frames]
    if missing:
        raise UniADError(f"{pickle}: {len(missing)} of {len(names)} frames are not in it, e.g. {missing[0]}")
    held = {key for key in _HELD if all(key in record for record in records.values())}
    for token, record in records.items():
        write_record(folder / "frames" / f"{names[token]}.npz", {key: record[key] for key in _HELD if key in held})
    scores: dict[str, Any] = {"map": _map_scores([frames[token] for token in names])}
    if isinstance(data, dict) and frames.keys() == names.keys():
        scores |= {"occupancy": _occupancy_scores(data), "planning": _planning_scores(data)}
    lacks = [key for key in RECORD if key not in held]
    write_json(folder / "run.json", {"kind": KIND, "convention": convention, "lacks": lacks, "scores": scores})


def _record(result: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a result record that a keyframe's dictionary holds."""
    record = {key: np.asarray(result[key]) for key in _ROWS if key in result}
    record |= {key: np.asarray(result[key].tensor, np.float32) for key in _BOXES if key in result}
    if "planning_traj" in result:
        # Its planning metric negates x in place, in this very tensor: turned back.
        record["sdc_traj"] = np.asarray(result["planning_traj"], np.float32).reshape(-1, 2) * np.array(
            [-1, 1], np.float32
        )
    return record


def _map_scores(results: list[Mapping[str, Any]]) -> dict[str, float | None]:
    scores: dict[str, float | None] = {}
    for name, theirs in _MAP.items():
        parts = [r["ret_iou"] for r in results if "ret_iou" in r]
        common = sum(float(np.asarray(part[f"{theirs}_intersection"]).sum()) for part in parts)
        either = sum(float(np.asarray(part[f"{theirs}_union"]).sum()) for part in parts)
        scores[name] = common / either if either else None
    return scores


def _occupancy_scores(data: Mapping[str, Any]) -> dict[str, float]:
    computed = data.get("occ_results_computed", {})  # percent: 30 m, 100 m
    return {
        f"{ours}_{reach}": computed[theirs][i] / 100
        for ours, theirs in _OCCUPANCY.items()
        for i, reach in enumerate(("near", "far"))
        if theirs in computed
    }


def _planning_scores(data: Mapping[str, Any]) -> dict[str, Any]:
    computed = data.get("planning_results_computed", {})
    steps = {key.lower(): np.asarray(values, np.float64).ravel() for key, values in computed.items()}
    protocols: dict[str, Any] = {"uniad": {}, "stp3": {}}
    for key, values in steps.items():
        means: np.ndarray = np.cumsum(values) / np.arange(1, len(values) + 1)
        for protocol, of_step in (("uniad", values), ("stp3", means)):
            table = {at: float(of_step[step]) for at, step in _SECONDS.items()}
            protocols[protocol][key] = {**table, "avg": sum(table.values()) / len(table)}
    return {"optimised": {**protocols, "steps": {key: values.tolist() for key, values in steps.items()}}}
