"""Variance scaling: weights of variance scale / n, and the named rules that are one choice of it each."""

import math
from dataclasses import dataclass, field

from initwell.errors import ArgumentError, UnknownNameError
from initwell.initializers.base import Initializer, Recipe
from initwell.initializers.citations import GLOROT_2010, HE_2015, LECUN_1998
from initwell.initializers.distributions import (
    Distribution,
    Normal,
    TruncatedNormal,
    Uniform,
    need_finite,
    need_positive,
)
from initwell.initializers.layout import Layout

MODES = ("fan_in", "fan_out", "average", "geometric")
DISTRIBUTIONS = ("uniform", "normal", "truncated_normal")


@dataclass(frozen=True)
class VarianceScaling(Initializer):
    """Zero-mean weights of variance scale / n, n being a fan or a mean of both.

    Args:
        scale: the variance times n: the square of the gain.
        mode: what n is: "fan_in", "fan_out", "average" (arithmetic mean) or "geometric" (geometric mean).
        distribution: "uniform", "normal" or "truncated_normal" (at two sigma, its std held).
        name: what the rule is called.
        citation: BibTeX of the rule.

    Raises:
        ArgumentError: the scale is not a positive number.
        UnknownNameError: an unknown mode or distribution.

    >>> VarianceScaling(2.0, "fan_in", "normal").recipe(Layout((10, 50))).distribution
    Normal(mean=0.0, std=0.2)
    """

    scale: float = 1.0
    mode: str = "fan_in"
    distribution: str = "truncated_normal"
    name: str = "variance_scaling"
    citation: str = field(default=LECUN_1998, repr=False)

    def __post_init__(self) -> None:
        """Refuse unknown names and a scale that is no variance."""
        need_positive("scale", self.scale)
        _among("mode", self.mode, MODES)
        _among("distribution", self.distribution, DISTRIBUTIONS)

    def recipe(self, layout: Layout) -> Recipe:
        """Return the distribution of variance scale / n."""
        n = combined_fan(layout, self.mode)
        return Recipe(spread(self.scale / n, self.distribution), fan=n, gain=math.sqrt(self.scale))

    def describe(self) -> str:
        """Return such as "xavier uniform, fan average"."""
        word = self.mode.removeprefix("fan_")
        return f"{self.name} {self.distribution.replace('_', ' ')}, fan {word}"


def lecun(mode: str = "fan_in", distribution: str = "normal") -> VarianceScaling:
    """Variance 1 / n: a linear layer passes on the variance of its input.

    >>> lecun().describe()
    'lecun normal, fan in'
    """
    return VarianceScaling(1.0, mode, distribution, "lecun", LECUN_1998)


def inverse_sqrt(mode: str = "fan_in", distribution: str = "normal") -> VarianceScaling:
    """Randn / √n, the tutorials' calibrated rule: the same as LeCun's."""
    return VarianceScaling(1.0, mode, distribution, "inverse sqrt", LECUN_1998)


def xavier(gain: float = 1.0, mode: str = "average", distribution: str = "uniform") -> VarianceScaling:
    """Variance gain² · 2 / (n_in + n_out): the compromise between the forward and the backward pass.

    >>> xavier().describe()
    'xavier uniform, fan average'
    """
    need_positive("gain", gain)
    return VarianceScaling(gain * gain, mode, distribution, "xavier", GLOROT_2010)


def kaiming(
    slope: float | None = None, gain: float | None = None, mode: str = "fan_in", distribution: str = "normal"
) -> VarianceScaling:
    """Variance gain² / n, with the gain of the rectifier that follows: 2 / (1 + slope²).

    Args:
        slope: negative slope of a leaky or parametric ReLU; 0 if neither is given.
        gain: the gain of any other activation, instead of a slope.
        mode: "fan_in" holds the forward pass, "fan_out" the backward pass.
        distribution: as in VarianceScaling.

    Returns:
        The rule.

    Raises:
        ArgumentError: both slope and gain are given, or one is no usable number.

    Source: He et al. 2015, eqs. 10 and 14; with a slope eq. 15.

    >>> kaiming(slope=1.0).scale, round(kaiming(gain=5 / 3).scale, 4)
    (1.0, 2.7778)
    """
    if slope is not None and gain is not None:
        raise ArgumentError(
            "gain", f"{gain} together with slope {slope}", "Give one of them: a slope makes its own gain."
        )
    if gain is not None:
        need_positive("gain", gain)
        return VarianceScaling(gain * gain, mode, distribution, "kaiming", HE_2015)
    slope = 0.0 if slope is None else slope
    need_finite("slope", slope)
    return VarianceScaling(2.0 / (1.0 + slope * slope), mode, distribution, "kaiming", HE_2015)


def combined_fan(layout: Layout, mode: str) -> float:
    """Return the fan that a mode names.

    Raises:
        ShapeError: the layout has no fan.
        UnknownNameError: an unknown mode.

    >>> combined_fan(Layout((8, 2)), "geometric")
    4.0
    """
    _among("mode", mode, MODES)
    fans = {
        "fan_in": lambda: layout.fan_in,
        "fan_out": lambda: layout.fan_out,
        "average": lambda: (layout.fan_in + layout.fan_out) / 2,
        "geometric": lambda: math.sqrt(layout.fan_in * layout.fan_out),
    }
    return fans[mode]()


def spread(variance: float, distribution: str) -> Distribution:
    """Return the zero-mean distribution of a kind that has the variance.

    >>> spread(3.0, "uniform")
    Uniform(low=-3.0, high=3.0)
    """
    _among("distribution", distribution, DISTRIBUTIONS)
    if distribution == "uniform":
        bound = math.sqrt(3 * variance)
        return Uniform(-bound, bound)
    std = math.sqrt(variance)
    return Normal(0.0, std) if distribution == "normal" else TruncatedNormal(0.0, std)


def _among(argument: str, got: str, known: tuple[str, ...]) -> None:
    if got not in known:
        raise UnknownNameError.among(argument, got, known)
