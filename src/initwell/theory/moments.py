"""Moments of an activation of a Gaussian: closed form first, quadrature second, and which it was."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from initwell.errors import ArgumentError
from initwell.records import Record
from initwell.theory.activation import Activation, Array, Function
from initwell.theory.activations import activation
from initwell.theory.quadrature import expectation, pair_expectation, standard_breaks

Method = Literal["closed-form", "quadrature"]

# What the guards against cancellation in the closed forms let through at worst.
_CLOSED_FORM_ERROR = 1e-12


@dataclass(frozen=True)
class Moment(Record):
    """One expectation.

    Attributes:
        value: the expectation.
        error: estimate of its absolute error.
        method: "closed-form" or "quadrature".
    """

    value: float
    error: float
    method: Method

    def __float__(self) -> float:
        """Return the value."""
        return self.value

    def times(self, factor: float) -> "Moment":
        """Return the moment multiplied by an exact number."""
        return Moment(self.value * factor, self.error * abs(factor), self.method)


def check_q(q: float) -> float:
    """Return ``q`` as a float if it is a variance: finite and above 0; raise ArgumentError if not."""
    if not isinstance(q, (int, float, np.floating, np.integer)) or not math.isfinite(q) or q <= 0:
        raise ArgumentError("q", q, "It is the variance of the pre-activation: give a finite number above 0.")
    return float(q)


def _check_mu(mu: float) -> float:
    if not math.isfinite(mu):
        raise ArgumentError("mu", mu, "It is the mean of the pre-activation: give a finite number.")
    return float(mu)


def check_c(c: float) -> float:
    """Return ``c`` as a float if it is a correlation, within [−1, 1]; raise ArgumentError if not."""
    if not -1.0 - 1e-12 <= c <= 1.0 + 1e-12:
        raise ArgumentError("c", c, "It is a correlation: give a number from −1 to 1.")
    return min(1.0, max(-1.0, float(c)))


def _single(phi: Activation, key: str, of: Callable[[Array, Array], Array], q: float, mu: float) -> Moment:
    # ``of`` takes u and z, u = mu + √q·z, to the function whose expectation is wanted.
    q, mu = check_q(q), _check_mu(mu)
    closed = phi.closed_forms.get(key)
    if closed is not None and (mu == 0.0 or phi.closed_forms_take_mean):
        value = closed(q, mu) if phi.closed_forms_take_mean else closed(q)
        if math.isfinite(value):
            return Moment(value, _CLOSED_FORM_ERROR * abs(value), "closed-form")
    if key == "mean" and phi.odd and mu == 0.0:
        return Moment(0.0, 0.0, "closed-form")
    root = math.sqrt(q)
    values, errors = expectation(lambda z: of(mu + root * z, z)[None], standard_breaks(phi.kinks, q, mu))
    return Moment(float(values[0]), float(errors[0]) + 4 * phi.precision * abs(float(values[0])), "quadrature")


def _both(a: Moment, b: Moment) -> Moment:
    method: Method = "closed-form" if a.method == b.method == "closed-form" else "quadrature"
    return Moment((a.value + b.value) / 2, (a.error + b.error) / 2, method)


def mean(phi: Any, q: float = 1.0, mu: float = 0.0) -> Moment:
    """Compute E[φ(u)], u ~ N(mu, q).

    Args:
        phi: an activation, or anything ``activation()`` takes. Of a gate, both halves have this mean and variance.
        q: variance of the pre-activation.
        mu: its mean.

    Returns:
        The moment with its error and method.

    Raises:
        ArgumentError: ``q`` or ``mu`` is out of range, or φ has no such moment.

    >>> round(mean("relu").value, 6)
    0.398942
    """
    phi = activation(phi)
    if phi.gate is not None:
        return mean(phi.gate, q, mu).times(_check_mu(mu))
    return _single(phi, "mean", lambda u, z: phi.fn(u), q, mu)


def second_moment(phi: Any, q: float = 1.0, mu: float = 0.0) -> Moment:
    """Compute E[φ(u)²], u ~ N(mu, q): the second moment, not the variance, is what the next layer's weights carry on.

    Args:
        phi: an activation, or anything ``activation()`` takes. Of a gate a·ψ(b), a and b are independent and this is
            E[a²]·E[ψ(b)²].
        q: variance of the pre-activation.
        mu: its mean.

    Returns:
        The moment with its error and method.

    Raises:
        ArgumentError: ``q`` or ``mu`` is out of range, or φ has no such moment.

    >>> second_moment("relu")
    Moment(value=0.5, error=5e-13, method='closed-form')
    """
    phi = activation(phi)
    if phi.gate is not None:
        return second_moment(phi.gate, q, mu).times(q + mu * mu)
    return _single(phi, "second_moment", lambda u, z: np.square(phi.fn(u)), q, mu)


def derivative_second_moment(phi: Any, q: float = 1.0, mu: float = 0.0) -> Moment:
    """Compute E[φ′(u)²], u ~ N(mu, q): what a gradient's second moment is multiplied by on its way back through φ.

    Args:
        phi: an activation, or anything ``activation()`` takes. Of a gate a·ψ(b) it is the average over its two
            inputs, (E[ψ(b)²] + E[a²]·E[ψ′(b)²])/2, which goes with the true fan_out of the layer that makes both.
        q: variance of the pre-activation.
        mu: its mean.

    Returns:
        The moment with its error and method; φ′ is taken almost everywhere, a jump's delta function left out as in
        autograd.

    Raises:
        ArgumentError: ``q`` or ``mu`` is out of range, or φ′ has no such moment.

    >>> derivative_second_moment("relu").value
    0.5
    """
    phi = activation(phi)
    if phi.gate is not None:
        through_b = derivative_second_moment(phi.gate, q, mu).times(q + mu * mu)
        return _both(second_moment(phi.gate, q, mu), through_b)
    return _single(phi, "derivative_second_moment", lambda u, z: np.square(phi.derivative(u)), q, mu)


def growth(phi: Any, q: float = 1.0) -> Moment:
    """Compute q·dE[φ(u)²]/dq, u ~ N(0, q), as E[φ²·(z² − 1)]/2, which needs no derivative and holds across jumps.

    Args:
        phi: an activation, or anything ``activation()`` takes.
        q: variance of the pre-activation.

    Returns:
        The moment with its error and method.

    Raises:
        ArgumentError: ``q`` is out of range, or φ has no such moment.

    >>> round(growth("relu2").value, 6)
    3.0
    """
    phi = activation(phi)
    if phi.gate is not None:
        inner, outer = second_moment(phi.gate, q), growth(phi.gate, q)
        return _both(inner, outer).times(2 * q)
    return _single(phi, "growth", lambda u, z: np.square(phi.fn(u)) * (z * z - 1) / 2, q, 0.0)


def _pair(phi: Activation, key: str, fn: Function, q: float, c: float, mu: float) -> Moment:
    q, c, mu = check_q(q), check_c(c), _check_mu(mu)
    closed = phi.closed_forms.get(key)
    if closed is not None and mu == 0.0:
        value = closed(q, c)
        if math.isfinite(value):
            return Moment(value, _CLOSED_FORM_ERROR * abs(value), "closed-form")
    value, error = pair_expectation(fn, phi.kinks, q, c, mu)
    return Moment(value, error + 4 * phi.precision * abs(value), "quadrature")


def overlap(phi: Any, q: float, c: float, mu: float = 0.0) -> Moment:
    """Compute E[φ(u)φ(v)] for a Gaussian pair of variance q, mean mu and correlation c.

    Args:
        phi: an activation, or anything ``activation()`` takes.
        q: variance of each.
        c: their correlation, within [−1, 1].
        mu: mean of each.

    Returns:
        The moment with its error and method.

    Raises:
        ArgumentError: ``q``, ``c`` or ``mu`` is out of range.

    Source: Cho & Saul, NIPS 2009 for ReLU; Williams, NIPS 1996 for erf; otherwise quadrature split at the kinks.

    >>> round(overlap("relu", 1.0, 0.0).value, 9), round(1 / (2 * math.pi), 9)
    (0.159154943, 0.159154943)
    """
    phi = activation(phi)
    if phi.gate is not None:
        return overlap(phi.gate, q, c, mu).times(q * check_c(c) + mu * mu)
    if check_c(c) == 1.0:
        return second_moment(phi, q, mu)
    return _pair(phi, "overlap", phi.fn, q, c, mu)


def derivative_overlap(phi: Any, q: float, c: float, mu: float = 0.0) -> Moment:
    """Compute E[φ′(u)φ′(v)] for a Gaussian pair of variance q, mean mu and correlation c.

    Args:
        phi: an activation, or anything ``activation()`` takes; of a gate, the average over its two inputs.
        q: variance of each.
        c: their correlation, within [−1, 1].
        mu: mean of each.

    Returns:
        The moment with its error and method.

    Raises:
        ArgumentError: ``q``, ``c`` or ``mu`` is out of range.

    >>> derivative_overlap("relu", 1.0, 0.0).value
    0.25
    """
    phi = activation(phi)
    if phi.gate is not None:
        through_b = derivative_overlap(phi.gate, q, c, mu).times(q * check_c(c) + mu * mu)
        return _both(overlap(phi.gate, q, c, mu), through_b)
    if check_c(c) == 1.0:
        return derivative_second_moment(phi, q, mu)
    return _pair(phi, "derivative_overlap", phi.derivative, q, c, mu)
