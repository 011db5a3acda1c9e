"""The session of the torch executor: the network of model.py computed with torch, on the CPU or a CUDA device."""

import collections
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import torch
from graph_io import state_specs

from config import config_from_dict
from model import UniAD
from runtime.session import SessionError
from trtllm import Network, Tensor, net_guard
from trtllm.torch_executor import TORCH, torch_executor


class TorchSession:
    """See runtime.session.Session."""

    _state: dict[str, Tensor]

    def __init__(self, path: pathlib.Path, metadata: Mapping[str, str], device: str, dtype: str):
        if device == "cuda" and not torch.cuda.is_available():
            raise SessionError("--device cuda: torch finds no CUDA device here; use --device cpu")
        try:
            self.config = config_from_dict(json.loads(metadata["config"]))
            self.convention = metadata["convention"]
            self._module = UniAD(self.config, metadata["tasks"].split(","))
            with safetensors.safe_open(path, "numpy") as file:
                self._module.load({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
        except (KeyError, ValueError, OSError, safetensors.SafetensorError) as error:
            raise SessionError(f"{path}: damaged engine ({error}); build it again with builder.py") from error
        self._metadata, self._device = dict(metadata), torch.device(device)
        self._network = Network(torch_executor(device), dtype)
        self.latency = 0.0
        self._done: collections.deque[tuple[dict[str, np.ndarray], float]] = collections.deque()
        self.reset()

    def describe(self) -> dict[str, Any]:
        on_gpu = self._device.type == "cuda"
        return {
            **{key: value for key, value in self._metadata.items() if key != "config"},
            "device": torch.cuda.get_device_name(self._device) if on_gpu else "cpu",
            "dtype": self._network.dtype,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }

    def image_buffer(self) -> np.ndarray | None:
        return None

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.submit(inputs)
        return self.collect()

    def submit(self, inputs: Mapping[str, np.ndarray]) -> None:
        began = time.perf_counter()
        tensors = {name: self._tensor(array) for name, array in inputs.items()}
        with torch.inference_mode(), net_guard(self._network):
            outputs, state = self._module(tensors, self._state)
        self._state = state
        arrays = {name: tensor.handle.cpu().numpy() for name, tensor in outputs.items()}
        self._done.append((arrays, time.perf_counter() - began))

    def collect(self) -> dict[str, np.ndarray]:
        arrays, self.latency = self._done.popleft()
        return arrays

    def _tensor(self, array: np.ndarray) -> Tensor:
        handle = torch.from_numpy(np.ascontiguousarray(array)).to(self._device)
        return Tensor(handle, str(array.dtype), array.shape)

    def reset(self) -> None:
        self._state = {
            name: Tensor(torch.zeros(shape, dtype=TORCH[dtype], device=self._device), dtype, shape)
            for name, dtype, shape, _ in state_specs(self.config, self._network.dtype)
        }

    def get_state(self) -> dict[str, np.ndarray]:
        return {"max_obj_id": self._state["max_obj_id"].handle.cpu().numpy()}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        self.reset()
        self._state["max_obj_id"] = self._tensor(np.array(state["max_obj_id"], np.int32))

    def start_profile(self) -> dict[str, list[float]]:
        raise SessionError("--profile times the layers of a TensorRT engine, and this one is for the torch executor")

    def carried_state(self) -> dict[str, np.ndarray]:
        return {name: tensor.handle.cpu().numpy() for name, tensor in self._state.items()}
