"""Predicted and annotated boxes as nuscenes-devkit's evaluation takes them: global, of known class, in range.

The devkit's classes ask a NuScenes object for little: `Tables` answers from the index. Which predictions count and
what attribute they get follows the original (datasets/nuscenes_e2e_dataset.py, _format_bbox and _format_bbox_det).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.loaders import add_center_dist, filter_eval_boxes
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.tracking.data_classes import TrackingBox

from data.ground_truth import GroundTruth, Objects
from errors import UniADError
from metrics.results import Results, frames
from runtime.boxes import to_nuscenes
from runtime.submission import matrix_to_quaternion

TRACKED = ("bicycle", "bus", "car", "motorcycle", "pedestrian", "trailer", "truck")
_RACK = "static_object.bicycle_rack"
_MOVING = 0.2  # m/s
_VEHICLES = ("car", "construction_vehicle", "bus", "truck", "trailer")
_RESTING = {
    "car": "vehicle.parked",
    "truck": "vehicle.parked",
    "trailer": "vehicle.parked",
    "construction_vehicle": "vehicle.parked",
    "bus": "vehicle.stopped",
    "motorcycle": "cycle.without_rider",
    "bicycle": "cycle.without_rider",
    "pedestrian": "pedestrian.standing",
}


@dataclasses.dataclass(frozen=True)
class GlobalBoxes:
    """Predicted boxes of one frame in the global frame; `rows` are their rows in the record."""

    rows: np.ndarray  # (M)
    names: list[str]
    translation: np.ndarray  # (M,3)
    wlh: np.ndarray  # (M,3)
    rotation: np.ndarray  # (M,4) w x y z
    velocity: np.ndarray  # (M,2)
    centre: np.ndarray  # (M,2) lidar


class Tables:
    """Stands in for a NuScenes object where the devkit's evaluation asks for samples, poses and bicycle racks."""

    def __init__(self, truth: GroundTruth):
        self._records: dict[tuple[str, str], dict[str, Any]] = {}
        for index, token in enumerate(truth.tokens):
            racks, objects = [], truth.objects(index)
            for row in np.flatnonzero(objects.names == _RACK):
                racks.append(f"{token}-{row}")
                self._records["sample_annotation", racks[-1]] = {
                    "category_name": _RACK,
                    "translation": objects.translation[row].tolist(),
                    "size": objects.wlh[row].tolist(),
                    "rotation": objects.rotation[row].tolist(),
                }
            # One token serves the sample, its lidar data and its pose.
            self._records["sample", token] = {"anns": racks, "data": {"LIDAR_TOP": token}}
            self._records["sample_data", token] = {"ego_pose_token": token}
            self._records["ego_pose", token] = {"translation": truth.pose(index).ego_translation.tolist()}

    def get(self, table: str, token: str) -> dict[str, Any]:
        return self._records[table, token]


def to_global(
    boxes: np.ndarray, labels: np.ndarray, truth: GroundTruth, index: int, class_range: dict[str, float]
) -> GlobalBoxes:
    """Predicted boxes (N,9) of a frame in the global frame: those of the classes in `class_range`, within it.

    Raises UniADError for a label that is no class.
    """
    classes = truth.config.class_names
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(classes):
        raise UniADError(f"frame {truth.info(index).sample_token}: labels must be 0 .. {len(classes) - 1}")
    centre, wlh, heading = to_nuscenes(boxes, truth.convention)  # (N,3) (N,3) (N)
    pose = truth.pose(index)
    translation = centre @ pose.l2g_r_mat + pose.l2g_t
    limits = np.array([class_range.get(name, -1.0) for name in classes])[labels.astype(np.int64)]  # (N)
    # Upstream measures from the vehicle in its own frame: its tilt is left out of the devkit's global distance.
    from_ego = (translation - pose.ego_translation) @ truth.ego_rotation(index)  # (N,3)
    rows = np.flatnonzero(np.linalg.norm(from_ego[:, :2], axis=1) <= limits)
    turn = np.zeros((len(rows), 3, 3))
    turn[:, 0, 0] = turn[:, 1, 1] = np.cos(heading[rows])
    turn[:, 1, 0] = np.sin(heading[rows])
    turn[:, 0, 1] = -turn[:, 1, 0]
    turn[:, 2, 2] = 1.0
    velocity = np.pad(np.asarray(boxes, np.float64)[rows, 7:9], ((0, 0), (0, 1))) @ pose.l2g_r_mat
    return GlobalBoxes(
        rows=rows,
        names=[classes[label] for label in labels[rows]],
        translation=translation[rows],
        wlh=wlh[rows],
        rotation=matrix_to_quaternion(pose.l2g_r_mat.T @ turn),
        velocity=velocity[:, :2],
        centre=centre[rows, :2],
    )


