"""What the executor with plugins hands to TensorRT: a stand-in records it."""

import pathlib
import types

import numpy as np
import pytest

from layers.basic import memory_attention
from layers.bev_encoder import temporal_inputs
from layers.bev_geometry import rotate_nearest
from layers.occ_head import likeliest_instance
from layers.seg_mask_head import attention_masks
from layers.seg_merge import merge_masks
from trtllm import Network, Tensor, map_layout, net_guard, plugin_weights, sampled_attention
from trtllm import vision as V
from trtllm.plugin_library import (
    OPERATIONS,
    PluginLibrary,
)
from trtllm.plugin_weights import COMMON_LAYOUT, HOPPER_LAYOUT
from trtllm.tensorrt_plugins import PluginExecutor


class RecordingExecutor(PluginExecutor):
    """Records the plugins; every other operation gives a tensor of the right shape and nothing else."""

    def __init__(self, plugins):
        self.plugins, self.recorded, self._constants, self._path = frozenset(plugins), [], {}, ""
        self.library = PluginLibrary(
            pathlib.Path("library.so"),
            {},
            lambda cells, channels, outputs: int(outputs == 256),
            lambda width: width < 200,
        )

    def _plugin(self, kind, name, inputs, *dtypes, **attributes):
        self.recorded.append((kind, [tuple(x.shape) for x in inputs], attributes))
        outputs = [types.SimpleNamespace(name=name, shape=(1,)) for _ in dtypes]
        return outputs[0] if len(outputs) == 1 else outputs

    def cast(self, x, source, target):
        return types.SimpleNamespace(name=f"{x.name} as {target}", shape=x.shape)

    def constant(self, array):
        return types.SimpleNamespace(name="constant", shape=array.shape)


def tensor(dtype: str, *shape: int, array=None) -> Tensor:
    return Tensor(types.SimpleNamespace(name=f"{dtype} {shape}", shape=shape), dtype, shape, array)


