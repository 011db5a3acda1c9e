"""The full-size model with the recipe's weights on its two recorded frames, and what the recordings allow to compare.

Of a big tensor the recordings hold every k-th element: `<key>@sample`, with k in `<key>@meta` and the whole tensor's
shape in `<key>@shape`.
"""

import csv
import dataclasses
import functools
import os
import resource
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import torch
from network_support import recipe, torch_network
from support import golden, max_error, shared_path
from test_model import as_tensor, empty_state

from config import load_config
from data.frames import Frame
from model import UniAD
from runtime.sequence import Sequence
from trtllm import Tensor

Arrays = dict[str, np.ndarray]
CONFIG = load_config("base_e2e")
TRACK_STATE = (
    "query",
    "ref_pts",
    "pred_boxes",
    "obj_idxes",
    "disappear_time",
    "mem_bank",
    "mem_padding_mask",
    "save_period",
)
ANCHORS = "motion_head.kmeans_anchors"
# What is compared of our own run: up to the BEV, straight from it, and after chaos (see test_full.py).
IMAGE_SIDE = [
    *(f"backbone.C{i}" for i in (3, 4, 5)),
    *(f"fpn.{i}" for i in range(4)),
    "bev.query_plus_canbus",
    "bev.prev_bev_rotated",
    "bev.mask",
    *(f"bev.layer{i}" for i in range(6)),
    "bev.out",
]
FROM_BEV = [
    "seg.memory",
    "seg.memory_pos",
    "seg.query_pos",
    "seg.stuff.mask",
    *(f"seg.stuff.query{i}" for i in range(6)),
    "occ.bev_sampled",
    "occ.base_state",
    "plan.bev_feat",
]
CHAOTIC = [
    *(f"track.{name}" for name in ("query_feats", "inter_references", "all_cls_scores", "all_bbox_preds")),
    *(f"tracker.{name}" for name in ("scores", "pred_boxes", "ref_pts")),
    *(f"sdc.{name}" for name in ("boxes_3d", "scores", "embedding")),
    "seg.query",
    "seg.outputs_coords",
    "plan.query_in",
    "plan.query_out",
    "plan.sdc_traj_before_optim",
]
WHOLE = ("bev.out", "seg.memory", "fpn.0", "fpn.1", "fpn.2", "fpn.3")  # kept whole, as inputs of single parts


class RecipeWeights(Mapping[str, np.ndarray]):
    """The weights behind the recordings by key, each made when it is asked for: 0.5 GB never lies here twice."""

    def __init__(self) -> None:
        with open(shared_path("golden", "base_e2e_manifest.tsv"), newline="") as file:
            rows = [row for row in csv.DictReader(file, delimiter="\t") if row["shape"] != "scalar"]
        self._shapes = {row["key"]: tuple(int(d) for d in row["shape"].split("x")) for row in rows}

    def __getitem__(self, key: str) -> np.ndarray:
        if key == ANCHORS:
            return np.load(shared_path("golden", "motion_anchors_standin.npy")).astype(np.float32)
        return recipe("recipe_weights").make_tensor(key, self._shapes[key], cls_bias=-6.3)

    def __contains__(self, key: object) -> bool:
        return key == ANCHORS or key in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter((*self._shapes, ANCHORS))

    def __len__(self) -> int:
        return len(self._shapes) + 1


@functools.cache
def full_model() -> UniAD:
    model = UniAD(CONFIG)
    model.load(RecipeWeights())
    return model


@functools.cache
def recorded(index: int) -> Arrays:
    return golden("full", f"full_frame_{index}.npz")


@functools.cache
def noise() -> dict[tuple[str, int], tuple[float, float]]:
    """By recorded key and frame: the original's difference to itself, and the tensor's largest value or size."""
    with open(shared_path("golden", "full", "noise.tsv"), newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))[1:]
    return {(row[0].split("#")[0], int(row[1])): (float(row[2]), float(row[3])) for row in rows}