def attribute_of(name: str, velocity: np.ndarray) -> str:
    """The attribute that the original gives to a prediction, from its class and speed."""
    if np.hypot(*velocity) <= _MOVING:
        return _RESTING.get(name, "")
    if name in _VEHICLES:
        return "vehicle.moving"
    return {"bicycle": "cycle.with_rider", "motorcycle": "cycle.with_rider", "pedestrian": "pedestrian.moving"}.get(
        name, ""
    )


def annotated_box(kind: Any, token: str, objects: Objects, row: int, **fields: Any) -> Any:
    """An annotated object as a box of one of the devkit's kinds."""
    return kind(
        **_geometry(token, objects, row), num_pts=int(objects.points[row] + objects.radar_points[row]), **fields
    )


def predicted_box(kind: Any, token: str, boxes: GlobalBoxes, row: int, **fields: Any) -> Any:
    """A predicted object as a box of one of the devkit's kinds; `row` counts in `boxes`."""
    return kind(**_geometry(token, boxes, row), **fields)


def _geometry(token: str, boxes: GlobalBoxes | Objects, row: int) -> dict[str, Any]:
    return {
        "sample_token": token,
        "translation": tuple(boxes.translation[row].tolist()),
        "size": tuple(boxes.wlh[row].tolist()),
        "rotation": tuple(boxes.rotation[row].tolist()),
        "velocity": tuple(boxes.velocity[row].tolist()),
    }


def detection_boxes(results: Results, truth: GroundTruth, config: Any, tables: Tables) -> tuple[EvalBoxes, EvalBoxes]:
    """Annotated and predicted DetectionBoxes of the ten classes, filtered by the devkit. Raises UniADError."""
    annotated, predicted = EvalBoxes(), EvalBoxes()
    for index in frames(truth, "detections"):
        token, objects = truth.tokens[index], truth.objects(index)
        annotated.add_boxes(token, [])
        for row in np.flatnonzero(objects.labels >= 0):
            names = {"detection_name": str(objects.names[row]), "attribute_name": str(objects.attributes[row])}
            annotated.add_boxes(token, [annotated_box(DetectionBox, token, objects, row, **names)])
        boxes, scores, labels = results.arrays(token, "boxes_3d_det", "scores_3d_det", "labels_3d_det")
        found = to_global(boxes, labels, truth, index, config.class_range)
        predicted.add_boxes(token, [])
        for i, (row, name) in enumerate(zip(found.rows, found.names)):
            names = {"detection_name": name, "attribute_name": attribute_of(name, found.velocity[i])}
            box = predicted_box(DetectionBox, token, found, i, detection_score=float(scores[row]), **names)
            predicted.add_boxes(token, [box])
    return filtered(annotated, config, tables), filtered(predicted, config, tables)


def tracking_boxes(
    results: Results, truth: GroundTruth, config: Any, detection_range: dict[str, float], tables: Tables
) -> tuple[EvalBoxes, EvalBoxes]:
    """Annotated and predicted TrackingBoxes of the seven tracked classes, filtered by the devkit. Raises UniADError.

    Upstream scores tracks by `scores_3d`, and drops those outside the detection task's range first.
    """
    annotated, predicted = EvalBoxes(), EvalBoxes()
    class_range = {name: detection_range[name] for name in TRACKED}
    for index in frames(truth, "tracks"):
        token, objects = truth.tokens[index], truth.objects(index)
        annotated.add_boxes(token, [])
        for row in np.flatnonzero(np.isin(objects.names, TRACKED)):
            names = {"tracking_id": str(objects.instance_tokens[row]), "tracking_name": str(objects.names[row])}
            annotated.add_boxes(token, [annotated_box(TrackingBox, token, objects, row, **names)])
        boxes, scores, labels, ids = results.arrays(token, "boxes_3d", "scores_3d", "labels_3d", "track_ids")
        found = to_global(boxes, labels, truth, index, class_range)
        predicted.add_boxes(token, [])
        for i, (row, name) in enumerate(zip(found.rows, found.names)):
            names = {"tracking_id": str(ids[row]), "tracking_name": name}
            box = predicted_box(TrackingBox, token, found, i, tracking_score=float(scores[row]), **names)
            predicted.add_boxes(token, [box])
    return filtered(annotated, config, tables), filtered(predicted, config, tables)


def filtered(boxes: EvalBoxes, config: Any, tables: Tables) -> EvalBoxes:
    """The devkit's filters: class range around the vehicle, annotated points, bicycles in racks."""
    if not boxes.all:  # the devkit can't tell the kind of no boxes
        return boxes
    return filter_eval_boxes(tables, add_center_dist(tables, boxes), config.class_range)
