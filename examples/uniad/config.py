"""Model configuration: every size of the network, read from a data file in `configs/`.

The field names follow the configuration files of the original (OpenDriveLab/UniAD,
projects/configs/stage2_e2e/base_e2e.py); what is a constant of the published method (thresholds, ranges)
is a field too, so that no layer hard-wires it.
"""

import dataclasses
import json
import pathlib

from errors import UniADError

# Upstream releases whose box and CAN bus conventions weights may follow (docs/fidelity.md).
CONVENTIONS = ("v1.0.1", "v2.0")
CONFIG_DIR = pathlib.Path(__file__).resolve().parent / "configs"


class ConfigError(UniADError):
    """A configuration is missing, malformed or inconsistent."""


@dataclasses.dataclass(frozen=True)
class UniADConfig:
    """Sizes and constants of one UniAD model. Lengths in metres, angles in radians, times in seconds."""

    name: str

    # Cameras: six images, FRONT, FRONT_RIGHT, FRONT_LEFT, BACK, BACK_LEFT, BACK_RIGHT.
    num_cams: int
    image_height: int  # rows of one image as the engine takes it, before padding
    image_width: int
    image_scale: float | None  # raw image -> engine image; None: each axis is stretched to the engine's size
    pad_divisor: int  # images are zero-padded at the bottom and right to a multiple of this
    image_mean: tuple[float, ...]  # BGR; std is 1
    class_names: tuple[str, ...]

    # img_backbone, img_neck
    backbone_depth: int
    backbone_base_channels: int
    backbone_stage_with_dcn: tuple[bool, ...]
    fpn_num_outs: int

    # Bird's-eye view and shared widths
    embed_dims: int
    num_heads: int
    feedforward_channels: int
    pc_range: tuple[float, ...]  # x0 y0 z0 x1 y1 z1
    bev_h: int
    bev_w: int
    rotate_center: tuple[int, int]
    encoder_num_layers: int
    num_points_in_pillar: int
    sca_num_points: int
    num_points: int  # sampling points per level of every other deformable attention

    # Tracking
    num_query: int  # detection queries; one ego query is appended at index num_query
    num_classes: int
    decoder_num_layers: int
    past_steps: int
    fut_steps: int
    score_thresh: float
    filter_score_thresh: float
    miss_tolerance: int
    memory_bank_len: int
    memory_bank_score_thresh: float
    memory_bank_save_period: int
    post_center_range: tuple[float, ...]
    max_num: int  # most boxes in one decoded list
    max_tracks: int  # slots of carried tracks; a build option

    # seg_head (map)
    seg_num_query: int
    seg_encoder_num_layers: int
    seg_decoder_num_layers: int
    seg_num_levels: int  # 4: the flat-buffer quirk of the released weights, 1: ordinary; read off the checkpoint
    seg_things_mask_layers: int
    seg_stuff_mask_layers: int
    num_things_classes: int
    num_stuff_classes: int
    canvas_size: tuple[int, int]
    seg_max_num: int
    seg_mask_quality_thresh: float

    # motion_head
    motion_num_layers: int
    predict_steps: int
    predict_modes: int
    group_id_list: tuple[tuple[int, ...], ...]
    vehicle_id_list: tuple[int, ...]

    # occ_head
    occ_grid: tuple[float, float, float]  # lower edge, upper edge, cell, the same in x and y
    occ_num_blocks: int
    occ_feedforward_channels: int
    occ_bev_proj_nlayers: int
    occ_attn_mask_thresh: float
    occ_test_seg_thresh: float

    # planning_head
    planning_steps: int

    @property
    def padded_height(self) -> int:
        return -(-self.image_height // self.pad_divisor) * self.pad_divisor

    @property
    def padded_width(self) -> int:
        return -(-self.image_width // self.pad_divisor) * self.pad_divisor

    @property
    def num_fresh(self) -> int:
        """Fresh queries of every frame: the detection queries and, last, the ego query."""
        return self.num_query + 1

    @property
    def occ_size(self) -> int:
        lower, upper, cell = self.occ_grid
        return round((upper - lower) / cell)

    @property
    def occ_frames(self) -> int:
        """Occupancy frames that are output: now and four half-second steps."""
        return 5

    def replace(self, **changes) -> "UniADConfig":
        """A copy with some fields changed (a build option, or what a checkpoint showed)."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)


def _freeze(value):
    return tuple(_freeze(v) for v in value) if isinstance(value, list) else value


def config_from_dict(values: dict) -> UniADConfig:
    """Build a configuration from parsed JSON. Raises ConfigError naming missing and unknown fields."""
    if not isinstance(values, dict):
        raise ConfigError("a model configuration is a JSON object")
    fields = {f.name for f in dataclasses.fields(UniADConfig)}
    missing, unknown = sorted(fields - set(values)), sorted(set(values) - fields)
    if missing or unknown:
        raise ConfigError(f"model configuration: missing fields {missing}, unknown fields {unknown}")
    return UniADConfig(**{k: _freeze(v) for k, v in values.items()})


def load_config(name_or_path: str) -> UniADConfig:
    """Read `configs/<name>.json`, or the JSON file at a path. Raises ConfigError."""
    path = pathlib.Path(name_or_path)
    if path.suffix != ".json":
        path = CONFIG_DIR / f"{name_or_path}.json"
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        names = sorted(p.stem for p in CONFIG_DIR.glob("*.json"))
        raise ConfigError(f"no model configuration {name_or_path!r}: give one of {names} or a .json file") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from error
    return config_from_dict(values)
