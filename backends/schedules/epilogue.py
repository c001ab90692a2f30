"""What happens to a result on its way out: bias, residual, activation, and the elementary functions for it.

exp, log, tanh, erf and sigmoid are polynomials on scalars and vectors alike, accurate to a few ulp, right at large
and infinite arguments and on NaN; the coefficients are minimax fits made for this file (reweighted least squares).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx

from backends.schedules.emit import Expr, at_least, at_most, const, dtype_of, lanes_of, shared, splat, widened
from compiler.errors import SecateurError


@dataclass(frozen=True)
class Epilogue:
    """y = activation(result + bias + residual); alpha and beta are the activation's own parameters.

    alpha and beta mean what the ONNX operator's attributes mean (clip: min and max); None is the ONNX default.
    """

    bias: bool = False
    residual: bool = False
    activation: str | None = None
    alpha: float | None = None
    beta: float | None = None

    def __post_init__(self) -> None:
        if self.activation is not None:
            _rule(self.activation)

    def apply(self, value: Expr) -> Expr:
        """The activation of a scalar or vector."""
        return activate(self.activation, value, self.alpha, self.beta)


def activate(name: str | None, x: Expr, alpha: float | None = None, beta: float | None = None) -> Expr:
    """Activation `name` of x (None: x itself), in x's type; what takes a polynomial is computed in float32.

    Raises SecateurError E_ACTIVATION for an unknown name.
    """
    if name is None:
        return x
    rule = _rule(name)
    return rule(x, alpha, beta) if name in _PIECEWISE else widened(rule(widened(x), alpha, beta), dtype_of(x))


def _rule(name: str) -> Activation:
    rule = ACTIVATIONS.get(name)
    if rule is None:
        known = ", ".join(sorted(ACTIVATIONS))
        raise SecateurError("E_ACTIVATION", f"no schedule for activation '{name}'", hint=f"known: {known}")
    return rule


def _once(rule: Callable[..., Expr]) -> Callable[..., Expr]:
    """A function of x whose argument is named first."""

    @functools.wraps(rule)
    def wrapped(x: Expr, *rest: float | None) -> Expr:
        return shared(x, lambda name: rule(name, *rest))

    return wrapped


@_once
def maximum(x: Expr, bound: float) -> Expr:
    """max(x, bound); NaN stays NaN."""
    return at_least(x, _like(x, bound))


@_once
def minimum(x: Expr, bound: float) -> Expr:
    """min(x, bound); NaN stays NaN."""
    return at_most(x, _like(x, bound))


_EXP = (0.4999999403953552, 0.16666509211063385, 0.04166852682828903, 0.00837013591080904, 0.0013811656972393394)
_LN2_HIGH = 0.693145751953125
_LN2_LOW = 1.42860682030941723212e-6
_ROUND = 12582912.0  # 1.5 * 2**23: adding it leaves the nearest integer in the low bits


def exp(x: Expr) -> Expr:
    """e**x."""
    lanes = lanes_of(x)
    magic = const(_ROUND, lanes)

    def scale(value: Expr, power: Expr) -> Expr:
        half = power >> splat(tirx.IntImm("int32", 1), lanes)
        return shared(half, lambda half: value * _power_of_two(half) * _power_of_two(power - half))

    def assemble(x: Expr, shifted: Expr) -> Expr:
        whole = shifted - magic
        rest = x - whole * const(_LN2_HIGH, lanes) - whole * const(_LN2_LOW, lanes)
        value = shared(rest, lambda r: const(1.0, lanes) + (r + r * r * _polynomial(r, _EXP)))
        power = _as_int(shifted) - splat(tirx.IntImm("int32", 0x4B400000), lanes)
        return shared(power, lambda power: scale(value, power))

    def reduce(x: Expr) -> Expr:
        return shared(x * const(1 / math.log(2), lanes) + magic, lambda shifted: assemble(x, shifted))

    return shared(minimum(maximum(x, -104.0), 88.8), reduce)


_EXP_QUICK = (1.0, 1.0, 0.4999922811985016, 0.16667117178440094, 0.041890520602464676, 0.008312450721859932)
_ROUND_BIASED = _ROUND + 127.0  # leaves the biased exponent of 2**n in the low bits


@_once
def exp_quick(x: Expr) -> Expr:
    """e**x in half the operations, for what becomes a sum or a quotient: relative error 2e-7.

    0 below -87.7, infinity above 88.4; x must lie within [-88.3, 88.7], or be NaN.
    """
    return _exp_quick(x, 1.0)


def _exp_quick(x: Expr, sign: float) -> Expr:
    """e**(sign * x)."""
    lanes = lanes_of(x)
    magic = const(_ROUND_BIASED, lanes)

    def assemble(shifted: Expr) -> Expr:
        whole = shifted - magic
        rest = x - whole * const(sign * _LN2_HIGH, lanes) - whole * const(sign * _LN2_LOW, lanes)
        alternating = [c * sign**i for i, c in enumerate(_EXP_QUICK)]
        value = shared(rest, lambda r: _polynomial(r, alternating))
        return value * _as_float(_as_int(shifted) << splat(tirx.IntImm("int32", 23), lanes))

    return shared(x * const(sign / math.log(2), lanes) + magic, assemble)


_LOG = (
    -0.49999988079071045,
    0.3333330750465393,
    -0.2500152289867401,
    0.2000301480293274,
    -0.16611145436763763,
    0.14163485169410706,
    -0.1320885866880417,
    0.13004741072654724,
    -0.07823110371828079,
)


@_once
def log(x: Expr) -> Expr:
    """The natural logarithm; log(0) = -inf, log(negative) = NaN."""
    lanes = lanes_of(x)
    zero, infinity = const(0.0, lanes), const(math.inf, lanes)
    bits = splat(tirx.IntImm("int32", 23), lanes)
    tiny = x < const(1.1754943508222875e-38, lanes)

    def assemble(scaled: Expr, exponent: Expr) -> Expr:
        rest = _as_float(_as_int(scaled) - (exponent << bits)) - const(1.0, lanes)
        whole = exponent.astype(_kind("float32", lanes)) - tirx.Select(tiny, const(24.0, lanes), zero)
        return shared(rest, lambda rest: shared(whole, lambda whole: combine(rest, whole)))

    def combine(rest: Expr, whole: Expr) -> Expr:
        value = rest * rest * _polynomial(rest, _LOG) + whole * const(_LN2_LOW, lanes)
        return rest + value + whole * const(_LN2_HIGH, lanes)

    def split(scaled: Expr) -> Expr:
        exponent = (_as_int(scaled) - splat(tirx.IntImm("int32", 0x3F3504F3), lanes)) >> bits
        return shared(exponent, lambda exponent: assemble(scaled, exponent))

    value = shared(tirx.Select(tiny, x * const(2.0**24, lanes), x), split)
    value = tirx.Select(x < infinity, value, x)
    value = tirx.Select(x > zero, value, tirx.Select(x < zero, const(math.nan, lanes), const(-math.inf, lanes)))
    return tirx.Select(x == x, value, x)


_TANH = (-0.3333333134651184, 0.13333210349082947, -0.05394720286130905, 0.02170296385884285, -0.008182666264474392)
_TANH_LAST = 0.002147530671209097


@_once
def tanh(x: Expr) -> Expr:
    """The hyperbolic tangent: an odd polynomial near 0, 1 - 2 / (exp(2|x|) + 1) elsewhere."""
    lanes = lanes_of(x)
    one = const(1.0, lanes)
    near = shared(x * x, lambda square: x + x * square * _polynomial(square, (*_TANH, _TANH_LAST)))

    def join(size: Expr) -> Expr:
        far = one - const(2.0, lanes) / (exp_quick(minimum(size + size, 88.0)) + one)
        return tirx.Select(size < const(0.625, lanes), near, _with_sign_of(x, far))

    return shared(_absolute(x), join)


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e**-x)."""
    lanes = lanes_of(x)
    return const(1.0, lanes) / _one_and_exp_of_minus(maximum(x, _LOWEST))