def test_executor():
    executor = RecordingExecutor(OPERATIONS)
    half = "float16"
    with net_guard(Network(executor, half)):
        value, reference = tensor(half, 1, 60, 8, 32), tensor("float32", 1, 10, 4, 2)
        offsets, logits = tensor(half, 1, 10, 8, 4, 4, 2), tensor(half, 1, 10, 8, 16)
        sampled_attention.deformable_attention(value, reference, offsets, logits, [(6, 10)], num_queries=40)
        maps, cells = tensor(half, 2, 60, 8, 32), tensor("float32", 60, 2)
        sampled_attention.temporal_attention(
            maps, cells, tensor(half, 60, 8, 2, 4, 2), tensor(half, 60, 8, 2, 4), (6, 10)
        )
        cameras, points, seen = tensor(half, 6, 60, 8, 32), tensor("float32", 6, 25, 4, 2), tensor("bool", 6, 25, 4)
        offsets, logits = tensor(half, 25, 8, 1, 8, 2), tensor(half, 25, 8, 8)
        sampled_attention.camera_cross_attention(cameras, points, seen, offsets, logits, [(6, 10)])
        sampled_attention.camera_cross_attention(cameras, points, seen, offsets, logits, [(6, 10)])
        weight = tensor(half, 64, 32, 3, 3, array=np.ones((64, 32, 3, 3), np.float16))
        statistics = [tensor("float32", 64, array=np.ones(64, np.float32)) for _ in range(4)]
        image, offset_mask = tensor(half, 2, 32, 5, 6), tensor(half, 2, 27, 5, 6)
        V.modulated_deform_conv2d_norm(image, offset_mask, weight, *statistics)
        V.after(points, value)
        masks, scores, labels = tensor("float32", 100, 1600), tensor("float32", 100), tensor("int32", 100)
        merged = merge_masks(masks, scores, labels, 3, 0.1)
        rotate_nearest(tensor(half, 60, 32), tensor("float32", 2, 3), (6, 10))
        vectors = (np.zeros(size, np.float32) for size in (25, 25, 4))
        executor.point_sampling(tensor("float32", 6, 4, 4), *vectors, size=(64, 32), min_depth=1e-5)
    flat, temporal, camera, again, conv, after, merge, turn, project = executor.recorded
    assert flat[2] == {"spatial_shapes": ((6, 10),), "num_queries": 40, "first_head": 0, "joint": 0}
    assert temporal[1] == [(2, 60, 8, 32), (60, 2), (60, 8, 2, 4, 2), (60, 8, 2, 4)]
    assert temporal[2] == {"spatial_shapes": [(6, 10)], "mean": 1, "joint": 0}
    assert camera == again
    assert camera[2]["first_head"] == 0
    assert camera[2]["grid_width"] == 5
    # cast once; or not at all
    assert list(executor._constants) == [("as int32", "bool (6, 25, 4)"), ("as int32", "point_sampling as bool")]
    assert conv[1] == [(2, 32, 5, 6), (2, 27, 5, 6), (1, 9, 64, 32), (64,)]
    assert conv[2] == {"stride": 1, "padding": 1, "relu": 1, "layout": COMMON_LAYOUT}
    assert after == ("UniADAfter", [(6, 25, 4, 2), (1, 60, 8, 32)], {})
    assert merge == ("UniADMergeMasks", [(100, 1600), (100,), (100,)], {"classes": 3, "quality_thresh": 0.1})
    assert [x.dtype for x in merged] == ["int32", "float32"]
    assert turn == ("UniADRotate", [(60, 32), (2, 3)], {"height": 6, "width": 10})
    executor.propagate(*(tensor("float32", 5, 3) for _ in range(7)), low=(-1.0,) * 3, size=(2.0,) * 3)
    assert executor.recorded[-1] == ("UniADPropagate", [(5, 3)] * 7, {"low": (-1.0,) * 3, "size": (2.0,) * 3})
    executor.normalise_images(tensor("uint8", 6, 90, 160, 3), mean=(1, 2, 3.5), size=(96, 160), dtype=half)
    attributes = {"out_height": 96, "out_width": 160, "mean": [1.0, 2.0, 3.5]}
    assert executor.recorded[-1] == ("UniADNormaliseImages", [(6, 90, 160, 3)], attributes)
    with net_guard(Network(executor, half)):
        levels = [tensor(half, 6, 32, height, 5) for height in (8, 4, 2, 1)]
        embeds = [tensor(half, count, 32, array=np.ones((count, 32), np.float16)) for count in (6, 4)]
        map_layout.flatten_maps(levels, *embeds)
        map_layout.flatten_maps(levels[:1])
        map_layout.sample_map(tensor(half, 60, 32), (6, 10))
        map_layout.sample_map(tensor(half, 60, 32), (6, 10), np.zeros((1, 3, 4, 2), np.float32))
    assert executor.recorded[-4:] == [
        ("UniADFlattenLevels", [*(x.shape for x in levels), (6, 4, 32)], {}),
        ("UniADFlattenMap", [(6, 32, 8, 5)], {}),
        ("UniADUnflattenMap", [(60, 32)], {"height": 6, "width": 10}),
        ("UniADSampleMap", [(60, 32), (3, 4, 2)], {"height": 6, "width": 10}),
    ]
    cells, flag = [tensor(half, 60, 256) for _ in range(4)], tensor("bool", 1)
    with net_guard(Network(executor, half)):
        pair, both = temporal_inputs(*cells, flag)
        temporal_inputs(*cells, flag)
    assert executor.recorded[-2:] == [("UniADTemporalInputs", [(60, 256)] * 4 + [(1,)], {})] * 2
    assert (pair.shape, both.shape, pair.dtype, both.dtype) == ((60, 512), (2, 60, 256), half, half)
    assert len(executor._constants) == 3  # the flag is cast once
    for residual, kind in ((tensor(half, 2000, 256), "UniADAddLayerNorm"), (None, "UniADLayerNorm")):
        vectors = [tensor(half, 256, array=np.ones(256, np.float16)) for _ in range(2)]
        with net_guard(Network(executor, half)):
            out = V.add_layer_norm(tensor(half, 2000, 256), residual, *vectors, eps=1e-6)
        shapes = [(2000, 256)] * (1 if residual is None else 2) + [(256,)] * 2
        assert executor.recorded[-1] == (kind, shapes, {"eps": 1e-6}) and out.dtype == half
    attributes = {"width": 64.0, "height": 32.0, "min_depth": 1e-5}
    with net_guard(Network(executor, half)):
        layers = tensor(half, 6, 60, 48, 32)
        sampled_attention.camera_cross_attention(layers, points, seen, offsets, logits, [(6, 10)], first_head=40)
        with pytest.raises(ValueError, match="8 heads from 41 of 48"):
            sampled_attention.camera_cross_attention(layers, points, seen, offsets, logits, [(6, 10)], first_head=41)
    assert executor.recorded[-1][1][0] == (6, 60, 48, 32) and executor.recorded[-1][2]["first_head"] == 40
    assert project == ("UniADPointSampling", [(6, 4, 4), (25,), (25,), (4,)], attributes)


