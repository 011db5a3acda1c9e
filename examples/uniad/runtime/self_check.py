"""The check after a build: one frame of the demo drive through the engine, against the torch executor in float32.

Judged are the BEV map and the scores of the detections. What follows from them is shown only: with the random
weights of a recipe it hangs on differences far below the engine's precision (docs/design.md).
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from graph_io import input_specs, state_specs

from config import UniADConfig
from data.frames import Frame
from data.recipe import recipe_frames
from errors import UniADError
from files import UNREADABLE, whole_file
from runtime.sequence import Sequence
from runtime.session import Session

COARSE = 4
ROWS = 7  # every so many rows of the BEV map are kept in a reference
# What float16 costs the torch executor on the CPU with the recipe's weights: 0.0013 and 0.007 on the tiny model, 0.0020
# and 0.067 at full size, where these weights make scores chaotic; an engine may be as far off as three times that. Rows
# of a weight in reverse order, in one place of the tiny model's decoder, give scores 0.06 to 0.27 off.
_BOUNDS = {"float32": {"bev": 1e-3, "scores": 0.02}, "float16": {"bev": 0.02, "scores": 0.2}}


class Finding(NamedTuple):
    """One comparison; `bound` None: shown, not judged."""

    what: str
    value: float
    bound: float | None


def check_frames(config: UniADConfig, count: int) -> Iterator[Frame]:
    """Keyframes of the demo drive, painted coarsely and enlarged: painting them at full size takes a minute each."""
    coarse = COARSE if config.image_height % COARSE == config.image_width % COARSE == 0 else 1
    small = config.replace(image_height=config.image_height // coarse, image_width=config.image_width // coarse)
    scale = np.diag([coarse, coarse, 1.0, 1.0])  # pixels grow with the image
    for frame in recipe_frames(small, count):
        img = frame.img.repeat(coarse, axis=1).repeat(coarse, axis=2)  # (6,H,W,3)
        yield dataclasses.replace(frame, img=img, lidar2img=scale @ frame.lidar2img)


def check_inputs(config: UniADConfig, convention: str) -> dict[str, np.ndarray]:
    """The engine's inputs for the check frame."""
    return Sequence(config, convention).inputs(next(check_frames(config, 1)))


def torch_reference(network: Any, config: UniADConfig, convention: str) -> dict[str, np.ndarray]:
    """Outputs of the check frame and rows of its BEV map, by the torch executor in float32.

    Args:
        network: the model (model.UniAD) with its weights.
    Raises:
        ImportError: torch isn't installed.
    """
    import torch

    from trtllm import Network, Tensor, net_guard
    from trtllm.torch_executor import TORCH, torch_executor

    device = "cuda" if torch.cuda.is_available() else "cpu"
    given = check_inputs(config, convention)
    inputs = {
        name: Tensor(torch.from_numpy(given[name]).to(device), dtype, shape)
        for name, dtype, shape, _ in input_specs(config)
    }
    state = {
        name: Tensor(torch.zeros(shape, dtype=TORCH[dtype], device=device), dtype, shape)
        for name, dtype, shape, _ in state_specs(config, "float32")
    }
    with torch.inference_mode(), net_guard(Network(torch_executor(device), "float32")):
        outputs, new_state = network(inputs, state)
    arrays = {name: tensor.handle.cpu().numpy() for name, tensor in outputs.items()}
    return {**arrays, "prev_bev": new_state["prev_bev"].handle[::ROWS].cpu().numpy()}


def save_reference(path: pathlib.Path, reference: Mapping[str, np.ndarray], checkpoint: str) -> None:
    """Keep a reference for machines without torch. `checkpoint` is the SHA-256 that it belongs to."""
    with whole_file(path) as part, open(part, "wb") as file:
        np.savez_compressed(file, checkpoint=np.array(checkpoint), **reference)


def load_reference(path: pathlib.Path, checkpoint: str) -> dict[str, np.ndarray]:
    """Read a reference. Raises UniADError where it is unreadable or of another checkpoint."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except UNREADABLE as error:
        raise UniADError(f"{path}: no readable reference ({error}); builder.py --backend torch makes it") from error
    if str(arrays.pop("checkpoint", "")) != checkpoint:
        raise UniADError(f"{path}: the reference is of another checkpoint; make it again with --backend torch")
    return arrays


def compare(
    outputs: Mapping[str, np.ndarray], bev: np.ndarray, reference: Mapping[str, np.ndarray], dtype: str
) -> list[Finding]:
    """Findings for an engine of network type `dtype`: its outputs of the check frame and its BEV map (B,D)."""
    bounds = _BOUNDS[dtype]
    expected = reference["prev_bev"].astype(np.float64)  # (B/ROWS,D)
    error = float(np.linalg.norm(bev[::ROWS] - expected) / np.linalg.norm(expected))
    findings = [Finding("BEV map, relative error", error, bounds["bev"])]
    if "scores_3d_det" in outputs:
        error = float(np.abs(outputs["scores_3d_det"] - reference["scores_3d_det"]).max())
        findings.append(Finding("detection scores, largest difference", error, bounds["scores"]))
        tracks = [int((given["track_ids"] >= 0).sum()) for given in (outputs, reference)]
        findings.append(Finding("tracks, difference in number", float(abs(tracks[0] - tracks[1])), None))
    for name, what in (("map_drivable", "drivable area"), ("occ_seg", "occupancy")):
        if name in outputs:
            error = float(((outputs[name] > 0) != (reference[name] > 0)).mean())
            findings.append(Finding(f"{what}, share of cells that differ", error, None))
    if "sdc_traj_raw" in outputs:
        error = float(np.abs(outputs["sdc_traj_raw"] - reference["sdc_traj_raw"]).max())
        findings.append(Finding("plan, largest difference in metres", error, None))
    return findings


def check_engine(session: Session, reference: Mapping[str, np.ndarray], dtype: str) -> list[Finding]:
    """Run the check frame and compare. Raises UniADError where a bound is exceeded."""
    outputs = session.infer(check_inputs(session.config, session.convention))
    findings = compare(outputs, session.carried_state()["prev_bev"].astype(np.float64), reference, dtype)
    for what, value, bound in findings:
        if bound is not None and not value <= bound:  # NaN fails too
            found = f"{what} {value:.2g}, not below {bound:g}"
            raise UniADError(f"nothing written: the engine fails its check: {found}")
    return findings
