"""The chain of layers: how second moments multiply up on the way forward and on the way back.

Forward, E[y²] = fan_in·Var(w)·E[x²] + Var(b) and E[x²] = E[φ(y)²]; backward, the gradient's second moment is multiplied
by E[φ′(y)²] and by fan_out·Var(w). With zero-mean weights it is the second moment of x that counts, mean included.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from initwell.errors import ArgumentError
from initwell.records import Record, TableRecord, number
from initwell.theory.activation import Activation
from initwell.theory.activations import activation
from initwell.theory.moments import derivative_second_moment, second_moment


@dataclass(frozen=True)
class ChainLayer:
    """One layer, a weight and the activation after it.

    Attributes:
        fan_in: true forward fan, terms per output.
        fan_out: true backward fan, terms per input's gradient; of a layer before a gate it covers both halves.
        weight_variance: Var(w) of one weight, whose mean is 0.
        bias_variance: Var(b).
        activation: anything ``activation()`` takes.
    """

    fan_in: float
    fan_out: float
    weight_variance: float
    bias_variance: float = 0.0
    activation: Any = "identity"


@dataclass(frozen=True)
class Chain(TableRecord):
    """What the formula says of every layer.

    Attributes:
        rows: one per layer, in forward order, with ``layer`` (from 1), ``activation``, ``fan_in``, ``fan_out``,
            ``weight_variance``, ``forward_second_moment`` (E[y²] of the layer's output before its activation),
            ``activation_second_moment`` (E[φ(y)²]), ``gradient_second_moment`` (with respect to the layer's input),
            ``forward_factor`` (E[φ(y)²] over E[x²]), ``backward_factor`` (gradient at the input over gradient at the
            output) and ``product`` (the two factors written out).
        q0: E[x²] of the input.
        g0: second moment of the gradient with respect to the last activation.
    """

    rows: tuple[Mapping[str, Any], ...]
    q0: float
    g0: float

    @property
    def forward_factor(self) -> float:
        """Return the product of all forward factors: E[x²] of the output over q₀."""
        return float(math.prod(row["forward_factor"] for row in self.rows))

    @property
    def backward_factor(self) -> float:
        """Return the product of all backward factors: the gradient at the input over g₀."""
        return float(math.prod(row["backward_factor"] for row in self.rows))

    def table_title(self) -> str:
        """Return the line above the table."""
        return f"Chain of {len(self.rows)} layers, input E[x²] = {number(self.q0)}, output gradient {number(self.g0)}"

    def table_columns(self) -> Sequence[str]:
        """Return the row keys to show, in order."""
        return (
            "layer",
            "fan_in",
            "fan_out",
            "weight_variance",
            "forward_second_moment",
            "activation_second_moment",
            "gradient_second_moment",
            "product",
        )

    def table_rows(self) -> Sequence[Mapping[str, Any]]:
        """Return the rows to show."""
        return self.rows

    def table_notes(self) -> Sequence[str]:
        """Return the products over the whole depth."""
        return (
            f"Forward, E[x²] is multiplied by {number(self.forward_factor)} in all.",
            f"Backward, the gradient's second moment by {number(self.backward_factor)}.",
        )


@dataclass(frozen=True)
class Residual(Record):
    """What the compromise leaves.

    Attributes:
        forward: factor of E[y²] of a linear layer, 2·fan_in/(fan_in + fan_out).
        backward: factor of the gradient's second moment, 2·fan_out/(fan_in + fan_out).
    """

    forward: float
    backward: float


def _positive(argument: str, value: float, zero: bool = False) -> float:
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ArgumentError(argument, value, f"Give a finite number, {'0 or more' if zero else 'above 0'}.")
    return float(value)


def _checked(layers: Sequence[ChainLayer]) -> list[tuple[ChainLayer, Activation]]:
    if not layers:
        raise ArgumentError("layers", "none", "Give at least one ChainLayer.")
    for k, layer in enumerate(layers, 1):
        _positive(f"layers[{k}].fan_in", layer.fan_in)
        _positive(f"layers[{k}].fan_out", layer.fan_out)
        _positive(f"layers[{k}].weight_variance", layer.weight_variance, zero=True)
        _positive(f"layers[{k}].bias_variance", layer.bias_variance, zero=True)
    return [(layer, activation(layer.activation)) for layer in layers]


def _forward(layer: ChainLayer, phi: Activation, before: float) -> tuple[float, float, float]:
    # E[y²], E[φ(y)²] and E[φ′(y)²].
    q = layer.fan_in * layer.weight_variance * before + layer.bias_variance
    if q > 0:
        return q, second_moment(phi, q).value, derivative_second_moment(phi, q).value
    zero = np.zeros(1)
    if phi.gate is not None:
        return 0.0, 0.0, float(phi.gate.fn(zero)[0]) ** 2 / 2
    return 0.0, float(phi.fn(zero)[0]) ** 2, float(phi.derivative(zero)[0]) ** 2


def _written(layer: ChainLayer, q: float, before: float, after: float, slope: float) -> str:
    share = after / q if q else math.nan
    forward = f"{number(layer.fan_in)}·{number(layer.weight_variance)}·{number(share)}"
    if layer.bias_variance:
        # The bias adds to E[y²]; what is written is then only the part that comes through the weights.
        forward += f" (+ {number(layer.bias_variance * share / before) if before else 'bias'})"
    backward = f"{number(layer.fan_out)}·{number(layer.weight_variance)}·{number(slope)}"
    return f"forward {forward}, backward {backward}"


def _row(k: int, layer: ChainLayer, phi: Activation, moments: tuple[float, float, float, float]) -> dict[str, Any]:
    q, before, after, slope = moments
    return {
        "layer": k,
        "activation": str(phi),
        "fan_in": float(layer.fan_in),
        "fan_out": float(layer.fan_out),
        "weight_variance": float(layer.weight_variance),
        "forward_second_moment": q,
        "activation_second_moment": after,
        "forward_factor": after / before if before else math.nan,
        "backward_factor": slope * layer.fan_out * layer.weight_variance,
        "product": _written(layer, q, before, after, slope),
    }


def chain(layers: Sequence[ChainLayer], *, q0: float = 1.0, g0: float = 1.0) -> Chain:
    """Follow the second moments of signal and gradient through a chain of layers.

    Args:
        layers: in forward order.
        q0: E[x²] of the input.
        g0: second moment of the gradient with respect to the output of the last activation.

    Returns:
        A row per layer and the products over the depth; exact for wide layers with fresh zero-mean weights, the
        gradient taken to be independent of the activations it meets.

    Raises:
        ArgumentError: no layers, or a number that is not a fan or a variance.
        UnknownNameError: an activation that is not known.

    Source: Glorot & Bengio, AISTATS 2010, eq. 5 to 7; He et al., ICCV 2015, eq. 9 and 13.

    >>> layer = ChainLayer(400, 400, 2 / 400, activation="relu")
    >>> result = chain([layer] * 3)
    >>> round(result.forward_factor, 12), result.rows[0]["forward_second_moment"]
    (1.0, 2.0)
    """
    pairs = _checked(layers)
    before = _positive("q0", q0)
    moments = []
    for layer, phi in pairs:
        q, after, slope = _forward(layer, phi, before)
        moments.append((q, before, after, slope))
        before = after
    rows: list[Mapping[str, Any]] = []
    gradient = _positive("g0", g0, zero=True)
    for k in range(len(pairs), 0, -1):
        row = _row(k, *pairs[k - 1], moments[k - 1])
        gradient *= row["backward_factor"]
        rows.append(row | {"gradient_second_moment": gradient})
    return Chain(tuple(reversed(rows)), float(q0), float(g0))


def compromise_residual(fan_in: float, fan_out: float) -> Residual:
    """Compute what the weight variance 2/(fan_in + fan_out) leaves of the second moments of a linear layer.

    Args:
        fan_in: true forward fan.
        fan_out: true backward fan.

    Returns:
        The forward and the backward factor; their mean is 1, and both are 1 only where the fans are equal.

    Raises:
        ArgumentError: a fan is not a finite number above 0.

    Source: Glorot & Bengio, AISTATS 2010, eq. 12.

    >>> compromise_residual(300, 100)
    Residual(forward=1.5, backward=0.5)
    """
    total = _positive("fan_in", fan_in) + _positive("fan_out", fan_out)
    return Residual(2 * fan_in / total, 2 * fan_out / total)