def test_joint_samples():
    """Offsets and logits in one tensor, which the plugins take twice; what they don't read so is cut apart."""
    executor, half = RecordingExecutor(OPERATIONS), "float16"
    executor.view = lambda x, shape: types.SimpleNamespace(name="view", shape=shape)
    executor.slice = lambda x, starts, sizes, strides: types.SimpleNamespace(name="slice", shape=sizes)
    executor.shape_of = lambda x: tuple(x.shape)
    with net_guard(Network(executor, half)):
        value, reference = tensor(half, 1, 60, 8, 32), tensor("float32", 1, 10, 4, 2)
        samples = tensor(half, 1, 10, 3, 8, 4, 4)
        sampled_attention.deformable_attention(value, reference, samples, None, [(6, 10)], 40)
        maps, cells = tensor(half, 2, 60, 8, 32), tensor("float32", 60, 2)
        sampled_attention.temporal_attention(maps, cells, tensor(half, 60, 3, 8, 2, 4), None, (6, 10))
        cameras, points, seen = tensor(half, 6, 60, 8, 32), tensor("float32", 6, 25, 4, 2), tensor("bool", 6, 25, 4)
        of_cameras = tensor(half, 25, 3, 8, 1, 8)
        sampled_attention.camera_cross_attention(cameras, points, seen, of_cameras, None, [(6, 10)])
        with pytest.raises(ValueError, match="8 heads from 1 of 8"):
            sampled_attention.camera_cross_attention(cameras, points, seen, of_cameras, None, [(6, 10)], first_head=1)
        few, odd = tensor(half, 1, 60, 3, 32), tensor(half, 1, 10, 3, 3, 1, 4)
        sampled_attention.deformable_attention(few, tensor("float32", 1, 10, 1, 2), odd, None, [(6, 10)])
    flat, temporal, camera, apart = executor.recorded
    assert flat[1][2:] == [(1, 10, 3, 8, 4, 4)] * 2 and flat[2]["joint"] == 1
    assert temporal[1][2:] == [(60, 3, 8, 2, 4)] * 2 and temporal[2]["joint"] == 1
    assert camera[1][3:] == [(25, 3, 8, 1, 8)] * 2 and camera[2]["joint"] == 1
    assert apart[1][2:] == [(1, 10, 3, 1, 4, 2), (1, 10, 3, 4)] and apart[2]["joint"] == 0
    assert executor.joint_samples("temporal_attention", 32, [(6, 10)], 64)
    assert not executor.joint_samples("temporal_attention", 32, [(6, 10)], 60)
    assert not executor.joint_samples("temporal_attention", 24, [(6, 10)], 64)


