"""What float16 costs the torch executor in the recorded tiny sequence: where check_session.py's bounds come from.

    python tests/gpu/float16_noise.py [--draws 8]

Needs torch and no GPU; about a minute a draw. float16 rounds each weight to one of its neighbours, and each sum in some
order: another engine rounds otherwise, with errors of its own. So every draw but the first moves the weights by less
than half of what float16 can tell apart before they are rounded, and the worst error of all draws and frames counts.
"""

import argparse
from collections.abc import Mapping

import golden_frames as golden
import numpy as np
import torch
from check_session import engine_inputs, worst_errors
from graph_io import state_specs

from model import load_model
from trtllm import Network, Tensor, net_guard
from trtllm.torch_executor import TORCH, torch_executor
from weight import CModel

HALF_STEP = 2.0**-12  # of a number in float16, relative: half of the distance to its neighbours, at least


class Float16Session:
    """The torch executor in float16 on the CPU, as far as check_session.worst_errors needs a session."""

    def __init__(self, c_model: CModel):
        self.config = c_model.config
        self._module = load_model(c_model, self.config)
        self._network = Network(torch_executor("cpu"), "float16")
        self.reset()

    def reset(self) -> None:
        specs = state_specs(self.config, "float16")
        self._state = {s.name: Tensor(torch.zeros(s.shape, dtype=TORCH[s.dtype]), s.dtype, s.shape) for s in specs}

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        tensors = {n: Tensor(torch.from_numpy(a), str(a.dtype), a.shape) for n, a in arrays.items()}
        with torch.inference_mode(), net_guard(self._network):
            outputs, self._state = self._module(tensors, self._state)
        return {name: tensor.handle.numpy() for name, tensor in outputs.items()}

    def carried_state(self) -> dict[str, np.ndarray]:
        return {name: tensor.handle.numpy() for name, tensor in self._state.items()}


def moved(c_model: CModel, seed: int) -> CModel:
    """The model with every weight moved by up to HALF_STEP of itself; seed 0: as it is."""
    if not seed:
        return c_model
    draw, tensors = np.random.default_rng(seed), {}
    for key, array in c_model.tensors.items():
        by = HALF_STEP * draw.uniform(-1, 1, array.shape)
        tensors[key] = (array * (1 + by)).astype(array.dtype) if array.dtype.kind == "f" else array
    return CModel(c_model.config, c_model.convention, c_model.source, tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=8)
    count = parser.parse_args().draws
    c_model = golden.recipe_c_model(golden.TINY)
    inputs = engine_inputs(c_model, golden.frames(golden.TINY, 8))
    recordings = [golden.read_recording(golden.GOLDEN / "tiny" / f"frame_{i}.npz") for i in range(8)]
    draws = []
    for seed in range(count):
        errors, wrong = worst_errors(Float16Session(moved(c_model, seed)), inputs, recordings, exact=False)
        draws.append(errors)
        print(f"draw {seed}: ids and life cycle {'; '.join(wrong) or 'equal'}", flush=True)
    for name in draws[0]:
        values = [errors[name] for errors in draws]
        print(f"{name:16} {max(values):.2g}  of " + " ".join(f"{value:.2g}" for value in values))


if __name__ == "__main__":
    main()
