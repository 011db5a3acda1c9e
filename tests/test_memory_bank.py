"""The memory bank against the recorded operator and frames, and its empty rows."""

import numpy as np
import pytest
from network_support import const, load_op_weights, torch_network, value
from support import assert_close, assert_differs, golden, noise_floor
from track_support import Arrays, fill_rows, tiny_config, tiny_frame, tiny_top_level

from layers.memory_bank import MemoryBank

FIELDS = ("output_embedding", "mem_bank", "mem_padding_mask", "save_period")
FACTOR = 1 / 20  # the floor holds the noise of the whole network; here the inputs are the recorded ones


def run(module: MemoryBank, inputs: Arrays) -> Arrays:
    """Output arrays by name, for inputs named as in the recorded files."""
    with torch_network():
        out = module(
            const(inputs["output_embedding"]),
            const(inputs["scores"]),
            const(inputs["mem_bank"]),
            const(inputs["mem_padding_mask"]),
            const(inputs["save_period"].astype(np.int32)),
        )
        return {name: value(tensor) for name, tensor in zip(FIELDS, out)}


def part(arrays: Arrays, prefix: str) -> Arrays:
    return {key[len(prefix) :]: array for key, array in arrays.items() if key.startswith(prefix)}


def test_op():
    arrays = golden("ops", "memory_bank.npz")
    module = load_op_weights(MemoryBank(tiny_config()), arrays)
    inputs, expected = part(arrays, "in."), part(arrays, "out.")
    out = run(module, inputs)
    for name in FIELDS:
        assert_close(out[name], expected[name], 5e-6 if out[name].dtype == np.float32 else 0, name)
    oldest_first = inputs | {"mem_padding_mask": inputs["mem_padding_mask"][:, ::-1].copy()}
    assert_differs(run(module, oldest_first)["output_embedding"], expected["output_embedding"], 1e-2, "oldest first")
    always = inputs | {"save_period": np.zeros(9)}
    assert_differs(run(module, always)["mem_bank"], expected["mem_bank"], 1e-2, "saved every frame")


@pytest.mark.parametrize("index", [0, 1, 3, 6])
def test_recorded_frames(index):
    frame, floor = tiny_frame(index), noise_floor()
    inputs, expected = part(frame, "membank.in."), part(frame, "membank.out.")
    count = len(inputs["scores"])
    padded = {name: fill_rows(inputs[name], count + 4) for name in (*FIELDS, "scores")}
    out = run(tiny_top_level().memory_bank, padded)
    for name in FIELDS:
        tolerance = FACTOR * floor[f"membank.out.{name}"] if out[name].dtype == np.float32 else 0
        assert_close(out[name][:count], expected[name], tolerance, name)


def test_saved_every_fourth_frame_at_the_end():
    """[T] period 3 counts down before it may save again; only the newest slot of a new track counts."""
    config = tiny_config()
    rng = np.random.default_rng(0)
    state = {"mem_bank": np.zeros((2, 4, config.embed_dims), np.float32), "mem_padding_mask": np.ones((2, 4), bool),
             "save_period": np.zeros(2)}  # fmt: skip
    filled = []
    for _ in range(6):
        embedding = rng.standard_normal((2, config.embed_dims)).astype(np.float32)
        inputs = state | {"output_embedding": embedding, "scores": np.array([0.5, 0.0], np.float32)}
        out = run(tiny_top_level().memory_bank, inputs)
        filled.append((~out["mem_padding_mask"]).astype(int).tolist())
        unchanged = np.array_equal(out["output_embedding"][0], embedding[0])
        assert unchanged == state["mem_padding_mask"][0, -1], "a track with an empty newest slot stays as it is"
        assert np.array_equal(out["output_embedding"][1], embedding[1]), "score 0: an empty row, never touched"
        state = {name: out[name] for name in state}
    assert [rows[0] for rows in filled] == [[0, 0, 0, 1]] * 4 + [[0, 0, 1, 1]] * 2
    assert [rows[1] for rows in filled] == [[0, 0, 0, 0]] * 6
    assert np.array_equal(state["mem_bank"][1], np.zeros((4, config.embed_dims)))
