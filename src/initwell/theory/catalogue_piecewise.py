"""The activations that are polynomials between knots: ReLU and its relatives, and the hard versions of smooth ones."""

import math

from initwell.theory.activation import Activation, require
from initwell.theory.closed_forms import arc_cosine, leaky_overlaps
from initwell.theory.piecewise import piecewise


def identity() -> Activation:
    """No activation, x."""
    overlaps = {"overlap": lambda q, c: q * c, "derivative_overlap": lambda q, c: 1.0}
    return piecewise("identity", (), ((0, 1),), closed_forms=overlaps, citation="")


def relu() -> Activation:
    """Rectified linear unit, max(x, 0)."""
    return piecewise(
        "relu", (0,), ((0,), (0, 1)), closed_forms=leaky_overlaps(0.0), citation="Nair & Hinton, ICML 2010"
    )


def _leaky(name: str, slope: float, parameters: dict[str, float], citation: str) -> Activation:
    return piecewise(
        name,
        (0,),
        ((0, slope), (0, 1)),
        parameters=parameters,
        closed_forms=leaky_overlaps(slope),
        citation=citation,
    )


def leaky_relu(slope: float = 0.01) -> Activation:
    """Leaky ReLU, x or slope·x."""
    return _leaky("leaky_relu", slope, {"slope": slope}, "Maas, Hannun & Ng, ICML workshop 2013")


def prelu(slope: float = 0.25) -> Activation:
    """Parametric ReLU at the slope it starts from; of a module, the root mean square of its slopes."""
    return _leaky("prelu", slope, {"slope": slope}, "He, Zhang, Ren & Sun, ICCV 2015")


def rrelu(lower: float = 1 / 8, upper: float = 1 / 3) -> Activation:
    """Randomized ReLU: the slope √E[a²], a ~ U(lower, upper), which has the second moments of training mode."""
    slope = math.sqrt((lower * lower + lower * upper + upper * upper) / 3)
    return _leaky("rrelu", slope, {"lower": lower, "upper": upper}, "Xu, Wang, Chen & Li, arXiv:1505.00853")


def absolute() -> Activation:
    """Absolute value, |x|: a leaky ReLU of slope −1."""
    return _leaky("abs", -1.0, {}, "Jarrett, Kavukcuoglu, Ranzato & LeCun, ICCV 2009")


def relu6() -> Activation:
    """ReLU cut off at 6."""
    return piecewise("relu6", (0, 6), ((0,), (0, 1), (6,)), citation="Krizhevsky, 2010")


def relu2() -> Activation:
    """Squared ReLU, max(x, 0)²."""
    overlaps = {
        "overlap": lambda q, c: arc_cosine(2, q, c),
        "derivative_overlap": lambda q, c: 4 * arc_cosine(1, q, c),
    }
    return piecewise(
        "relu2", (0,), ((0,), (0, 0, 1)), closed_forms=overlaps, citation="So et al., Primer, NeurIPS 2021"
    )


def star_relu(scale: float = 0.8944271909999159, bias: float = -0.4472135954999579) -> Activation:
    """StarReLU, scale·max(x, 0)² + bias; the defaults give it mean 0 and variance 1."""
    return piecewise(
        "star_relu",
        (0,),
        ((bias,), (bias, 0, scale)),
        parameters={"scale": scale, "bias": bias},
        citation="Yu et al., MetaFormer baselines for vision, TPAMI 2024",
    )


def threshold(threshold: float = 1.0, value: float = 0.0) -> Activation:
    """Threshold: x above ``threshold``, ``value`` up to it."""
    parameters = {"threshold": threshold, "value": value}
    return piecewise("threshold", (threshold,), ((value,), (0, 1)), parameters=parameters, citation="PyTorch")


def hardtanh(low: float = -1.0, high: float = 1.0) -> Activation:
    """Hard tanh, x cut off at ``low`` and ``high``."""
    require(low < high, "hardtanh low", low, f"It must lie below high = {high:g}.")
    return piecewise(
        "hardtanh",
        (low, high),
        ((low,), (0, 1), (high,)),
        parameters={"low": low, "high": high},
        citation="Collobert, 2004",
    )


def hardsigmoid() -> Activation:
    """Hard sigmoid, x/6 + 1/2 cut off at 0 and 1."""
    return piecewise(
        "hardsigmoid", (-3, 3), ((0,), (0.5, 1 / 6), (1,)), citation="Courbariaux, Bengio & David, NIPS 2015"
    )


def hardswish() -> Activation:
    """Hard swish, x·hardsigmoid(x)."""
    return piecewise("hardswish", (-3, 3), ((0,), (0, 0.5, 1 / 6), (0, 1)), citation="Howard et al., ICCV 2019")


def hard_mish() -> Activation:
    """Hard mish, x/2·min(2, max(0, x + 2))."""
    return piecewise("hard_mish", (-2, 0), ((0,), (0, 1, 0.5), (0, 1)), citation="timm")


def softshrink(threshold: float = 0.5) -> Activation:
    """Soft shrinkage: x moved towards 0 by ``threshold``, 0 where it would cross."""
    require(threshold > 0, "softshrink threshold", threshold, "Give a number above 0.")
    return piecewise(
        "softshrink",
        (-threshold, threshold),
        ((threshold, 1), (0,), (-threshold, 1)),
        parameters={"threshold": threshold},
        citation="Donoho, IEEE Trans. Inf. Theory 1995",
    )


def hardshrink(threshold: float = 0.5) -> Activation:
    """Hard shrinkage: 0 within ``threshold`` of 0, x outside; it jumps at both ends."""
    require(threshold > 0, "hardshrink threshold", threshold, "Give a number above 0.")
    return piecewise(
        "hardshrink",
        (-threshold, threshold),
        ((0, 1), (0,), (0, 1)),
        parameters={"threshold": threshold},
        citation="Donoho & Johnstone, Biometrika 1994",
    )


ENTRIES = {
    "identity": identity,
    "relu": relu,
    "leaky_relu": leaky_relu,
    "prelu": prelu,
    "rrelu": rrelu,
    "abs": absolute,
    "relu6": relu6,
    "relu2": relu2,
    "star_relu": star_relu,
    "threshold": threshold,
    "hardtanh": hardtanh,
    "hardsigmoid": hardsigmoid,
    "hardswish": hardswish,
    "hard_mish": hard_mish,
    "softshrink": softshrink,
    "hardshrink": hardshrink,
}
