"""Constants, casts and element-by-element operations of trtllm.functional (use them from there)."""

import builtins
from collections.abc import Sequence
from typing import Any

import numpy as np

from trtllm.network import DTYPES, FLOATS, Operand, Tensor, default_net

__all__ = [
    "abs",
    "add",
    "axis",
    "cast",
    "clip",
    "constant",
    "cos",
    "div",
    "elementwise_binary",
    "eq",
    "exp",
    "floordiv",
    "gt",
    "log",
    "lt",
    "make",
    "maximum",
    "minimum",
    "mul",
    "not_op",
    "op_and",
    "op_or",
    "pow",
    "relu",
    "round",
    "sigmoid",
    "sin",
    "sqrt",
    "sub",
    "tanh",
    "unary",
    "where",
]


def make(handle: Any, dtype: str, array: np.ndarray | None = None) -> Tensor:
    """Wrap an executor's handle."""
    return Tensor(handle, dtype, default_net().executor.shape_of(handle), array)


def axis(dim: int, ndim: int) -> int:
    """A dimension counted from the front. Raises IndexError where there is none."""
    if not -ndim <= dim < ndim:
        raise IndexError(f"dimension {dim} of a tensor with {ndim} dimensions")
    return dim % ndim


def _one_type(name: str, *tensors: Tensor) -> str:
    dtypes = {t.dtype for t in tensors}
    if len(dtypes) != 1:
        raise TypeError(f"{name}: types differ ({', '.join(t.dtype for t in tensors)}); cast one side")
    return tensors[0].dtype


def _check(name: str, tensor: Tensor, allowed: Sequence[str]) -> None:
    if tensor.dtype not in allowed:
        raise TypeError(f"{name}: {tensor.dtype} is not one of {', '.join(allowed)}")


def constant(ndarray: np.ndarray, as_dtype: str | None = None) -> Tensor:
    """A tensor that does not depend on the frame. int64 arrays become int32, float64 become float32."""
    array = np.asarray(ndarray)
    narrow = {"int64": "int32", "float64": "float32"}
    array = np.asarray(array, dtype=as_dtype or narrow.get(str(array.dtype), str(array.dtype)), order="C")
    if str(array.dtype) not in DTYPES:
        raise TypeError(f"constant: no tensor type {array.dtype}")
    return make(default_net().executor.constant(array), str(array.dtype), array)


def cast(input: Tensor, dtype: str) -> Tensor:
    """Same values in another type. Float to int truncates toward zero; anything to bool is `!= 0`."""
    if dtype not in DTYPES:
        raise TypeError(f"cast: no type {dtype!r}")
    if input.dtype == dtype:
        return input
    return make(default_net().executor.cast(input.handle, input.dtype, dtype), dtype)


def _number(name: str, value: float, like: Tensor) -> Tensor:
    if isinstance(value, float) and like.dtype not in FLOATS:
        raise TypeError(f"{name}: the number {value} beside {like.dtype}; cast the tensor or give an integer")
    return constant(np.full((1,) * like.ndim(), value, like.dtype))


def _operands(name: str, left: Operand, right: Operand) -> tuple[Tensor, Tensor]:
    if not isinstance(left, Tensor) and not isinstance(right, Tensor):
        raise TypeError(f"{name}: one side must be a tensor")
    like = left if isinstance(left, Tensor) else right
    assert isinstance(like, Tensor)
    left = left if isinstance(left, Tensor) else _number(name, left, like)
    right = right if isinstance(right, Tensor) else _number(name, right, like)
    _one_type(name, left, right)
    try:
        np.broadcast_shapes(left.shape, right.shape)
    except ValueError:
        raise ValueError(f"{name}: shapes {left.shape} and {right.shape} do not broadcast") from None
    ndim = builtins.max(left.ndim(), right.ndim())
    return _pad_rank(left, ndim), _pad_rank(right, ndim)


def _pad_rank(x: Tensor, ndim: int) -> Tensor:
    if x.ndim() == ndim:
        return x
    return make(default_net().executor.view(x.handle, (1,) * (ndim - x.ndim()) + x.shape), x.dtype)


def elementwise_binary(left: Operand, right: Operand, op: str) -> Tensor:
    """left `op` right with numpy broadcasting; op is a name below. One side may be a Python number."""
    a, b = _operands(op, left, right)
    if op in ("and", "or"):
        _check(op, a, ("bool",))
    elif op != "eq":
        _check(op, a, (*FLOATS, "int32"))
    dtype = "bool" if op in ("gt", "lt", "eq", "and", "or") else a.dtype
    return make(default_net().executor.binary(op, a.handle, b.handle), dtype)


def add(left: Operand, right: Operand) -> Tensor:
    """left + right."""
    return elementwise_binary(left, right, "add")


