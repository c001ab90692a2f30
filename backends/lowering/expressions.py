"""Scalar expressions of the element-wise operators: what one output element is, given one element of each input.

`Expression` is a straight-line program of such operators in SSA form, which `elementwise` evaluates inside a
loop; fusion concatenates them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from backends.schedules import epilogue
from backends.schedules.emit import Emitter, Expr

Attributes = Mapping[str, Any]
ExpressionRule = Callable[[Attributes, list[Expr], str], Expr]
"""(attributes, operands, element type of the result) -> the result. Booleans are TIR bool here."""

EXPRESSIONS: dict[str, ExpressionRule] = {}


def expression(*ops: str) -> Callable[[ExpressionRule], ExpressionRule]:
    """Register the expression of element-wise operators."""

    def register(rule: ExpressionRule) -> ExpressionRule:
        for op in ops:
            EXPRESSIONS[op] = rule
        return rule

    return register


@dataclass(frozen=True)
class Instruction:
    """One operator of a program. operands: ("input", k), ("result", k) or ("constant", value, dtype)."""

    op: str
    attributes: tuple[tuple[str, Any], ...]
    operands: tuple[tuple[Any, ...], ...]
    dtype: str


def evaluate(emitter: Emitter, program: Sequence[Instruction], inputs: Sequence[Expr]) -> Expr:
    """The last instruction's result, each intermediate computed once."""
    results: list[Expr] = []

    def operand(item: tuple[Any, ...]) -> Expr:
        if item[0] == "input":
            return inputs[item[1]]
        if item[0] == "result":
            return results[item[1]]
        return const(item[1], item[2])

    for instruction in program:
        operands = [_named(emitter, operand(o)) for o in instruction.operands]
        value = EXPRESSIONS[instruction.op](dict(instruction.attributes), operands, instruction.dtype)
        results.append(_named(emitter, value))
    return results[-1]


def _named(emitter: Emitter, value: Expr) -> Expr:
    simple = tirx.Var | tirx.IntImm | tirx.FloatImm
    return value if isinstance(value, simple) else emitter.let(value)


def const(value: float | int | bool, dtype: str) -> Expr:
    """A scalar constant."""
    if dtype == "bool":
        return tirx.IntImm("bool", int(value))
    if dtype.startswith("float"):
        return tirx.FloatImm(dtype, float(value))
    if dtype == "uint64" and value >= 1 << 63:
        return tirx.const(int(value) - (1 << 64), "int64").astype("uint64")
    return tirx.const(int(value), dtype)


def dtype_of(x: Expr) -> str:
    """Element type of an expression."""
    return str(x.ty.dtype)