@pytest.mark.parametrize(
    ("dtype", "outputs", "packed", "layout"),
    [
        ("float16", 256, (1, 1, 9, 256, 64), HOPPER_LAYOUT),
        ("float16", 128, (2, 9, 128, 32), COMMON_LAYOUT),
        ("float32", 256, (9, 64, 256), COMMON_LAYOUT),
    ],
)
def test_layout_of_the_weight(dtype, outputs, packed, layout):
    """As the library wants it, for float16; the plugin is told."""
    executor = RecordingExecutor(OPERATIONS)
    with net_guard(Network(executor, dtype)):
        weight = tensor(dtype, outputs, 64, 3, 3, array=np.ones((outputs, 64, 3, 3), dtype))
        statistics = [tensor("float32", outputs, array=np.ones(outputs, np.float32)) for _ in range(4)]
        V.modulated_deform_conv2d_norm(tensor(dtype, 2, 64, 5, 6), tensor(dtype, 2, 27, 5, 6), weight, *statistics)
    ((_, shapes, attributes),) = executor.recorded
    assert (shapes[2], attributes["layout"]) == (packed, layout)


def test_executor_leaves_other_sizes_and_operations_to_the_composition():
    executor = RecordingExecutor(["deformable_attention"])
    value, rest = tensor("float32", 1, 60, 8, 24), [tensor("float32", 1)] * 3
    assert executor.deformable_attention(value, *rest, [(6, 10)], None, 0) is None
    value = tensor("float32", 2, 60, 8, 32)
    assert executor.temporal_attention(value, *rest, spatial_shape=(6, 10)) is None
    vectors = tensor("float32", 100), tensor("int32", 100)
    assert executor.merge_masks(tensor("float32", 100, 1600), *vectors, 3, 0.1) is None
    executor.plugins = frozenset(["merge_masks"])
    for count, pixels, classes in ((1025, 1600, 3), (100, 262145, 3), (100, 1600, 65)):
        assert executor.merge_masks(tensor("float32", count, pixels), *vectors, classes, 0.1) is None
    assert executor.merge_masks(tensor("float32", 1024, 262144), *vectors, 64, 0.1) is not None
    assert executor.normalise_images(tensor("uint8", 6, 9, 16, 3), (1, 2, 3), (9, 16), "float16") is None
    camera = "camera_cross_attention"
    assert not executor.joint_values(camera, 32, [(6, 10)])
    executor.plugins = frozenset([camera])
    assert executor.joint_values(camera, 32, [(6, 10)]) and not executor.joint_values(
        "deformable_attention", 32, [(6, 10)]
    )
    assert not executor.joint_values(camera, 24, [(6, 10)]) and not executor.joint_values(camera, 32, [(6, 10)] * 9)
    executor.plugins = frozenset(["add_layer_norm"])
    vector, computed = (tensor("float16", 256, array=np.ones(256)), tensor("float16", 256))
    for rows, channels, gain in ((1023, 256, vector), (4096, 1032, vector), (4096, 252, vector), (4096, 256, computed)):
        x = tensor("float16", rows, channels)
        assert executor.add_layer_norm(x, x, gain, vector, eps=1e-5) is None
    executor.plugins = frozenset(["flatten_maps", "sample_map"])
    for dtype, channels, count in (("float32", 32, 1), ("float16", 12, 1), ("float16", 32, 2)):
        assert executor.flatten_maps([tensor(dtype, 6, channels, 8, 5)] * count, None, None) is None
    for dtype, channels in (("float32", 32), ("float16", 12)):
        assert executor.sample_map(tensor(dtype, 60, channels), (6, 10), None) is None
    flag = tensor("bool", 1)
    assert executor.temporal_inputs(*[tensor("float16", 60, 32)] * 4, has_prev=flag) is None
    executor.plugins = frozenset(["temporal_inputs"])
    assert executor.temporal_inputs(*[tensor("float16", 60, 12)] * 4, has_prev=flag) is None
    matrix = tensor("float32", 2, 3)
    assert executor.rotate_nearest(tensor("float16", 60, 32), matrix, shape=(6, 10)) is None
    executor.plugins = frozenset(["rotate_nearest"])
    assert executor.rotate_nearest(tensor("float16", 60, 12), matrix, shape=(6, 10)) is None


