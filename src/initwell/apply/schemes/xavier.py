"""Xavier: one variance for the forward and the backward, 2/(fan_in + fan_out)."""

from dataclasses import dataclass
from typing import Literal

from initwell.apply.schemes.base import Choice, Entry, Scheme, conventional, from_initializer
from initwell.apply.sites import Site
from initwell.initializers.scaling import VarianceScaling, xavier


@dataclass(frozen=True)
class Xavier(Scheme):
    """Variance gain²/fan with a fan between input and output, whatever activation follows; biases 0.

    Args:
        mode: "average" of the two fans (the paper's), "geometric" mean, "fan_in" or "fan_out".
        distribution: "uniform" (the paper's), "normal" or "truncated_normal".
        gain: multiplies the standard deviation.

    Raises:
        UnknownNameError: another mode or distribution.
        ArgumentError: a gain that is not a positive number.

    Source: Glorot & Bengio, AISTATS 2010, eq. 12 and 16.

    >>> Xavier(mode="geometric").describe()
    'xavier uniform, fan geometric'
    """

    mode: Literal["fan_in", "fan_out", "average", "geometric"] = "average"
    distribution: Literal["uniform", "normal", "truncated_normal"] = "uniform"
    gain: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning before any model is looked at."""
        self._rule()

    @property
    def needs_activation(self) -> bool:
        """Whether it asks what follows a layer: it does not."""
        return False

    def describe(self) -> str:
        """Return the name with its options."""
        return self._rule().describe()

    def weight(self, site: Site) -> Choice:
        """Scale by the fans of this layer."""
        drawn = from_initializer(self._rule(), site)
        layout = site.layout
        assert layout is not None
        reason = f"xavier {self.mode} of fan_in {layout.fan_in:g} and fan_out {layout.fan_out:g}, gain {self.gain:g}"
        return Choice(self.describe(), drawn.distribution, reason, drawn.fan, self.gain, drawn.citation)

    def rest(self, site: Site) -> Choice:
        """Start biases at 0 and norms as the identity."""
        return conventional(site)

    def _rule(self) -> VarianceScaling:
        return xavier(self.gain, self.mode, self.distribution)


ENTRIES = (Entry("xavier", Xavier, "variance 2/(fan_in + fan_out), uniform"),)
