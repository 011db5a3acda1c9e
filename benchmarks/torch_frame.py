"""The torch executor as the benchmark times it: everything that does not change between frames is on the device."""

import collections
import time
from collections.abc import Mapping

import numpy as np
import torch
from graph_io import TASKS, input_specs, output_specs, state_specs
from torch.fx.experimental.proxy_tensor import make_fx

from model import load_model
from trtllm import Network, Tensor, net_guard
from trtllm.torch_executor import TORCH, TorchExecutor
from weight import CModel


class _Prepared(TorchExecutor):
    """Makes each constant once: every frame asks for the same ones in the same order. float16 runs channels-last."""

    def __init__(self, device: str, dtype: str):
        super().__init__(device)
        self.channels_last = dtype == "float16"
        self.made: list[torch.Tensor] = []
        self.asked = 0

    def constant(self, array: np.ndarray):
        if self.asked == len(self.made):
            self.made.append(super().constant(array))
        self.asked += 1
        return self.made[self.asked - 1]

    def parameter(self, array: np.ndarray, name: str):
        handle = super().constant(array)
        if self.channels_last and handle.dim() == 4:
            handle = handle.contiguous(memory_format=torch.channels_last)
        return handle

    def conv2d(self, x, weight, *rest):
        if self.channels_last:
            x = Tensor(x.handle.contiguous(memory_format=torch.channels_last), x.dtype, x.shape)
        return super().conv2d(x, weight, *rest)


class TorchFrame:
    """A session (runtime.session.Session, as far as the benchmark needs) on this machine's GPU.

    `compile_mode` None: eager; else the frame is traced into a graph of torch's own operations and compiled.
    """

    def __init__(self, c_model: CModel, dtype: str, compile_mode: str | None = None, device: str = "cuda"):
        self.config, self.convention = c_model.config, c_model.convention
        self.engine_ms = self.latency = 0.0
        self._device = device
        self._model = load_model(c_model, self.config, TASKS)
        self._executor = _Prepared(device, dtype)
        self._network = Network(self._executor, dtype)
        self._inputs, self._outputs = input_specs(self.config), output_specs(self.config)
        self._specs = [*self._inputs, *state_specs(self.config, dtype)]
        self._state = [
            torch.zeros(spec.shape, dtype=TORCH[spec.dtype], device=device) for spec in self._specs[len(self._inputs) :]
        ]
        self._done: collections.deque[dict[str, np.ndarray]] = collections.deque()
        self._run = self._frame
        if compile_mode is not None:
            zeros = [torch.zeros(s.shape, dtype=TORCH[s.dtype], device=device) for s in self._inputs]
            with torch.no_grad():
                self._frame(*zeros, *self._state)  # makes weights and constants, which the trace then refers to
                traced = make_fx(self._frame)(*zeros, *self._state)
            self._run = torch.compile(traced, mode=compile_mode)

    def _frame(self, *handles: torch.Tensor) -> list[torch.Tensor]:
        """Inputs and state to outputs and state."""
        self._executor.asked = 0
        given = {s.name: Tensor(h, s.dtype, s.shape) for s, h in zip(self._specs, handles)}
        with net_guard(self._network):
            outputs, state = self._model(given, given)
        names = [s.name for s in self._specs[len(self._inputs) :]]
        return [*(outputs[s.name].handle for s in self._outputs), *(state[name].handle for name in names)]

    def infer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        began = time.perf_counter()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.no_grad():
            given = [torch.from_numpy(inputs[spec.name]).to(self._device) for spec in self._inputs]
            start.record()
            results = self._run(*given, *self._state)
            end.record()
        count = len(self._outputs)
        self._state = [handle.clone() for handle in results[count:]]  # a compiled graph may reuse its outputs
        arrays = {spec.name: handle.cpu().numpy() for spec, handle in zip(self._outputs, results)}
        torch.cuda.synchronize()
        self.engine_ms = start.elapsed_time(end)
        self.latency = time.perf_counter() - began
        return arrays

    def submit(self, inputs: Mapping[str, np.ndarray]) -> None:
        self._done.append(self.infer(inputs))

    def collect(self) -> dict[str, np.ndarray]:
        return self._done.popleft()