def test_products_on_tensor_cores():
    """float16 only, in the widths that there are kernels for; thresholds and scores in float32."""
    executor, half = RecordingExecutor(OPERATIONS), "float16"
    with net_guard(Network(executor, half)):
        rows, cells = tensor(half, 16, 128), tensor(half, 1600, 128)
        assert memory_attention(rows, cells).dtype == half
        weights = [tensor(half, *s, array=np.ones(s, half)) for s in ((8, 8), (8,), (1, 8), (1,))]
        assert attention_masks(rows, cells, *weights, num_heads=8).dtype == "float32"
        queries, states = tensor(half, 5, 96, 128), tensor(half, 5, 128, 40, 40)
        assert likeliest_instance(queries, states, tensor("float32", 96), 0.1).dtype == "int32"
    assert executor.recorded == [
        ("UniADMemoryAttention", [(16, 128), (1600, 128)], {}),
        ("UniADAttentionMasks", [(16, 128), (1600, 128), (8, 8), (8,), (1, 8), (1,)], {"heads": 8}),
        ("UniADOccupancy", [(5, 96, 128), (5, 128, 40, 40), (96,)], {"threshold": 0.1}),
    ]
    scores = tensor("float32", 96)
    for query, memory in ((rows, tensor(half, 900, 128)), (tensor(half, 16, 64), tensor(half, 1600, 64))):
        assert executor.memory_attention(query, memory) is None
    assert executor.memory_attention(tensor("float32", 16, 128), tensor("float32", 1600, 128)) is None
    assert executor.attention_masks(rows, cells, *weights, num_heads=4) is None
    assert executor.attention_masks(rows, cells, *(tensor(half, 8) for _ in range(4)), num_heads=8) is None
    for rows, width in ((257, 128), (96, 256)):  # too many; more shared memory than the GPU has
        query = tensor(half, 5, rows, width)
        assert executor.occupancy(query, tensor(half, 5, width, 40, 40), scores, threshold=0.1) is None
    executor.plugins = frozenset()
    assert executor.occupancy(queries, states, scores, threshold=0.1) is None


def test_attention_of_many_heads():
    """float16, from 64 queries and keys on, masks that heads and groups share; a mask is cast once."""
    executor, half = RecordingExecutor(OPERATIONS), "float16"
    query, key = tensor(half, 2, 65, 8, 32), tensor(half, 2, 90, 8, 32)
    with net_guard(Network(executor, half)):
        for mask in (None, (90,), (1, 1, 90), (65, 90), (1, 65, 90)):
            blocked = None if mask is None else tensor("bool", *mask)
            out = V.multihead_attention(query, key, key, blocked)
            assert out.shape == query.shape and out.dtype == half
            kind = "UniADMultiheadAttention" if mask is None else "UniADMaskedMultiheadAttention"
            shapes = [query.shape, key.shape, key.shape] + ([] if mask is None else [mask])
            assert executor.recorded.pop() == (kind, shapes, {"key_head": 0, "value_head": 0})
        layers = tensor(half, 2, 90, 40, 32)
        V.multihead_attention(query, layers, layers, None, (16, 24))
        assert executor.recorded.pop()[2] == {"key_head": 16, "value_head": 24}
    memory, heads = tensor(half, 90, 256), (0, 0)
    assert executor.joint_heads(64, memory, 8) and not executor.joint_heads(63, memory, 8)
    assert not executor.joint_heads(64, memory, 4) and not executor.joint_heads(64, tensor("float32", 90, 256), 8)
    masks = tensor("bool", 90), tensor("bool", 90)
    inputs = len(executor._constants)
    for mask in masks:
        assert executor.multihead_attention(query, key, key, mask, heads) is not None
    assert len(executor._constants) == inputs
    for mask in ((65, 1), (8, 65, 90), (2, 1, 1, 90), (64, 90), (65, 1, 90)):
        assert executor.multihead_attention(query, key, key, tensor("bool", *mask), heads) is None
    odd = tensor(half, 2, 91, 8, 32)
    assert executor.multihead_attention(query, odd, odd, tensor("bool", 91), heads) is not None
    assert executor.multihead_attention(query, odd, odd, tensor("bool", 65, 91), heads) is None  # rows not in pairs
    few, other, wide = tensor(half, 2, 63, 8, 32), tensor(half, 2, 65, 8, 24), tensor("float32", 2, 65, 8, 32)
    for q, k in ((few, key), (query, few), (other, other), (wide, wide)):
        assert executor.multihead_attention(q, k, k, None, heads) is None
    executor.plugins = frozenset(["memory_attention"])
    assert executor.multihead_attention(query, key, key, None, heads) is None
    assert not executor.joint_heads(64, memory, 8)