def allowed(key: str, index: int, factor: float) -> float:
    """factor x noise.tsv's row; one float32 step of the largest value where that is larger."""
    key = f"{key}@sample" if (f"{key}@sample", index) in noise() else key
    floor, largest = noise()[key, index]
    return factor * max(floor, largest * float(np.finfo(np.float32).eps))


def leading(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The first rows of each axis, as many as `shape` has: our padded slots come last. Axes of 1 may be squeezed."""
    bare = [size for size in shape if size > 1]
    array = array.reshape([size for size in array.shape if size > 1])
    if array.ndim != len(bare):
        return array
    return array[tuple(slice(size) for size in bare)]


def expected_of(frame: Arrays, key: str) -> np.ndarray:
    """The recorded elements of a tensor, flat."""
    return frame[f"{key}@sample"] if f"{key}@sample" in frame else frame[key].reshape(-1)


def matching(frame: Arrays, key: str, array: np.ndarray) -> np.ndarray:
    """Those elements of our tensor that were recorded, flat."""
    shape = tuple(frame[f"{key}@shape"]) if f"{key}@shape" in frame else frame[key].shape
    ours = leading(array, shape)
    if ours.size != np.prod(shape):
        raise ValueError(f"{key}: {array.shape} for {shape}")
    return ours.reshape(-1)[:: int(frame[f"{key}@meta"][0]) if f"{key}@meta" in frame else 1]


def difference(ours: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference; of integers and masks, how many differ."""
    if expected.dtype.kind in "bi":
        return float(np.count_nonzero(ours != expected))
    return max_error(ours, expected)


class Samples(dict):
    """Taps of a frame: of the tensors named in `keys` the recorded elements, all else is let go at once.

    A run's memory stays its own that way. `whole` holds the tensors that single parts take as inputs.
    """

    def __init__(self, frame: Arrays, keys: Collection[str]):
        super().__init__()
        self._frame, self._keys = frame, keys
        self.whole: Arrays = {}

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        if name in WHOLE:
            self.whole[name] = tensor.handle.numpy()
        if name in self._keys and (name in self._frame or f"{name}@sample" in self._frame):
            super().__setitem__(name, matching(self._frame, name, tensor.handle.numpy()).copy())


@dataclasses.dataclass(frozen=True)
class FrameRun:
    """One frame of our own run."""

    inputs: dict[str, Tensor]
    outputs: Arrays
    state: dict[str, Tensor]
    samples: Samples


@functools.cache
def own_runs() -> list[FrameRun]:
    """Both recorded frames one after another, with the state that our own graph carries."""
    torch.set_num_threads(os.cpu_count() or 1)  # conftest.py leaves one, for the default suite's two processes
    images = recipe("recipe_inputs").sequence(CONFIG.image_height, CONFIG.image_width, frames=2)
    sequence, state, runs = Sequence(CONFIG, "v2.0"), empty_state(CONFIG), []
    for index, raw in enumerate(images):
        assert raw["img_u8"].sum(dtype=np.int64) == recorded(index)["in.img_sum_u8"], "the recipe's images have changed"
        names = ("can_bus", "lidar2img", "l2g_r_mat", "l2g_t", "timestamp", "command", "scene_token")
        frame = Frame(img=raw["img_u8"], sample_token=str(index), **{name: raw[name] for name in names})
        inputs = {name: as_tensor(array) for name, array in sequence.inputs(frame).items()}
        with torch_network() as network:
            network.taps = Samples(recorded(index), {*IMAGE_SIDE, *FROM_BEV, *CHAOTIC, "tracker.obj_idxes"})
            outputs, state = full_model()(inputs, state)
        runs.append(FrameRun(inputs, {n: t.handle.numpy() for n, t in outputs.items()}, state, network.taps))
    return runs


def peak_memory() -> float:
    """The largest resident memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
