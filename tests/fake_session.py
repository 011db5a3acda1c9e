"""A session without a network: outputs follow from the inputs and a state as a real engine's do.

As a script it is run.py with this session: `python fake_session.py ARGUMENTS OF run.py` with examples/uniad on
PYTHONPATH. FAKE_SECONDS slows each frame down and FAKE_BREAK=nan spoils the second frame of a scene.
"""

import os
import time

import numpy as np
from frame_factory import SMALL
from graph_io import input_specs, output_specs


class FakeSession:
    """See runtime.session.Session. One more track per frame of a scene; ids count on for ever."""

    def __init__(self, config=SMALL, convention="v2.0"):
        self.config, self.convention = config, convention
        self.broken = os.environ.get("FAKE_BREAK", "")
        self.seconds = float(os.environ.get("FAKE_SECONDS", "0"))
        self.submitted = []
        self.reset()

    def describe(self):
        return {"kind": "fake"}

    def reset(self):
        self.tracks, self.next_id = [], 0

    def get_state(self):
        return {"max_obj_id": np.array([self.next_id], np.int32)}

    def set_state(self, state):
        self.reset()
        self.next_id = int(state["max_obj_id"][0])

    def image_buffer(self):
        return None

    def submit(self, inputs):
        began = time.perf_counter()
        self.submitted.append(self.infer(inputs))
        self.latency = time.perf_counter() - began

    def collect(self):
        return self.submitted.pop(0)

    def infer(self, inputs):
        for spec in input_specs(self.config):
            assert (inputs[spec.name].dtype.name, inputs[spec.name].shape) == (spec.dtype, spec.shape), spec
        assert set(inputs) == {spec.name for spec in input_specs(self.config)}
        time.sleep(self.seconds)
        if not inputs["has_prev"][0]:
            self.tracks = []
        self.tracks.append(self.next_id)
        self.next_id += 1
        # Everything depends on every input and on how many frames this scene had; ids only count.
        seed = abs(hash(tuple(float(inputs[name].astype(np.float64).sum()) for name in sorted(inputs))))
        rng = np.random.default_rng([seed, len(self.tracks)])
        outputs = {}
        for spec in output_specs(self.config):
            values = rng.normal(size=spec.shape) if spec.dtype == "float32" else rng.integers(0, 2, spec.shape)
            outputs[spec.name] = values.astype(spec.dtype)
        live = np.array(self.tracks[-len(outputs["track_ids"]) :], np.int32)
        outputs["track_ids"][:] = -1
        outputs["track_ids"][: len(live)] = live
        outputs["boxes_3d"][len(live) :] = np.nan  # empty rows mean nothing
        outputs["num_dropped"][:] = len(self.tracks) - len(live)
        if self.broken == "nan" and len(self.tracks) == 2:
            outputs["sdc_traj_raw"][3] = np.nan
        return outputs


def open_fake(path, device, dtype, cuda_graph):
    """In place of runtime.session.open_session; processes that are started afresh find it too."""
    return FakeSession()


if __name__ == "__main__":
    import run

    from errors import one_line_errors

    run.open_session = open_fake
    with one_line_errors():
        run.main()
