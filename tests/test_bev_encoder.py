"""The BEV encoder against the recorded operators and frames; every quirk of the original against its repair."""

import functools
import math

import numpy as np
import pytest
from network_support import const, load_op_weights, tiny_weights, torch_network, value
from support import assert_close, assert_differs, golden, max_error, tolerance
from track_support import tiny_config, tiny_frame

from layers.bev_encoder import (
    LearnedPositionalEncoding,
    PerceptionTransformer,
    SpatialCrossAttention,
    TemporalSelfAttention,
)
from layers.bev_geometry import cell_centres, point_sampling, rotate_nearest
from runtime.sequence import bev_shift, rotation_matrix
from trtllm import Module, Tensor, map_layout, sampled_attention
from trtllm import functional as F

FACTOR = 3  # another order of sums than the recorded run's; measured: up to 2 times the floor
LEVELS = [f"fpn.{level}" for level in range(4)]


@functools.cache
def transformer() -> PerceptionTransformer:
    module = PerceptionTransformer(tiny_config(), Module())
    module.load(tiny_weights("pts_bbox_head.transformer."))
    return module


def bev_pos() -> Tensor:
    config = tiny_config()
    module = LearnedPositionalEncoding(config.embed_dims // 2, config.bev_h, config.bev_w)
    module.load(tiny_weights("pts_bbox_head.positional_encoding."))
    return module()


def run_encoder(index: int, dtype: str = "float32", **changes) -> dict[str, np.ndarray]:
    """Taps and the result ("out") of get_bev_features on the recorded pyramid, history and can_bus of a frame."""
    frame, config = tiny_frame(index), tiny_config()
    has_prev = index not in (0, 6)
    empty = np.zeros((config.bev_h * config.bev_w, config.embed_dims), np.float32)
    can_bus = frame["in.can_bus_used"]
    inputs = {
        "can_bus": can_bus,
        "lidar2img": frame["in.lidar2img"],
        "shift": bev_shift(can_bus, config),
        "rotation": rotation_matrix(can_bus[-1], config),
        "prev_bev": (tiny_frame(index - 1)["bev.out"][0] if has_prev else empty).astype(dtype),
        "has_prev": np.array([has_prev], np.int32),
    } | changes
    with torch_network(dtype) as network:
        queries = const(tiny_weights("pts_bbox_head.bev_embedding.")["weight"], dtype)
        features = [const(frame[key], dtype) for key in LEVELS]
        out = transformer().get_bev_features(
            features, queries, bev_pos(), **{name: const(array) for name, array in inputs.items()}
        )
        return {"out": value(out)} | {key: value(tensor) for key, tensor in network.taps.items()}


def test_learned_positions_op():
    arrays = golden("ops", "pos_encodings.npz")
    weights = {f"w.{key}.weight": arrays[f"w.{key}.weight"] for key in ("row_embed", "col_embed")}
    with torch_network():
        out = value(load_op_weights(LearnedPositionalEncoding(16, 20, 20), weights)())  # (B,D)
    expected = arrays["learned_out"][0].reshape(32, 400).T
    assert np.array_equal(out, expected)
    assert_differs(np.roll(out, 16, axis=1), expected, 0.1, "row before column")


def test_positions_of_the_tiny_model():
    with torch_network():
        assert np.array_equal(value(bev_pos()), tiny_frame(0)["bev.bev_pos"][0].reshape(128, 1600).T)


def cells(image: np.ndarray) -> np.ndarray:
    """(C,H,W) -> (HW,C)."""
    return image.reshape(len(image), -1).T


def test_rotation_op():
    """[T] Nearest sampling forgives nothing, so it is compared exactly."""
    arrays = golden("ops", "bev_rotate.npz")
    for name in [key for key in arrays if key.startswith("angle")]:
        size = int(name[5:].split("_")[0])
        config = tiny_config().replace(bev_h=size, bev_w=size, rotate_center=(size // 2, size // 2))
        image, expected = (cells(arrays[key]) for key in (f"x{size}", name.replace("angle", "out")))
        with torch_network():
            matrix, back = (const(rotation_matrix(sign * float(arrays[name]), config)) for sign in (1, -1))
            rotated, back = (value(rotate_nearest(const(image), m, (size, size))) for m in (matrix, back))
        assert np.array_equal(rotated, expected), name
        if abs(math.sin(math.radians(arrays[name]))) > 0.01:
            assert_differs(back, expected, 0.1, f"{name}, the other way round")


def test_temporal_attention_op():
    arrays = golden("ops", "tsa.npz")
    op = load_op_weights(TemporalSelfAttention(tiny_config()), arrays)
    shape = tuple(arrays["bev_hw"].tolist())
    with torch_network():
        query, query_pos, history = (const(arrays[key][0]) for key in ("query", "query_pos", "prev_bev"))
        reference = const(arrays["reference_points"][0, :, 0])
        unshifted = const(arrays["reference_points_noprev"][0, :, 0])
        yes, no = (const(np.array([flag])) for flag in (True, False))
        out = value(query + op(query, query_pos, history, query, yes, reference, shape))
        assert_close(out, arrays["out_with_prev"][0], 5e-6, "with history")
        first = value(query + op(query, query_pos, history, history, no, unshifted, shape))
        assert_close(first, arrays["out_no_prev"][0], 5e-6, "without history")
        swapped = value(query + op(query, query_pos, query, history, yes, reference, shape))
        assert_differs(swapped, arrays["out_with_prev"][0], 1e-2, "current map before history")


def test_camera_attention_op():
    arrays = golden("ops", "sca.npz")
    op = load_op_weights(SpatialCrossAttention(tiny_config()), arrays)
    shapes = [tuple(shape) for shape in arrays["spatial_shapes"].tolist()]
    with torch_network():
        query, features = const(arrays["query"][0]), const(arrays["feat"][:, :, 0])
        points, mask = arrays["reference_points_cam"][:, 0], arrays["bev_mask"][:, 0]
        out = value(query + op(query, features, const(points), const(mask), shapes))
        assert_close(out, arrays["out"][0], 5e-6, "op")
        unseen = ~mask.any((0, 2))
        if unseen.any():  # nothing but the output projection's bias
            assert_close((out - arrays["query"][0])[unseen], np.tile(arrays["w.output_proj.bias"], (unseen.sum(), 1)),
                         5e-6, "cells that no camera sees")  # fmt: skip
        everywhere = value(query + op(query, features, const(points), const(np.ones_like(mask)), shapes))
        assert_differs(everywhere, arrays["out"][0], 1e-2, "mean over all cameras")
        turned = value(query + op(query, features, const(points[:, :, ::-1]), const(mask), shapes))
        assert_differs(turned, arrays["out"][0], 1e-2, "anchors in reverse order")


def test_projection_into_the_cameras():
    frame = tiny_frame(0)
    expected, expected_mask = frame["bev.reference_points_cam"][:, 0], frame["bev.mask"][:, 0]
    with torch_network():
        points, mask = (value(t) for t in point_sampling(const(frame["in.lidar2img"]), tiny_config()))
        # What TF32 would make of the matrix: 10 bits of mantissa.
        bits = frame["in.lidar2img"].astype(np.float32).view(np.uint32) & np.uint32(0xFFFFE000)
        coarse, _ = (value(t) for t in point_sampling(const(bits.view(np.float32)), tiny_config()))
    assert np.array_equal(mask, expected_mask)
    near = np.abs(expected).max(-1) < 2  # elsewhere the depth is next to nothing and rounding decides
    assert near.mean() > 0.3 and expected_mask[near].any()
    assert_close(points[near], expected[near], 4e-6, "points near the images")
    assert_differs(coarse[near], expected[near], 1e-4, "in TF32")


@pytest.mark.parametrize("index", [0, 1, 3, 6])
def test_recorded_frames(index):
    frame, taps = tiny_frame(index), run_encoder(index)
    keys = ["bev.query_plus_canbus", *(f"bev.layer{layer}" for layer in range(3))]
    for key in keys:
        assert_close(taps[key], frame[key].reshape(taps[key].shape), tolerance(key, FACTOR), key)
    assert_close(taps["out"], frame["bev.out"][0], tolerance("bev.out", FACTOR), "bev.out")
    assert np.array_equal(tiny_shift(index), frame["bev.shift"][0])
    if "bev.prev_bev_rotated" in frame:
        assert np.array_equal(taps["bev.prev_bev_rotated"], frame["bev.prev_bev_rotated"][:, 0])


def tiny_shift(index: int) -> np.ndarray:
    return bev_shift(tiny_frame(index)["in.can_bus_used"], tiny_config()).astype(np.float32)


def test_history_is_ignored_at_a_scene_start():
    frame = tiny_frame(0)
    rubbish = np.full((1600, 128), np.nan, np.float32)
    out = run_encoder(0, prev_bev=rubbish)["out"]
    assert_close(out, frame["bev.out"][0], tolerance("bev.out", FACTOR), "NaN in prev_bev")
    forgotten = run_encoder(1, has_prev=np.array([0], np.int32))["out"]
    assert_differs(forgotten, tiny_frame(1)["bev.out"][0], 1e-1, "history ignored in the middle of a scene")


def test_shift_moves_both_reference_points(monkeypatch):
    """[T] The shift enters the current map's reference points too, and counts without a history."""
    unshifted = run_encoder(0, shift=np.zeros(2))["bev.layer0"]
    assert_differs(unshifted, tiny_frame(0)["bev.layer0"][0], 1e-2, "no shift without a history")
    attention = sampled_attention.temporal_attention

    def repaired(value, reference_points, offsets, logits, spatial_shape):
        cells = tiny_shift(1) * np.asarray(spatial_shape[::-1])  # x, y
        of_maps = np.stack([0 * cells, cells]).reshape(1, 1, 2, 1, 2).astype(np.float32)
        return attention(value, reference_points, offsets - const(of_maps), logits, spatial_shape)

    monkeypatch.setattr(sampled_attention, "temporal_attention", repaired)
    assert_differs(run_encoder(1)["bev.layer0"], tiny_frame(1)["bev.layer0"][0], 1e-2, "only the history shifted")


def test_current_map_is_the_first_layers_query():
    """[T] With a history, later layers still look at the query that entered layer 0."""
    frame, config = tiny_frame(1), tiny_config()
    layer = transformer().encoder.layers[1]
    shapes = [frame[key].shape[2:] for key in LEVELS]
    errors = {}
    with torch_network():
        embeds = transformer().cams_embeds.value, transformer().level_embeds.value
        features = map_layout.flatten_maps([const(frame[key]) for key in LEVELS], *embeds)
        points, mask = point_sampling(const(frame["in.lidar2img"]), config)
        reference = const(cell_centres(config) + tiny_shift(1))
        history = const(frame["bev.prev_bev_rotated"][:, 0])
        query, yes = const(frame["bev.layer0"][0]), const(np.array([True]))
        for name, current in (("first", const(frame["bev.query_plus_canbus"][:, 0])), ("own", query)):
            out = layer(query, bev_pos(), history, current, yes, reference, features, points, mask, shapes)
            errors[name] = max_error(value(out), frame["bev.layer1"][0])
    assert errors["first"] <= tolerance("bev.layer1", FACTOR)
    assert errors["own"] > 1e-2


def test_float16_network_keeps_geometry_in_float32():
    taps, frame = run_encoder(1, "float16"), tiny_frame(1)
    assert taps["out"].dtype == np.float16 and taps["bev.reference_points_cam"].dtype == np.float32
    assert np.array_equal(taps["bev.mask"], tiny_frame(0)["bev.mask"][:, 0])
    assert_close(taps["out"], frame["bev.out"][0], 3e-2, "bev.out")  # measured 1.1e-2


def test_can_bus_keeps_its_decimals_in_a_float16_network():
    can_bus = tiny_frame(0)["in.can_bus_used"]  # 1642.7 m
    with torch_network("float16"):
        out = value(transformer().can_bus_mlp(const(can_bus)))
        rounded = value(transformer().can_bus_mlp(F.cast(const(can_bus, "float16"), "float32")))
    with torch_network():
        expected = value(transformer().can_bus_mlp(const(can_bus)))
    assert np.array_equal(out, expected)
    assert_differs(rounded, expected, 1e-5, "can_bus rounded to half precision")
