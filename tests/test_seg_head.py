"""Map head: attention operators, recorded tiny frames for both numbers of levels, and the merging of masks."""

import functools

import numpy as np
import pytest
import torch
from network_support import const, load_op_weights, tiny_weights, torch_network, value
from op_references import merge_by_loop
from support import assert_close, assert_differs, golden, noise_floor

from config import load_config
from layers.basic import attend_memory
from layers.deformable_attention import MultiScaleDeformableAttention
from layers.seg_head import SegHead
from layers.seg_merge import merge_masks
from layers.seg_transformer import cell_centres, sine_positional_encoding

FACTOR = 4  # the recorded input is exact, so only rounding inside the head is left
OP_ATOL = 1e-5  # values reach 10; measured 3e-6
FRAMES = [0, 1, 3, 6]


@functools.cache
def head(levels: int) -> SegHead:
    module = SegHead(load_config("tiny_e2e").replace(seg_num_levels=levels))
    module.load(tiny_weights("seg_head.", {4: "tiny/tiny_manifest.tsv", 1: "tiny_segL1/manifest.tsv"}[levels]))
    return module


def run(bev: np.ndarray, levels: int = 4, dtype: str = "float32", with_map: bool = True):
    """The head's outputs and its recorded intermediates, all by name."""
    with torch_network(dtype) as network:
        query, query_pos, memory = head(levels)(const(bev, dtype))
        outputs = {"lane_query": query, "lane_query_pos": query_pos}
        if with_map:
            outputs |= head(levels).map_outputs(memory, query)
        return tuple({name: value(t) for name, t in tensors.items()} for tensors in (outputs, network.taps))


