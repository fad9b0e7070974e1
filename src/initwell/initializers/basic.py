"""Rules that look at no fan: constants, and distributions whose numbers the caller gives."""

from initwell.initializers.base import Given
from initwell.initializers.citations import KRIZHEVSKY_2012
from initwell.initializers.distributions import Constant, Normal, TruncatedNormal, Uniform


def zeros() -> Given:
    """Every entry 0: right for biases; weights that start so never tell their units apart."""
    return Given("zeros", Constant(0.0))


def ones() -> Given:
    """Every entry 1: right for a norm's scale."""
    return Given("ones", Constant(1.0))


def constant(value: float) -> Given:
    """Every entry the same value."""
    return Given("constant", Constant(value), f"{value:g}")


def uniform(low: float = -0.05, high: float = 0.05) -> Given:
    """U(low, high), whatever the fan."""
    return Given("uniform", Uniform(low, high), f"[{low:g}, {high:g}]")


def normal(mean: float = 0.0, std: float = 0.01) -> Given:
    """N(mean, std²), whatever the fan."""
    return Given("normal", Normal(mean, std), f"mean {mean:g}, std {std:g}")


def truncated_normal(mean: float = 0.0, std: float = 0.02, low: float = -2.0, high: float = 2.0) -> Given:
    """Cut normal whose mean and std are those after the cut, at low and high standard deviations of its parent."""
    return Given("truncated normal", TruncatedNormal(mean, std, low, high), f"mean {mean:g}, std {std:g}")


def small_random(std: float = 0.01) -> Given:
    """0.01 · randn: standard deviation 0.01, not variance; it dies out with depth."""
    return Given("small random", Normal(0.0, std), f"std {std:g}", KRIZHEVSKY_2012)