def test_convolution_to_few_outputs():
    executor = RecordingExecutor(OPERATIONS)
    x, bias = tensor("float16", 6, 128, 5, 6), tensor("float16", 27, array=np.ones(27, np.float16))
    weight = tensor("float16", 27, 128, 3, 3, array=np.ones((27, 128, 3, 3), np.float16))
    assert executor.narrow_conv2d(x, weight, bias) is not None
    assert executor.recorded == [("UniADNarrowConv", [(6, 128, 5, 6), (4, 9, 32, 32), (32,)], {"outputs": 27})]
    for outputs, channels in ((27, 80), (24, 128), (33, 128)):
        other = tensor("float16", outputs, channels, 3, 3, array=np.ones((outputs, channels, 3, 3), np.float16))
        assert executor.narrow_conv2d(tensor("float16", 6, channels, 5, 6), other, bias) is None
    assert executor.narrow_conv2d(tensor("float32", 6, 128, 5, 6), weight, bias) is None


def test_end_of_a_block():
    """1x1 with a residual and a ReLU, of the channels that there are kernels for; all else is left to TensorRT."""
    executor = RecordingExecutor(OPERATIONS)

    def run(channels=64, outputs=256, dtype="float16", size=1, stride=(1, 1), shortcut=True, relu=True, constant=True):
        array = np.ones((outputs, channels, size, size), dtype) if constant else None
        statistics = [tensor("float32", outputs, array=np.ones(outputs, np.float32)) for _ in range(4)]
        residual = tensor(dtype, 6, outputs, 5, 6) if shortcut else None
        kernel, x = tensor(dtype, outputs, channels, size, size, array=array), tensor(dtype, 6, channels, 5, 6)
        return executor.conv2d_norm(x, kernel, *statistics, residual, stride, (0, 0), relu, 1e-5)

    assert run().shape == (6, 256, 5, 6)
    inputs = [(6, 64, 5, 6), (6, 256, 5, 6), (8, 4, 32, 16), (256,)]
    assert executor.recorded == [("UniADExpandConv", inputs, {})]
    others = [{"channels": 96}, {"outputs": 128}, {"dtype": "float32"}, {"size": 3}, {"stride": (2, 2)}]
    others += [{"shortcut": False}, {"relu": False}, {"constant": False}]
    assert all(run(**other) is None for other in others)
    executor.plugins = frozenset(["narrow_conv2d"])
    assert run() is None


