"""Kaiming: the variance that the activation behind each layer asks for."""

import math
from dataclasses import dataclass
from typing import Literal

from initwell.apply.schemes.base import Choice, Entry, Scheme, conventional, from_initializer
from initwell.apply.sites import Site
from initwell.errors import ArgumentError
from initwell.initializers.scaling import kaiming
from initwell.theory.activation import Activation
from initwell.theory.activations import activation
from initwell.theory.gain import gain


@dataclass(frozen=True)
class Kaiming(Scheme):
    """Variance gain²/fan, the gain being that of the activation which follows the layer; biases 0.

    With "fan_in" the gain is the forward one, 1/√E[φ²], and the second moment of the activations is kept; with
    "fan_out" it is the backward one, 1/√E[φ′²], and that of the gradients is. For ReLU the two are √2.

    Args:
        mode: "fan_in" or "fan_out".
        distribution: "normal", "uniform" or "truncated_normal".
        slope: the negative slope of a leaky ReLU behind every layer; instead of ``activation``.
        activation: what follows every layer, as ``activation()`` takes it; None finds it from the model.

    Raises:
        ArgumentError: another mode, or both slope and activation.

    Source: He et al., ICCV 2015, eq. 10, 14 and 15.

    >>> Kaiming(slope=0.25, mode="fan_out").describe()
    'kaiming normal, fan out'
    """

    mode: Literal["fan_in", "fan_out"] = "fan_in"
    distribution: Literal["normal", "uniform", "truncated_normal"] = "normal"
    slope: float | None = None
    activation: object = None

    def __post_init__(self) -> None:
        """Refuse what has no meaning before any model is looked at."""
        if self.mode not in ("fan_in", "fan_out"):
            raise ArgumentError("mode", repr(self.mode), "Use 'fan_in' or 'fan_out'; Xavier has the means of both.")
        if self.slope is not None and self.activation is not None:
            raise ArgumentError("slope", self.slope, "Give slope= or activation=, not both.")
        self._given()
        kaiming(mode=self.mode, distribution=self.distribution)

    @property
    def needs_activation(self) -> bool:
        """Whether the model must be looked through for what follows each layer."""
        return self.slope is None and self.activation is None

    def describe(self) -> str:
        """Return the name with its options."""
        return kaiming(mode=self.mode, distribution=self.distribution).describe()

    def weight(self, site: Site) -> Choice:
        """Scale by the gain of what follows this layer."""
        given = self._given()
        phi = given or site.activation
        why = "given to the scheme" if given else site.activation_from
        factor = 1.0 if phi is None else self._factor(phi, site)
        initializer = kaiming(gain=factor, mode=self.mode, distribution=self.distribution)
        drawn = from_initializer(initializer, site)
        assert drawn.fan is not None
        behind = "" if phi is None else f" for {phi}"
        reason = f"kaiming {self.mode} {drawn.fan:g}, gain {factor:.4g}{behind} ({why})"
        return Choice(self.describe(), drawn.distribution, reason, drawn.fan, factor, drawn.citation)

    def rest(self, site: Site) -> Choice:
        """Start biases at 0 and norms as the identity."""
        return conventional(site)

    def _given(self) -> Activation | None:
        if self.slope is not None:
            return activation("leaky_relu", slope=self.slope)
        return None if self.activation is None else activation(self.activation)

    def _factor(self, phi: Activation, site: Site) -> float:
        found = gain(phi)
        factor = found.forward if self.mode == "fan_in" else found.backward
        if not math.isfinite(factor):
            cure = "It is flat, so that no gradient comes back; use mode='fan_in' or another activation."
            raise ArgumentError("scheme", f"kaiming fan_out for {phi} behind {site.parameter!r}", cure)
        return factor


ENTRIES = (Entry("kaiming", Kaiming, "variance gain²/fan_in, gain of the activation that follows"),)