@pytest.mark.parametrize("length", [40, 2300])  # the second in four parts
def test_attention_without_keys(length):
    """attend_memory is attention to the projected memory, whatever the keys' bias."""
    rng, heads, queries, width = np.random.default_rng(9), 4, 3, 32
    query = rng.standard_normal((heads, queries, width // heads)).astype(np.float32)
    memory = rng.standard_normal((length, width)).astype(np.float32)
    key_weight, value_weight = (rng.standard_normal((2, width, width)) / width**0.5).astype(np.float32)
    key_bias, value_bias = rng.standard_normal((2, width)).astype(np.float32)
    q, m, wk, wv, bk, bv = (
        torch.tensor(a, dtype=torch.float64) for a in (query, memory, key_weight, value_weight, key_bias, value_bias)
    )
    key, values = ((m @ w.T + b).view(length, heads, -1).transpose(0, 1) for w, b in ((wk, bk), (wv, bv)))
    expected = torch.nn.functional.scaled_dot_product_attention(q, key, values)  # (heads,queries,width/heads)
    expected = expected.transpose(0, 1).reshape(queries, width).numpy()
    with torch_network():
        weights = [const(a) for a in (key_weight, value_weight, value_bias)]
        actual = value(attend_memory(const(query), const(memory), *weights))
        swapped = value(attend_memory(const(query), const(memory), weights[1], weights[0], weights[2]))
    assert_close(actual, expected, OP_ATOL, "attention to a memory")
    assert_differs(swapped, expected, 0.1, "keys and values exchanged")


@pytest.mark.parametrize("levels", [1, 4])
def test_deformable_attention(levels):
    arrays = golden("ops", f"seg_deform_attn_L{levels}.npz")
    height, width = arrays["bev_hw"].tolist()
    attention = load_op_weights(MultiScaleDeformableAttention(128, 8, levels, 4), arrays)
    query, query_pos = arrays["query"][:, 0], arrays["query_pos"][:, 0]
    dec_query = arrays["dec_query"][:, 0]
    reference, dec_reference = arrays["reference_points"][0, :, 0], arrays["dec_reference_points"][0, :, 0]
    assert_close(cell_centres(height, width), reference, 1e-6, "cell centres")

    def attend(query, query_pos, value_, reference):
        with torch_network():
            tensors = [const(x) for x in (query, query_pos, value_, reference)]
            return value(tensors[0] + attention(*tensors, (height, width)))

    out = attend(query, query_pos, query, reference)
    assert_close(out, arrays["out"][:, 0], OP_ATOL, "encoder")
    dec_value = arrays["dec_value"][:, 0]
    out = attend(dec_query, np.zeros_like(dec_query), dec_value, dec_reference)
    assert_close(out, arrays["dec_out"][:, 0], OP_ATOL, "decoder")
    broken = dec_reference.copy()
    broken[:, 2:] *= 1.01  # width and height scale the offsets
    out = attend(dec_query, np.zeros_like(dec_query), dec_value, broken)
    assert_differs(out, arrays["dec_out"][:, 0], OP_ATOL, "decoder, other box size")


def test_flat_buffer_rule_is_not_ordinary_attention():
    """Four configured levels read as one level of the same query give other numbers than recorded."""
    arrays = golden("ops", "seg_deform_attn_L4.npz")
    own = {key: array for key, array in arrays.items() if key.startswith("w.")}
    for key in own:
        if "sampling_offsets" in key or "attention_weights" in key:
            rows = own[key].reshape(8, 4, -1, *own[key].shape[1:])[:, 0]  # level 0 of each head
            own[key] = rows.reshape(-1, *own[key].shape[1:])
    attention = load_op_weights(MultiScaleDeformableAttention(128, 8, 1, 4), own)
    query, query_pos = arrays["query"][:, 0], arrays["query_pos"][:, 0]
    with torch_network():
        reference = const(arrays["reference_points"][0, :, 0])
        out = attention(const(query), const(query_pos), const(query), reference, tuple(arrays["bev_hw"]))
        out = value(const(query) + out)
    assert_differs(out, arrays["out"][:, 0], 0.1, "ordinary attention")


def test_sine_positional_encoding():
    recorded = golden("ops", "pos_encodings.npz")["sine_out"][0]  # (128,20,20), channel first
    ours = sine_positional_encoding(20, 20, 64).reshape(20, 20, 128).transpose(2, 0, 1)
    assert_close(ours, recorded, 1e-6)
    assert_differs(np.roll(ours, 64, axis=0), recorded, 1e-6, "x before y")


def compare(taps: dict[str, np.ndarray], frame: dict[str, np.ndarray], atol: dict[str, float]) -> None:
    """Recorded tensors against ours; only dimensions of length 1 may differ."""
    for key, tolerance in atol.items():
        assert [d for d in frame[key].shape if d != 1] == [d for d in taps[key].shape if d != 1], key
        assert_close(taps[key].reshape(frame[key].shape), frame[key], tolerance, key)


# Twice what the one-level recording's frame 0 differs from the same calculation in float64: it has no noise file.
ONE_LEVEL_ATOL = {"seg.memory": 8.4e-6, "seg.query": 7.4e-5, "seg.query_pos": 0.0, "seg.outputs_coords": 3.8e-6}
TRANSFORMER_KEYS = ("seg.memory", "seg.query", "seg.query_pos", "seg.outputs_coords")
MASK_KEYS = ("seg.things.mask", "seg.stuff.mask", "seg.res.score_list") + tuple(
    f"seg.{kind}.query{layer}" for kind in ("things", "stuff") for layer in (0, 1)
)


@pytest.mark.parametrize("index", FRAMES)
def test_recorded_frames(index):
    frame = golden("tiny", f"frame_{index}.npz")
    outputs, taps = run(frame["bev.out"][0])
    floor = noise_floor()
    compare(taps, frame, {key: FACTOR * floor[key] for key in (*TRANSFORMER_KEYS, *MASK_KEYS)})
    if index == 0:  # recorded there only, as it is a constant
        compare(taps, frame, {"seg.memory_pos": 1e-6})
    logits_atol = FACTOR * floor["seg.outputs_classes"]
    assert_close(taps["seg.outputs_classes.last"], frame["seg.outputs_classes"][-1, 0], logits_atol)
    scores = taps["seg.res.scores"]
    assert_close(scores, frame["seg.res.bbox"][:, 4], 4e-6, "scores")  # measured 1.4e-6
    apart = np.abs(np.diff(scores, prepend=2.0, append=-1.0)) > 1e-5
    clear = apart[:-1] & apart[1:]  # not a near-tie with a neighbour
    np.testing.assert_array_equal(taps["seg.res.labels"][clear], frame["seg.res.labels"][clear])
    assert clear.sum() > 50
    np.testing.assert_array_equal(outputs["map_drivable"], frame["seg.res.drivable"])
    np.testing.assert_array_equal(outputs["map_lane"], frame["seg.res.lane"])
    assert_close(outputs["map_lane_score"], frame["seg.res.lane_score"], FACTOR * floor["seg.res.lane_score"])
    assert {name: array.dtype.name for name, array in outputs.items() if name.startswith("map_")} == {
        "map_drivable": "int32",
        "map_lane": "int32",
        "map_lane_score": "float32",
    }


@pytest.mark.parametrize("index", [0, 1])
def test_recorded_frames_with_one_level(index):
    frame = golden("tiny_segL1", f"frame_{index}.npz")
    four = golden("tiny", f"frame_{index}.npz")  # the map head does not influence the BEV, as equal tracks show
    tracks = "active.track_query_embeddings"
    np.testing.assert_array_equal(frame[tracks], four[tracks])
    outputs, taps = run(four["bev.out"][0], levels=1)
    compare(taps, frame, ONE_LEVEL_ATOL)
    assert outputs["map_drivable"].shape == (40, 40)
    assert_differs(taps["seg.query"], four["seg.query"][0], ONE_LEVEL_ATOL["seg.query"], "four levels' recording")


def test_a_wrong_input_is_seen():
    frame = golden("tiny", "frame_1.npz")
    transposed = frame["bev.out"][0].reshape(40, 40, -1).transpose(1, 0, 2).reshape(1600, -1)
    outputs, taps = run(transposed)
    assert_differs(taps["seg.memory"], frame["seg.memory"][0], FACTOR * noise_floor()["seg.memory"])
    assert (outputs["map_lane"] != frame["seg.res.lane"]).any()


def test_without_the_map():
    """The lane queries do not need the mask decoders, and are the same without."""
    bev = golden("tiny", "frame_1.npz")["bev.out"][0]
    outputs, taps = run(bev, with_map=False)
    whole, _ = run(bev)
    assert set(outputs) == {"lane_query", "lane_query_pos"}
    assert not any("mask" in key or "res" in key for key in taps)
    for name, array in outputs.items():
        np.testing.assert_array_equal(array, whole[name])


def test_float16():
    """The types agree in a float16 network, and rounding stays rounding: 2 layers of values up to 5, 10 bits."""
    frame = golden("tiny", "frame_1.npz")
    outputs, _ = run(frame["bev.out"][0], dtype="float16")
    assert outputs["lane_query"].dtype == np.float16
    assert outputs["map_lane_score"].dtype == np.float32
    assert_close(outputs["lane_query"], frame["seg.query"][0], 0.05)
    assert (outputs["map_drivable"] != frame["seg.res.drivable"]).mean() < 0.01


def overlapping_masks(seed: int):
    """60 rectangles of all classes on 30 x 30 pixels, some weak, some empty, with exact 2/5 overlaps among them."""
    rng = np.random.default_rng(seed)
    masks = rng.uniform(0.0, 0.5, (60, 30, 30)).astype(np.float32)
    for mask in masks[3:]:
        (y, x), (h, w) = rng.integers(0, 25, 2), rng.integers(2, 12, 2)
        mask[y : y + h, x : x + w] += rng.uniform(0.4, 2.0)
    scores = rng.uniform(0.05, 1.0, 60).astype(np.float32)
    labels = rng.integers(0, 3, 60)
    masks[:, :, 20:] = 0.0
    for i, (first, score) in enumerate([(0, 1.0), (6, 0.9), (11, 0.8)]):  # 10 columns each: 4, then 5 of 10 overlap
        masks[i], labels[i], scores[i] = 0.0, 1, score
        masks[i, first : first + 10, 20:] = 5.0
    return masks.reshape(60, 900), scores, labels.astype(np.int32)


@pytest.mark.parametrize("seed", range(5))
def test_merge(seed):
    masks, scores, labels = overlapping_masks(seed)
    with torch_network():
        lane, lane_score = map(value, merge_masks(const(masks), const(scores), const(labels), 3, 0.1))
    expected, expected_score, drawn = merge_by_loop(masks, scores, labels, 3, 0.1)
    assert 10 < drawn < 50
    np.testing.assert_array_equal(lane, expected)
    np.testing.assert_array_equal(lane_score, expected_score)
    rows = lane[1].reshape(30, 30)[:, 25]
    assert rows[:16].all() and not rows[16:].any()  # 2/5 covered is drawn, 5 of 10 is not
    broken, _, _ = merge_by_loop(masks, scores, labels, 3, 0.1, class_0_takes=True)
    assert (broken != expected).any()


def test_merge_of_nothing():
    """No mask reaches 0.5: an empty map, without NaN."""
    with torch_network():
        empty = const(np.zeros((4, 9), np.float32))
        lane, lane_score = map(
            value, merge_masks(empty, const(np.ones(4, np.float32)), const(np.arange(4) % 3), 3, 0.1)
        )
    assert not lane.any() and not lane_score.any()


def test_canvas_of_another_size():
    """Masks are resized before they are thresholded and merged."""
    bev = golden("tiny", "frame_1.npz")["bev.out"][0]
    module = SegHead(load_config("tiny_e2e").replace(canvas_size=(20, 60)))
    module.load(tiny_weights("seg_head."))
    with torch_network() as network:
        lane_query, _, memory = module(const(bev))
        outputs = module.map_outputs(memory, lane_query)
        masks, recorded = value(network.taps["seg.res.score_list"]), network.taps["seg.stuff.mask"]
    assert {name: tensor.shape for name, tensor in outputs.items()} == {
        "map_drivable": (20, 60),
        "map_lane": (3, 20, 60),
        "map_lane_score": (3, 20, 60),
    }
    resized = torch.nn.functional.interpolate(recorded.handle.view(1, 1, 40, 40), (20, 60), mode="bilinear")[0, 0]
    assert_close(masks[-1], resized, 1e-6)
    np.testing.assert_array_equal(value(outputs["map_drivable"]), resized > 0.5)
    assert_differs(masks[-1], resized.flip(1), 1e-6, "mirrored")
