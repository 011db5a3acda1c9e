"""Which types TensorRT 8.6 may store between the regions that it compiles.

Precision constraints hold inside of a region, but not at its border: 8.6 tries every region with all floats of its
border as float32, as constrained, and as float16, and takes what is fastest. On an H100 that was float16: reference
points, angles and logarithms came out of float32 islands with the 11 bits of a float16. Layers outside of regions that
only move elements, and so have no constraint (Flavour.constrain), go the same way. An algorithm selector is asked
about each of them, and leaves only what the network says. It saves time too: a region is compiled once, not thrice.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from trtllm.network import FLOATS

_NAMES = re.compile(r"[\w./:]+")  # in "PWN(a, b) + c" and "{ForeignNode[a...b]}"
_OWN_PREFIXES = ("reshape_before_", "reshape_after_")  # of layers that TensorRT puts around those named behind


def float_type(node: str, types: Mapping[str, str]) -> str | None:
    """The float type of a node of TensorRT's, fused of layers of the network: that of the last one which has one.

    Args:
        node: its name: the names of layers, with TensorRT's own additions.
        types: the type of the first output of each layer of the network.
    """
    for name in reversed(_NAMES.findall(node.replace("...", " "))):
        for prefix in _OWN_PREFIXES:
            name = name.removeprefix(prefix)
        if types.get(name) in FLOATS:
            return types[name]
    return None


def allowed_choices(node: str, borders: Sequence[Sequence[str]], types: Mapping[str, str]) -> list[int]:
    """The choices that store every float of the node's border in the type that the network says.

    A choice with both types is the one that follows the constraints. Without one, the border is all of one type.

    Args:
        node: the node's name.
        borders: for each choice, the types of the node's inputs and outputs; what is no float in any other word.
        types: as of float_type.

    Returns:
        Indices of `borders`: all of them where nothing says which to take.
    """
    floats = [{dtype for dtype in border if dtype in FLOATS} for border in borders]
    for wanted in (set(FLOATS), {float_type(node, types)}):
        if chosen := [index for index, kinds in enumerate(floats) if kinds == wanted]:
            return chosen
    return list(range(len(borders)))


def make_selector(trt: Any, types: Mapping[str, str]) -> Any:
    """An IAlgorithmSelector of 8.6 that applies allowed_choices. It must live until the engine is built."""
    names = {trt.float32: "float32", trt.float16: "float16"}

    class Selector(trt.IAlgorithmSelector):
        def __init__(self) -> None:
            trt.IAlgorithmSelector.__init__(self)

        def select_algorithms(self, context: Any, choices: Sequence[Any]) -> list[int]:
            count = context.num_inputs + context.num_outputs
            infos = [[choice.get_algorithm_io_info(i) for i in range(count)] for choice in choices]
            borders = [[names.get(info.dtype, "other") for info in row if info is not None] for row in infos]
            return allowed_choices(context.name, borders, types)

        def report_algorithms(self, contexts: Sequence[Any], choices: Sequence[Any]) -> None:
            """What was taken: not used."""

    return Selector()
