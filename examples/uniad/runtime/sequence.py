"""Host geometry around the engine: from raw frames to the engine's input tensors.

Everything here is float64 until the last cast, because poses are hundreds of metres and angles hundreds of degrees
where the network wants their small differences. Follows UniAD's forward_test, simple_test_track and
get_bev_features (projects/mmdet3d_plugin/uniad/detectors and uniad/modules/transformer.py); what the released
weights rely on is reproduced, quirks included.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from config import CONVENTIONS, UniADConfig
from data.frames import Frame
from errors import UniADError


def bev_shift(can_bus: np.ndarray, config: UniADConfig) -> np.ndarray:
    """Ego motion since the last frame as a shift of the BEV grid, float64 (2): x, y in fractions of the grid.

    `can_bus` holds the position delta in [0:2] (metres, global axes) and the absolute heading in [-2] (radians).
    """
    delta_x, delta_y = can_bus[0], can_bus[1]
    length = np.sqrt(delta_x**2 + delta_y**2)
    # Degrees and back, in the original's order of operations: float64 rounding then agrees to the last bit.
    heading = can_bus[-2] / np.pi * 180
    angle = (heading - np.arctan2(delta_y, delta_x) / np.pi * 180) / 180 * np.pi
    cell_y = (config.pc_range[4] - config.pc_range[1]) / config.bev_h
    cell_x = (config.pc_range[3] - config.pc_range[0]) / config.bev_w
    return np.array(
        [length * np.sin(angle) / cell_x / config.bev_w, length * np.cos(angle) / cell_y / config.bev_h], np.float64
    )


def rotation_matrix(angle: float, config: UniADConfig) -> np.ndarray:
    """The 2x3 matrix M, float64, that samples prev_bev rotated by `angle` degrees about `config.rotate_center`.

    M maps an output pixel to an input pixel, both measured from the centre of the grid: with output column j and
    row i, x = j - (W-1)/2 and y = i - (H-1)/2; (u, v) = M[:, :2] @ (x, y) + M[:, 2]; the input column is
    u + (W-1)/2 and the row v + (H-1)/2, rounded to the nearest (half to even), zero outside the grid.
    A positive angle turns the image counter-clockwise as seen with rows going down.
    Equal to torchvision.transforms.functional.rotate(..., center=rotate_center) on tensors, which negates the angle
    and inverts the affine map; the translation vanishes where rotate_center is the middle of the grid.
    """
    radians = math.radians(-angle)
    cos, sin = math.cos(radians), math.sin(radians)
    center_x = config.rotate_center[0] - config.bev_w * 0.5
    center_y = config.rotate_center[1] - config.bev_h * 0.5
    return np.array(
        [
            [cos, sin, -cos * center_x - sin * center_y + center_x],
            [-sin, cos, sin * center_x - cos * center_y + center_y],
        ],
        np.float64,
    )


@dataclasses.dataclass(frozen=True)
class SequenceState:
    """What one frame leaves behind for the next. The zeros before the first frame are the original's."""

    scene_token: str | None = None
    prev_pos: tuple[float, float, float] = (0.0, 0.0, 0.0)
    prev_angle: float = 0.0
    timestamp: float = 0.0
    l2g_r_mat: np.ndarray | None = None  # float32 (3,3)
    l2g_t: np.ndarray | None = None  # float32 (3)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """What a run that continues at the next scene needs. The rest is only read within a scene."""
        return {"prev_pos": np.array(self.prev_pos, np.float64), "prev_angle": np.array(self.prev_angle)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> SequenceState:
        x, y, z = arrays["prev_pos"].tolist()
        return cls(prev_pos=(x, y, z), prev_angle=float(arrays["prev_angle"]))


class Sequence:
    """Turns frames, in order, into engine inputs; remembers the last frame.

    `convention` is the upstream release that the weights were trained with: "v1.0.1" filled can_bus[3:7] with four
    times the quaternion's w, "v2.0" has w, x, y, z. At the first frame of a scene the original feeds the position
    and heading deltas to the last frame of the *previous* scene (to zero at the very first frame), although it was
    trained with zeros there; that is the default here too, and `fix_scene_start` feeds the zeros.
    `state` can be read and set: a run that continues at a scene start must restore it, as the quirk reaches across.
    """

    def __init__(self, config: UniADConfig, convention: str, fix_scene_start: bool = False):
        if convention not in CONVENTIONS:
            raise UniADError(f"unknown upstream convention {convention!r}: one of {', '.join(CONVENTIONS)}")
        self.config = config
        self.convention = convention
        self.fix_scene_start = fix_scene_start
        self.state = SequenceState()

    def inputs(self, frame: Frame) -> dict[str, np.ndarray]:
        """The engine's inputs for this frame (names, types and shapes: docs/design.md). Advances the state.

        Raises UniADError where the timestamp does not increase within a scene.
        """
        state = self.state
        has_prev = frame.scene_token == state.scene_token
        if has_prev and frame.timestamp <= state.timestamp:
            raise UniADError(
                f"frame {frame.sample_token}: timestamp {frame.timestamp:.6f} s does not come after the last frame's "
                f"{state.timestamp:.6f} s in scene {frame.scene_token}; frames of a scene must be in time order"
            )
        can_bus = self._can_bus(frame, has_prev)
        inverse = np.linalg.inv(frame.l2g_r_mat)  # in float32, as the original inverts it
        # Without a last frame: no motion. The graph ignores it then, but every input must be finite.
        last_r, last_t = (state.l2g_r_mat, state.l2g_t) if has_prev else (frame.l2g_r_mat, frame.l2g_t)
        # Only the way between the two counts. From here, and not from the map's corner kilometres away, it survives an
        # engine that stores it in float16, and loses less in float32.
        way = np.asarray(last_t, np.float64) - frame.l2g_t
        inputs = {
            "img": frame.img,
            "can_bus": can_bus.astype(np.float32),
            "lidar2img": frame.lidar2img.astype(np.float32),
            "shift": bev_shift(can_bus, self.config).astype(np.float32),
            "rotation": rotation_matrix(can_bus[-1], self.config).astype(np.float32),
            "l2g_r_prev": np.asarray(last_r),
            "l2g_t_prev": way.astype(np.float32),
            "l2g_t": np.zeros(3, np.float32),
            "l2g_r_inv": inverse,
            "time_delta": np.array([frame.timestamp - state.timestamp if has_prev else 0.0], np.float32),
            "command": np.array([frame.command], np.int32),
            "has_prev": np.array([has_prev], np.int32),
        }
        self.state = SequenceState(
            scene_token=frame.scene_token,
            prev_pos=(float(frame.can_bus[0]), float(frame.can_bus[1]), float(frame.can_bus[2])),
            prev_angle=float(frame.can_bus[-1]),
            timestamp=frame.timestamp,
            l2g_r_mat=frame.l2g_r_mat,
            l2g_t=frame.l2g_t,
        )
        return inputs

    def _can_bus(self, frame: Frame, has_prev: bool) -> np.ndarray:
        """can_bus (18) as the network takes it: position and heading degrees relative to the last frame."""
        can_bus = frame.can_bus.copy()
        if self.convention == "v1.0.1":
            can_bus[3:7] = can_bus[3]
        if self.fix_scene_start and not has_prev:
            can_bus[:3] = 0.0
            can_bus[-1] = 0.0
        else:
            can_bus[:3] -= self.state.prev_pos
            can_bus[-1] -= self.state.prev_angle  # degrees, not wrapped: 2 - 357 = -355 is what can_bus_mlp saw
        return can_bus