def test_stem():
    """Of 64 outputs and of images whose sizes are whole vectors; all else is a convolution and a pooling."""
    executor = RecordingExecutor(OPERATIONS)

    def run(outputs=64, dtype="float16", size=(900, 1600)):
        statistics = [tensor("float32", outputs, array=np.ones(outputs, np.float32)) for _ in range(4)]
        kernel = tensor(dtype, outputs, 3, 7, 7, array=np.ones((outputs, 3, 7, 7), dtype))
        return executor.stem(tensor(dtype, 6, 3, *size), kernel, *statistics, 1e-5)

    assert run().shape == (6, 64, 225, 400)
    assert executor.recorded == [("UniADStem", [(6, 3, 900, 1600), (2, 11, 32, 16), (64,)], {})]
    assert all(run(**other) is None for other in ({"outputs": 32}, {"dtype": "float32"}, {"size": (902, 1600)}))


def test_packed_weight_of_a_block_end():
    """Row and column of a lane's number: the operand of mma.m16n8k16."""
    weight = np.arange(512 * 64, dtype=np.float32).reshape(512, 64)
    packed = plugin_weights.pack_expand_weight(weight)
    assert packed.shape == (16, 4, 32, 16)
    lane, eight, high, odd = 4 * 5 + 3, 2, 1, 1  # g = 5, t = 3
    assert packed[9, 1, lane, 4 * eight + 2 * high + odd] == weight[9 * 32 + 8 * eight + 5, 16 + 8 * high + 2 * 3 + odd]


def test_packed_weight_of_few_outputs():
    """Where an element goes; zeros for the outputs that there are not."""
    weight = np.arange(27 * 128 * 9, dtype=np.float32).reshape(27, 128, 3, 3)
    packed = plugin_weights.pack_narrow_weight(weight)
    assert packed[3, 5, 20, 7] == weight[20, 96 + 7, 1, 2] and not packed[:, :, 27:].any()
    assert plugin_weights.pack_narrow_bias(np.ones(27, np.float16)).tolist() == [1.0] * 27 + [0.0] * 5


def test_large_outputs_are_copied_by_a_plugin():
    executor, marked = RecordingExecutor(OPERATIONS), []
    executor._mark = lambda handle, dtype, name: marked.append((handle.name, dtype, name))
    executor._copied = lambda x: types.SimpleNamespace(name="identity")
    executor.output(tensor("float16", 40000, 256), "prev_bev_out")
    executor.output(tensor("int32", 5, 500, 500), "occ_seg")
    executor.output(tensor("float16", 40, 256), "small")
    names = ("after", "float16", "prev_bev_out"), ("identity", "int32", "occ_seg"), ("identity", "float16", "small")
    assert tuple(marked) == names


class RecordingTensorRT:
    """The calls of tensorrt that make a plugin."""

    class PluginFieldType:
        INT32, FLOAT32 = "INT32", "FLOAT32"

    def get_plugin_registry(self):
        return types.SimpleNamespace(get_creator=lambda *names: self)

    def PluginField(self, name, data, type_):
        return name, data.dtype.name, data.tolist(), type_

    def PluginFieldCollection(self, fields):
        return fields

    def create_plugin(self, name, fields):
        return {field[0]: field[1:] for field in fields}


def test_fields_of_a_plugin():
    """Whole numbers and floats under their types, and an output of each type that was asked for."""
    executor = PluginExecutor.__new__(PluginExecutor)
    executor.flavour, executor._path = types.SimpleNamespace(trt=RecordingTensorRT()), ""
    executor.network = types.SimpleNamespace(add_plugin_v2=lambda inputs, plugin: plugin)
    executor._add = lambda layer, name, *dtypes: (layer, dtypes)
    fields, dtypes = executor._plugin("Kind", "name", [], "int32", "float32", sizes=[(6, 10)], classes=3, thresh=0.25)
    assert dtypes == ("int32", "float32")
    assert fields == {
        "sizes": ("int32", [6, 10], "INT32"),
        "classes": ("int32", [3], "INT32"),
        "thresh": ("float32", [0.25], "FLOAT32"),
        "half": ("int32", [0], "INT32"),
    }
    assert executor._plugin("Kind", "name", [], "float16")[0]["half"] == ("int32", [1], "INT32")