def sub(left: Operand, right: Operand) -> Tensor:
    """left - right."""
    return elementwise_binary(left, right, "sub")


def mul(left: Operand, right: Operand) -> Tensor:
    """left * right."""
    return elementwise_binary(left, right, "mul")


def div(left: Operand, right: Operand) -> Tensor:
    """left / right; floats only."""
    if any(isinstance(x, Tensor) and x.dtype not in FLOATS for x in (left, right)):
        raise TypeError("div: floats only; use floordiv for integers")
    return elementwise_binary(left, right, "div")


def floordiv(left: Operand, right: Operand) -> Tensor:
    """floor(left / right)."""
    return elementwise_binary(left, right, "floordiv")


def pow(left: Operand, right: Operand) -> Tensor:
    """left to the power right; floats only."""
    return elementwise_binary(left, right, "pow")


def minimum(left: Operand, right: Operand) -> Tensor:
    """The smaller of each pair."""
    return elementwise_binary(left, right, "min")


def maximum(left: Operand, right: Operand) -> Tensor:
    """The larger of each pair."""
    return elementwise_binary(left, right, "max")


def gt(left: Operand, right: Operand) -> Tensor:
    """left > right, as bool."""
    return elementwise_binary(left, right, "gt")


def lt(left: Operand, right: Operand) -> Tensor:
    """left < right, as bool."""
    return elementwise_binary(left, right, "lt")


def eq(left: Operand, right: Operand) -> Tensor:
    """left == right, as bool."""
    return elementwise_binary(left, right, "eq")


def op_and(left: Tensor, right: Tensor) -> Tensor:
    """Both, of two bool tensors."""
    return elementwise_binary(left, right, "and")


def op_or(left: Tensor, right: Tensor) -> Tensor:
    """Either, of two bool tensors."""
    return elementwise_binary(left, right, "or")


def unary(input: Tensor, op: str) -> Tensor:
    """A function of each element; op is a name below."""
    _check(op, input, ("bool",) if op == "not" else (*FLOATS, "int32") if op in ("abs", "neg") else FLOATS)
    return make(default_net().executor.unary(op, input.handle), input.dtype)


def exp(input: Tensor) -> Tensor:
    """e to each element."""
    return unary(input, "exp")


def log(input: Tensor) -> Tensor:
    """Natural logarithm."""
    return unary(input, "log")


def sqrt(input: Tensor) -> Tensor:
    """Square root."""
    return unary(input, "sqrt")


def sin(input: Tensor) -> Tensor:
    """Sine of radians."""
    return unary(input, "sin")


def cos(input: Tensor) -> Tensor:
    """Cosine of radians."""
    return unary(input, "cos")


def abs(input: Tensor) -> Tensor:
    """Magnitude."""
    return unary(input, "abs")


def round(input: Tensor) -> Tensor:
    """Nearest integer, halves to even."""
    return unary(input, "round")


def not_op(input: Tensor) -> Tensor:
    """Logical not of a bool tensor."""
    return unary(input, "not")


def relu(input: Tensor) -> Tensor:
    """max(x, 0)."""
    return unary(input, "relu")


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return unary(input, "sigmoid")


def tanh(input: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    return unary(input, "tanh")


def clip(input: Tensor, alpha: float, beta: float) -> Tensor:
    """Values below alpha become alpha, above beta become beta; floats."""
    _check("clip", input, FLOATS)
    return make(default_net().executor.clip(input.handle, float(alpha), float(beta)), input.dtype)


def where(condition: Tensor, left: Operand, right: Operand) -> Tensor:
    """left where condition (bool) holds, else right; all three broadcast."""
    _check("where", condition, ("bool",))
    a, b = _operands("where", left, right)
    try:
        np.broadcast_shapes(condition.shape, a.shape, b.shape)
    except ValueError:
        raise ValueError(f"where: shapes {condition.shape}, {a.shape} and {b.shape} do not broadcast") from None
    ndim = builtins.max(condition.ndim(), a.ndim())
    condition, a, b = (_pad_rank(t, ndim) for t in (condition, a, b))
    return make(default_net().executor.where(condition.handle, a.handle, b.handle), a.dtype)


# Operators on tensors, as in tensorrt_llm.functional.Tensor.
for _name, _operator in {
    "__add__": add,
    "__radd__": add,
    "__sub__": sub,
    "__rsub__": lambda a, b: sub(b, a),
    "__mul__": mul,
    "__rmul__": mul,
    "__truediv__": div,
    "__rtruediv__": lambda a, b: div(b, a),
    "__lt__": lt,
    "__gt__": gt,
    "__neg__": lambda a: unary(a, "neg"),
}.items():
    setattr(Tensor, _name, _operator)
