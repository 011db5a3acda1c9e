"""What TensorRT 8.6 may store between its regions (trtllm/tensorrt_formats.py). Node names are from its logs."""

import types as python_types

import pytest

from trtllm.tensorrt_formats import allowed_choices, float_type, make_selector

TYPES = {
    "encoder/layers.0/attentions.0/view": "float16",
    "occ_head/permute_7": "float16",
    "seg_head/transformer/decoder/log": "float32",
    "seg_head/transformer/reference_points/matmul": "float32",
    "constant_12": "float32",
    "kept": "int32",
}
REGION = "{ForeignNode[constant_12...encoder/layers.0/attentions.0/view]}"
AS_CONSTRAINED = ["float32", "int32", "float32", "float16"]
ALL_FLOAT32 = ["float32", "int32", "float32", "float32"]
ALL_FLOAT16 = ["float16", "int32", "float16", "float16"]


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (REGION, "float16"),
        ("PWN(PWN(constant_11, a/max), PWN(seg_head/transformer/decoder/log))", "float32"),
        ("reshape_before_seg_head/transformer/reference_points/matmul", "float32"),
        ("{ForeignNode[constant_12...kept]}", "float32"),  # the last has no float type
        ("occ_head/permute_7 + occ_head/view_7", "float16"),
        ("Reformatting CopyNode", None),
    ],
)
def test_the_type_of_a_node_is_that_of_its_last_layer(node, expected):
    assert float_type(node, TYPES) == expected


def test_a_region_is_stored_as_constrained():
    choices = [ALL_FLOAT32, AS_CONSTRAINED, AS_CONSTRAINED, ALL_FLOAT16]
    assert allowed_choices(REGION, choices, TYPES) == [1, 2]


def test_a_region_of_one_type_is_stored_in_it():
    choices = [ALL_FLOAT32, ALL_FLOAT16]
    assert allowed_choices(REGION, choices, TYPES) == [1]
    assert allowed_choices(REGION.replace("encoder/layers.0/attentions.0/view", "kept"), choices, TYPES) == [0]


def test_nothing_is_refused_where_nothing_is_known():
    assert allowed_choices("unknown", [ALL_FLOAT32, ALL_FLOAT16], TYPES) == [0, 1]
    assert allowed_choices("kept", [["int32", "bool"]], TYPES) == [0]
    assert allowed_choices("seg_head/transformer/decoder/log", [ALL_FLOAT16], TYPES) == [0]  # it takes nothing else


def test_the_selector_reads_inputs_and_outputs():
    """A stand-in for TensorRT: inputs alone would not tell the first two choices apart."""

    class Choice:
        def __init__(self, *border):
            self.border = border

        def get_algorithm_io_info(self, index):
            return python_types.SimpleNamespace(dtype=self.border[index])

    trt = python_types.SimpleNamespace(float32="f", float16="h", IAlgorithmSelector=object)
    trt.IAlgorithmSelector = type("IAlgorithmSelector", (), {"__init__": lambda self: None})
    selector = make_selector(trt, TYPES)
    context = python_types.SimpleNamespace(name=REGION, num_inputs=2, num_outputs=1)
    choices = [Choice("f", "i", "f"), Choice("f", "i", "h"), Choice("h", "i", "h")]
    assert selector.select_algorithms(context, choices) == [1]
    context.num_outputs = 0  # broken: does not see the output
    assert selector.select_algorithms(context, choices) != [1]