def select(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """`yes` where condition; both are evaluated."""
    return tirx.Select(condition, yes, no)


def cast(x: Expr, dtype: str) -> Expr:
    """x as `dtype`; to bool means unequal to zero."""
    if dtype_of(x) == dtype:
        return x
    if dtype == "bool":
        return tirx.NE(x, const(0, dtype_of(x)))
    if dtype_of(x) == "bool":
        return select(x, const(1, dtype), const(0, dtype))
    return x.astype(dtype)


def lowest(dtype: str) -> Expr:
    """The least value of an element type."""
    return const(-math.inf, dtype) if dtype.startswith("float") else const(int(np.iinfo(dtype).min), dtype)


def highest(dtype: str) -> Expr:
    """The greatest value of an element type."""
    return const(math.inf, dtype) if dtype.startswith("float") else const(int(np.iinfo(dtype).max), dtype)


def is_nan(x: Expr) -> Expr:
    """True for NaN. TIR's != is false between NaNs (an ordered comparison), so this asks whether x equals itself."""
    return select(tirx.EQ(x, x), const(False, "bool"), const(True, "bool"))


def maximum(a: Expr, b: Expr) -> Expr:
    """max(a, b); NaN in either stays for floats."""
    if not dtype_of(a).startswith("float"):
        return tirx.max(a, b)
    return select(a > b, a, select(tirx.EQ(a, a), b, a))


def minimum(a: Expr, b: Expr) -> Expr:
    """min(a, b); NaN in either stays for floats."""
    if not dtype_of(a).startswith("float"):
        return tirx.min(a, b)
    return select(a < b, a, select(tirx.EQ(a, a), b, a))


def _in_float32(rule: Callable[[Expr], Expr], exact: Callable[[Expr], Expr]) -> ExpressionRule:
    """`rule` for float32 and float16 (widened), the library's function for float64."""

    def apply(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
        if dtype == "float64":
            return exact(args[0])
        return cast(rule(cast(args[0], "float32")), dtype)

    return apply


def intrinsic(name: str, x: Expr) -> Expr:
    """An LLVM intrinsic of one floating-point operand: `sqrt`, `floor`, `ceil`, `nearbyint`, `fabs`, …"""
    kind = dtype_of(x)
    return tirx.call_llvm_pure_intrin(kind, f"llvm.{name}", x)


def sqrt(x: Expr) -> Expr:
    """The square root of a float."""
    return intrinsic("sqrt", x)


def exp(x: Expr) -> Expr:
    """e**x in x's own type."""
    return EXPRESSIONS["Exp"]({}, [x], dtype_of(x))


def log(x: Expr) -> Expr:
    """ln(x) in x's own type."""
    return EXPRESSIONS["Log"]({}, [x], dtype_of(x))


EXPRESSIONS["Exp"] = _in_float32(epilogue.exp, lambda x: _extern("exp", x))
EXPRESSIONS["Log"] = _in_float32(epilogue.log, lambda x: _extern("log", x))
EXPRESSIONS["Tanh"] = _in_float32(epilogue.tanh, lambda x: _extern("tanh", x))
EXPRESSIONS["Erf"] = _in_float32(epilogue.erf, lambda x: _extern("erf", x))
EXPRESSIONS["Sigmoid"] = _in_float32(
    epilogue.sigmoid, lambda x: const(1, "float64") / (const(1, "float64") + _extern("exp", const(0, "float64") - x))
)


def _extern(symbol: str, *args: Expr) -> Expr:
    return tirx.call_pure_extern(dtype_of(args[0]), symbol, *args)


_LIBRARY = ["Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh"]


def _from_library(op: str) -> ExpressionRule:
    name = op.lower()
    return _in_float32(lambda x: _extern(f"{name}f", x), lambda x: _extern(name, x))


for _op in _LIBRARY:
    EXPRESSIONS[_op] = _from_library(_op)

_ACTIVATIONS: dict[str, tuple[str, tuple[float | None, float | None]]] = {
    # ONNX operator -> (name in schedules.epilogue, defaults of alpha and beta or gamma)
    "LeakyRelu": ("leaky_relu", (0.01, None)),
    "Elu": ("elu", (1.0, None)),
    "Selu": ("selu", (1.67326319217681884765625, 1.05070102214813232421875)),
    "Celu": ("celu", (1.0, None)),
    "HardSigmoid": ("hard_sigmoid", (0.2, 0.5)),
    "HardSwish": ("hard_swish", (None, None)),
    "Softplus": ("softplus", (None, None)),
    "Softsign": ("softsign", (None, None)),
    "ThresholdedRelu": ("thresholded_relu", (1.0, None)),
    "Mish": ("mish", (None, None)),
    "Swish": ("silu", (1.0, None)),
}


def activation(op: str, attributes: Attributes) -> tuple[str, float | None, float | None] | None:
    """(name, alpha, beta) of a one-input activation as `schedules.epilogue` knows it, or None."""
    if op in ("Relu", "Sigmoid", "Tanh"):
        return op.lower(), None, None
    if op == "Gelu":
        return ("gelu_tanh" if attributes.get("approximate", "none") == "tanh" else "gelu"), None, None
    if op == "Clip" and ("min" in attributes or "max" in attributes):
        return "clip", attributes.get("min"), attributes.get("max")
    if op not in _ACTIVATIONS:
        return None
    name, (alpha, beta) = _ACTIVATIONS[op]
    second = "gamma" if op == "Selu" else "beta"
    return name, attributes.get("alpha", alpha), attributes.get(second, beta)


def _activation(op: str) -> ExpressionRule:
    def apply(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
        known = activation(op, attributes)
        assert known is not None
        name, alpha, beta = known
        return cast(epilogue.activate(name, cast(args[0], "float32"), alpha, beta), dtype)

    return apply


for _op in (*_ACTIVATIONS, "Gelu"):
    EXPRESSIONS[_op] = _activation(_op)


@expression("Add", "Sum")
def _add(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    total = args[0]
    for arg in args[1:]:
        total = total + arg
    return total


@expression("Sub")
def _sub(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    return args[0] - args[1]


@expression("Mul")
def _mul(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    return args[0] * args[1]


@expression("Div")
def _div(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    return args[0] / args[1] if dtype.startswith("float") else tirx.truncdiv(args[0], args[1])


@expression("Mean")
def _mean(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    return _add(attributes, args, dtype) * const(1 / len(args), dtype)


@expression("Max")
def _max(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    best = args[0]
    for arg in args[1:]:
        best = maximum(best, arg)
    return best


@expression("Min")
def _min(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    best = args[0]
    for arg in args[1:]:
        best = minimum(best, arg)
    return best


@expression("Pow")
def _pow(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    base, power = args
    if isinstance(power, tirx.IntImm | tirx.FloatImm):
        exponent = float(power.value)
        if exponent == 0.5 and dtype.startswith("float"):
            return sqrt(base)
        if exponent == int(exponent) and 1 <= exponent <= 4:
            value = base
            for _ in range(int(exponent) - 1):
                value = value * base
            return value
    wide = "float64" if dtype in ("float64", "int32", "int64") else "float32"
    symbol = "pow" if wide == "float64" else "powf"
    return cast(tirx.call_pure_extern(wide, symbol, cast(base, wide), cast(power, wide)), dtype)


@expression("Mod")
def _mod(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    a, b = args
    zero = const(0, dtype)
    if dtype.startswith("float"):
        wide = "float64" if dtype == "float64" else "float32"
        rest = cast(_extern("fmod" if wide == "float64" else "fmodf", cast(a, wide), cast(b, wide)), dtype)
    else:
        rest = tirx.truncmod(a, b)
    if attributes.get("fmod", 0) or dtype.startswith("uint"):
        return rest
    one, none = const(1, "int8"), const(0, "int8")
    opposite = tirx.NE(select(rest < zero, one, none), select(b < zero, one, none))
    return select(tirx.all(tirx.NE(rest, zero), opposite), rest + b, rest)


@expression("Abs")
def _abs(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    if dtype.startswith("uint"):
        return args[0]
    return intrinsic("fabs", args[0]) if dtype.startswith("float") else tirx.max(args[0], const(0, dtype) - args[0])


@expression("Neg")
def _neg(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    return const(-1, dtype) * args[0] if dtype.startswith("float") else const(0, dtype) - args[0]


@expression("Sqrt")
def _sqrt(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    return sqrt(args[0])


@expression("Reciprocal")
def _reciprocal(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    return const(1, dtype) / args[0]


@expression("Relu")
def _relu(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    zero = const(0, dtype)
    return select(args[0] < zero, zero, args[0])


@expression("PRelu")
def _prelu(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    x, slope = args
    return select(x < const(0, dtype), x * slope, x)


@expression("Clip")
def _clip(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    """min and max come as operands 1 and 2, or as attributes where they are known."""
    x = args[0]
    low = attributes.get("min")
    high = attributes.get("max")
    if low is not None or "low" in attributes:
        bound = const(low, dtype) if low is not None else args[attributes["low"]]
        x = select(x < bound, bound, x)
    if high is not None or "high" in attributes:
        bound = const(high, dtype) if high is not None else args[attributes["high"]]
        x = select(x > bound, bound, x)
    return x


@expression("Floor")
def _floor(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    return intrinsic("floor", args[0])


@expression("Ceil")
def _ceil(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    return intrinsic("ceil", args[0])


@expression("Round")
def _round(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    return intrinsic("nearbyint", args[0])


@expression("Sign")
def _sign(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    x, zero = args[0], const(0, dtype)
    positive = select(x > zero, const(1, dtype), zero)
    return positive if dtype.startswith("uint") else select(x < zero, const(-1, dtype), positive)


@expression("Not")
def _not(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    return select(args[0], const(False, "bool"), const(True, "bool"))


@expression("And")
def _and(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    return select(args[0], args[1], const(False, "bool"))


@expression("Or")
def _or(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    return select(args[0], const(True, "bool"), args[1])


@expression("Xor")
def _xor(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    return tirx.NE(cast(args[0], "int8"), cast(args[1], "int8"))


def _compared(x: Expr) -> Expr:
    return cast(x, "int8") if dtype_of(x) == "bool" else x


@expression("Equal")
def _equal(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    return tirx.EQ(_compared(args[0]), _compared(args[1]))


@expression("Less")
def _less(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    return args[0] < args[1]


@expression("LessOrEqual")
def _less_or_equal(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    return args[0] <= args[1]


@expression("Greater")
def _greater(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    return args[0] > args[1]


@expression("GreaterOrEqual")
def _greater_or_equal(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    return args[0] >= args[1]


@expression("Where")
def _where(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    return select(args[0], args[1], args[2])


@expression("Cast", "CastLike")
def _cast(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    return cast(args[0], dtype)


@expression("Identity")
def _identity(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    return args[0]


@expression("IsNaN")
def _is_nan(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    return is_nan(args[0])


@expression("IsInf")
def _is_inf(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    kind = dtype_of(args[0])
    low = tirx.EQ(args[0], const(-math.inf, kind))
    high = tirx.EQ(args[0], const(math.inf, kind))
    if not attributes.get("detect_negative", 1):
        return high
    return tirx.any(low, high) if attributes.get("detect_positive", 1) else low


@expression("BitwiseAnd")
def _bitwise_and(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    return args[0] & args[1]


@expression("BitwiseOr")
def _bitwise_or(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    return args[0] | args[1]


@expression("BitwiseXor")
def _bitwise_xor(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    return args[0] ^ args[1]


@expression("BitwiseNot")
def _bitwise_not(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    return ~args[0]


@expression("BitShift")
def _bit_shift(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    x, shift = args
    bits = const(np.iinfo(dtype).bits, dtype)
    outside = shift >= bits
    if not dtype.startswith("uint"):
        outside = tirx.any(shift < const(0, dtype), outside)
    if attributes["direction"] == "LEFT":
        return select(outside, const(0, dtype), x << shift)
    return (
        x >> select(outside, bits - const(1, dtype), shift)
        if dtype.startswith("int")
        else select(outside, const(0, dtype), x >> shift)
    )


@expression("Shrink")
def _shrink(attributes: Attributes, args: list[Expr], dtype: str) -> Expr:
    bias, limit = attributes.get("bias", 0.0), attributes.get("lambd", 0.5)
    x, zero = args[0], const(0, dtype)
    low = select(x < const(-limit, dtype), x + const(bias, dtype), zero)
    return select(x > const(limit, dtype), x - const(bias, dtype), low)