_LOWEST = -88.6  # e**88.6 counts as infinite


@_once
def _one_and_exp_of_minus(x: Expr) -> Expr:
    """1 + e**-x for x >= _LOWEST."""
    capped = minimum(x, 88.0)
    return const(1.0, lanes_of(x)) + shared(capped, lambda capped: _exp_quick(capped, -1.0))


_ERF_NEAR = (
    1.128379225730896,
    -0.37612637877464294,
    0.11283782124519348,
    -0.0268654003739357,
    0.005220945458859205,
    -0.000848282827064395,
    0.00011256945435889065,
    -9.641508768254425e-06,
)
_ERFC_LOG = (
    0.0001834464492276311,
    -1.1295568943023682,
    -0.633262574672699,
    -0.1083725094795227,
    0.02517898567020893,
    -0.004193618427962065,
    0.00043910794192925096,
    -2.1496254703379236e-05,
)


@_once
def erf(x: Expr) -> Expr:
    """The error function: an odd polynomial below 1, 1 - exp(polynomial) above."""
    lanes = lanes_of(x)
    near = x * shared(x * x, lambda square: _polynomial(square, _ERF_NEAR))

    def join(size: Expr) -> Expr:
        complement = exp_quick(shared(minimum(size, 4.0), lambda capped: _polynomial(capped, _ERFC_LOG)))
        far = const(1.0, lanes) - complement
        return tirx.Select(size < const(1.0, lanes), near, _with_sign_of(x, far))

    return shared(_absolute(x), join)


