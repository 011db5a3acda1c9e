"""Query interaction against the recorded operator and frames, and its empty rows."""

import numpy as np
import pytest
from network_support import const, load_op_weights, torch_network, value
from support import assert_close, assert_differs, golden, noise_floor
from track_support import fill_rows, tiny_config, tiny_frame, tiny_top_level

from layers.query_interaction import QueryInteractionModule

FACTOR = 1 / 20  # the floor holds the noise of the whole network; here the inputs are the recorded ones


def run(module, query, embedding, empty):
    with torch_network():
        return value(module(const(query), const(embedding), const(empty)))


def test_op():
    arrays = golden("ops", "qim.npz")
    module = load_op_weights(QueryInteractionModule(tiny_config()), arrays)
    kept = arrays["in.obj_idxes"] >= 0
    query, embedding, expected = arrays["in.query"], arrays["in.output_embedding"], arrays["out.active_query"]
    out = run(module, query, embedding, ~kept)
    assert_close(out[kept], expected, 5e-6, "kept rows among others")
    assert_close(run(module, query[kept], embedding[kept], ~kept[kept]), expected, 5e-6, "kept rows alone")
    assert_differs(run(module, query, embedding, np.zeros_like(kept))[kept], expected, 1e-2, "all rows seen")


@pytest.mark.parametrize("index", [0, 1, 3, 6])
def test_recorded_frames(index):
    frame = tiny_frame(index)
    query, embedding = frame["membank.in.query"], frame["membank.out.output_embedding"]
    count = len(query)
    empty = np.arange(count + 5) >= count
    module, tolerance = tiny_top_level().query_interact, FACTOR * noise_floor()["carried.query"]
    out = run(module, fill_rows(query, count + 5), fill_rows(embedding, count + 5), empty)
    assert_close(out[:count], frame["carried.query"], tolerance, "carried.query")
    before = run(module, query, frame["membank.in.output_embedding"], empty[:count])
    if not frame["membank.in.mem_padding_mask"].all():
        assert_differs(before, frame["carried.query"], tolerance, "embedding before the memory bank")


def test_no_track_at_all():
    config = tiny_config()
    zeros = np.zeros((3, config.embed_dims), np.float32)
    out = run(tiny_top_level().query_interact, np.concatenate([zeros, zeros], 1), zeros, np.ones(3, bool))
    assert np.isfinite(out).all()