_NORMAL_TAIL_LOG = (
    -0.6931471228599548,
    -0.797888457775116,
    -0.3182739317417145,
    -0.03646165132522583,
    0.005002016667276621,
    -0.0001756668498273939,
    -9.571609552949667e-05,
    2.028990820690524e-05,
    -1.3806858305542846e-06,
)
_NORMAL_TAIL_END = 10.344  # the polynomial is -88 here, whose exp_quick is 0


def _polynomial(x: Expr, coefficients: Sequence[float]) -> Expr:
    lanes = lanes_of(x)
    value = const(coefficients[-1], lanes)
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + const(coefficient, lanes)
    return value


def _like(x: Expr, value: float) -> Expr:
    """A constant of x's type, in as many lanes."""
    return const(value, lanes_of(x), dtype_of(x))


def _kind(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def _as_int(x: Expr) -> Expr:
    return tirx.reinterpret(_kind("int32", lanes_of(x)), x)


def _as_float(x: Expr) -> Expr:
    return tirx.reinterpret(_kind("float32", lanes_of(x)), x)


def _power_of_two(exponent: Expr) -> Expr:
    lanes = lanes_of(exponent)
    biased = exponent + splat(tirx.IntImm("int32", 127), lanes)
    return _as_float(biased << splat(tirx.IntImm("int32", 23), lanes))


def _absolute(x: Expr) -> Expr:
    return _as_float(_as_int(x) & splat(tirx.IntImm("int32", 0x7FFFFFFF), lanes_of(x)))


def _with_sign_of(x: Expr, size: Expr) -> Expr:
    sign = _as_int(x) & splat(tirx.IntImm("int32", -0x80000000), lanes_of(x))
    return _as_float(_as_int(size) | sign)


Activation = Callable[[Expr, float | None, float | None], Expr]
ACTIVATIONS: dict[str, Activation] = {}
#: Activations of a few multiplications and comparisons, which lose nothing in a narrow type.
_PIECEWISE = {"relu", "clip", "leaky_relu", "hard_sigmoid", "hard_swish", "thresholded_relu"}


def _activation(name: str) -> Callable[[Activation], Activation]:
    def register(rule: Activation) -> Activation:
        ACTIVATIONS[name] = _once(rule)
        return ACTIVATIONS[name]

    return register


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


@_activation("relu")
def _relu(x: Expr, alpha: float | None, beta: float | None) -> Expr:
    return maximum(x, 0.0)


@_activation("clip")
def _clip(x: Expr, alpha: float | None, beta: float | None) -> Expr:
    x = x if alpha is None else maximum(x, alpha)
    return x if beta is None else minimum(x, beta)


@_activation("leaky_relu")
def _leaky_relu(x: Expr, alpha: float | None, beta: float | None) -> Expr:
    return tirx.Select(x < _like(x, 0.0), x * _like(x, _given(alpha, 0.01)), x)


@_activation("elu")
def _elu(x: Expr, alpha: float | None, beta: float | None) -> Expr:
    lanes = lanes_of(x)
    low = (exp(x) - const(1.0, lanes)) * const(_given(alpha, 1.0), lanes)
    return tirx.Select(x < const(0.0, lanes), low, x)


@_activation("selu")
def _selu(x: Expr, alpha: float | None, beta: float | None) -> Expr:
    scale = _given(beta, 1.0507009873554804934193349852946)
    return _elu(x, _given(alpha, 1.6732632423543772848170429916717), None) * const(scale, lanes_of(x))


@_activation("celu")
def _celu(x: Expr, alpha: float | None, beta: float | None) -> Expr:
    lanes = lanes_of(x)
    scale = _given(alpha, 1.0)
    low = (exp(x * const(1 / scale, lanes)) - const(1.0, lanes)) * const(scale, lanes)
    return tirx.Select(x < const(0.0, lanes), low, x)


@_activation("hard_sigmoid")
def _hard_sigmoid(x: Expr, alpha: float | None, beta: float | None) -> Expr:
    return _clip(x * _like(x, _given(alpha, 0.2)) + _like(x, _given(beta, 0.5)), 0.0, 1.0)


@_activation("hard_swish")
def _hard_swish(x: Expr, alpha: float | None, beta: float | None) -> Expr:
    return x * _hard_sigmoid(x, _given(alpha, 1 / 6), _given(beta, 0.5))


@_activation("sigmoid")
def _sigmoid(x: Expr, alpha: float | None, beta: float | None) -> Expr:
    return sigmoid(x)


@_activation("silu")
def _silu(x: Expr, alpha: float | None, beta: float | None) -> Expr:
    if alpha is None or alpha == 1.0:  # a huge negative x must not outgrow the divisor
        return shared(maximum(x, _LOWEST), lambda x: x / _one_and_exp_of_minus(x))
    return x * sigmoid(x * const(alpha, lanes_of(x)))


@_activation("tanh")
def _tanh(x: Expr, alpha: float | None, beta: float | None) -> Expr:
    return tanh(x)


@_activation("gelu")
def _gelu(x: Expr, alpha: float | None, beta: float | None) -> Expr:
    """max(x, 0) - |x| P(X > |x|) for a normal X, with the probability as exp(polynomial)."""

    def combine(size: Expr) -> Expr:
        return maximum(x, 0.0) - size * exp_quick(_polynomial(size, _NORMAL_TAIL_LOG))

    return shared(minimum(_absolute(x), _NORMAL_TAIL_END), combine)


@_activation("gelu_tanh")
def _gelu_tanh(x: Expr, alpha: float | None, beta: float | None) -> Expr:
    lanes = lanes_of(x)
    inner = x * (const(1.0, lanes) + x * x * const(0.044715, lanes)) * const(math.sqrt(2 / math.pi), lanes)
    return x * const(0.5, lanes) * (const(1.0, lanes) + tanh(inner))


@_activation("softplus")
def _softplus(x: Expr, alpha: float | None, beta: float | None) -> Expr:
    lanes = lanes_of(x)
    zero = const(0.0, lanes)
    return maximum(x, 0.0) + log(const(1.0, lanes) + exp(zero - _absolute(x)))


@_activation("mish")
def _mish(x: Expr, alpha: float | None, beta: float | None) -> Expr:
    return x * tanh(_softplus(x, None, None))


@_activation("softsign")
def _softsign(x: Expr, alpha: float | None, beta: float | None) -> Expr:
    return x / (const(1.0, lanes_of(x)) + _absolute(x))


@_activation("thresholded_relu")
def _thresholded_relu(x: Expr, alpha: float | None, beta: float | None) -> Expr:
    return tirx.Select(x > _like(x, _given(alpha, 1.0)), x, _like(x, 0.0))
