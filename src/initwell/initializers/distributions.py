"""What a weight is drawn from: pure descriptions that turn a stream of random numbers into entries."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from initwell.errors import ArgumentError, ShapeError
from initwell.initializers.truncation import NEAREST, truncated_moments
from initwell.records import Record

Array = NDArray[np.float64]


class Stream(Protocol):
    """Random numbers by index: number i is the same whichever slice it is asked for in."""

    def uniform(self, start: int, stop: int) -> Array:
        """Return numbers start to stop of U(0, 1), the ends excluded."""

    def normal(self, start: int, stop: int) -> Array:
        """Return numbers start to stop of N(0, 1)."""

    def truncated_normal(self, start: int, stop: int, low: float, high: float) -> Array:
        """Return numbers start to stop of N(0, 1) kept within [low, high]."""

    def child(self, label: str) -> "Stream":
        """Return an independent stream, the same for the same label."""


class Distribution(ABC, Record):
    """The law of a tensor's entries; a leaf is a frozen dataclass whose field ``kind`` names it in JSON."""

    if TYPE_CHECKING:
        # Some leaves store these as fields and others compute them; an abstract property would shadow the fields.
        @property
        def mean(self) -> float:
            """Mean of an entry, over draws and over the tensor."""

        @property
        def std(self) -> float:
            """Standard deviation of an entry, over draws and over the tensor."""

        @property
        def kind(self) -> str:
            """Name in JSON."""

        @property
        def elementwise(self) -> bool:
            """Whether a slice is drawn without the rest of the tensor."""

    @abstractmethod
    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ShapeError where a tensor of this shape cannot be drawn."""

    @abstractmethod
    def draw_slice(self, stream: Stream, start: int, stop: int) -> Array:
        """Draw entries start to stop of the tensor in C order.

        Args:
            stream: where random numbers come from.
            start: index of the first entry.
            stop: index after the last entry.

        Returns:
            (stop - start,) entries in float64.
        """

    def draw(self, stream: Stream, shape: tuple[int, ...]) -> Array:
        """Draw a whole tensor.

        Args:
            stream: where random numbers come from.
            shape: the tensor's shape.

        Returns:
            The tensor in float64.

        Raises:
            ShapeError: the distribution is of another shape.
        """
        self.check_shape(shape)
        return self.draw_slice(stream, 0, math.prod(shape)).reshape(shape)


class Elementwise(Distribution):
    """A distribution whose entries are independent, each from random numbers of its own index; any shape goes."""

    elementwise = True

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Take any shape."""
        if any(n < 0 for n in shape):
            raise ShapeError("shape", shape, "Give lengths of 0 or more.")


@dataclass(frozen=True)
class Constant(Elementwise):
    """Every entry the same.

    Args:
        value: that entry.

    Raises:
        ArgumentError: the value is not finite.
    """

    kind: str = field(default="constant", init=False, repr=False)
    value: float

    def __post_init__(self) -> None:
        """Refuse what is not finite."""
        need_finite("value", self.value)

    @property
    def mean(self) -> float:
        """The value."""
        return self.value

    @property
    def std(self) -> float:
        """Zero."""
        return 0.0

    def draw_slice(self, stream: Stream, start: int, stop: int) -> Array:
        """Repeat the value."""
        return np.full(stop - start, self.value)


@dataclass(frozen=True)
class Uniform(Elementwise):
    """U(low, high).

    Args:
        low: lower end.
        high: upper end; equal to low, it is a constant.

    Raises:
        ArgumentError: an end is not finite, or low lies above high.

    >>> round(Uniform(-3**0.5, 3**0.5).std, 12)
    1.0
    """

    kind: str = field(default="uniform", init=False, repr=False)
    low: float
    high: float

    def __post_init__(self) -> None:
        """Refuse an interval that is none."""
        need_finite("low", self.low)
        need_finite("high", self.high)
        if self.low > self.high:
            raise ArgumentError("low", f"{self.low}, above high = {self.high}", "Give low <= high.")
        need_finite("high - low", self.high - self.low)

    @property
    def mean(self) -> float:
        """Middle of the interval."""
        return (self.low + self.high) / 2

    @property
    def std(self) -> float:
        """Length of the interval over √12."""
        return (self.high - self.low) / math.sqrt(12)

    def draw_slice(self, stream: Stream, start: int, stop: int) -> Array:
        """Stretch numbers from (0, 1) to the interval."""
        values = stream.uniform(start, stop)
        values *= self.high - self.low
        values += self.low
        return values


@dataclass(frozen=True)
class Normal(Elementwise):
    """N(mean, std²).

    Args:
        mean: mean.
        std: standard deviation, above 0.

    Raises:
        ArgumentError: the mean is not finite, or the std is not a positive number.
    """

    kind: str = field(default="normal", init=False, repr=False)
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what is no normal distribution."""
        need_finite("mean", self.mean)
        need_positive("std", self.std)

    def draw_slice(self, stream: Stream, start: int, stop: int) -> Array:
        """Scale and shift standard normals."""
        values = stream.normal(start, stop)
        values *= self.std
        values += self.mean
        return values


@dataclass(frozen=True)
class TruncatedNormal(Elementwise):
    """A normal distribution cut off on both sides, with the mean and std that it has after the cut.

    Args:
        mean: mean of the entries.
        std: standard deviation of the entries, above 0.
        low: where the parent distribution is cut, in its own standard deviations from its own mean.
        high: the same above.

    Raises:
        ArgumentError: no such distribution: std not positive, low not below high, or both beyond 12 on one side.

    >>> TruncatedNormal(0.0, 1.0).bounds[1]
    2.273694468...
    """

    kind: str = field(default="truncated_normal", init=False, repr=False)
    mean: float = 0.0
    std: float = 1.0
    low: float = -2.0
    high: float = 2.0

    def __post_init__(self) -> None:
        """Refuse an interval that is none, or that holds too little of the parent to be computed well."""
        need_finite("mean", self.mean)
        need_positive("std", self.std)
        if not self.low < self.high:
            raise ArgumentError("low", f"{self.low}, not below high = {self.high}", "Give low < high.")
        if self.low > NEAREST or self.high < -NEAREST:
            got = f"[{self.low}, {self.high}]"
            raise ArgumentError("low, high", got, f"Give bounds that reach to within {NEAREST:g} standard deviations.")

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value an entry can have."""
        inner_mean, inner_std = truncated_moments(self.low, self.high)
        low, high = ((edge - inner_mean) / inner_std * self.std + self.mean for edge in (self.low, self.high))
        return low, high

    def draw_slice(self, stream: Stream, start: int, stop: int) -> Array:
        """Standardize draws from the cut normal, then scale and shift them."""
        inner_mean, inner_std = truncated_moments(self.low, self.high)
        values = stream.truncated_normal(start, stop, self.low, self.high)
        values -= inner_mean
        values *= self.std / inner_std
        values += self.mean
        return values


def need_finite(argument: str, value: float) -> None:
    """Raise ArgumentError unless the value is a finite number."""
    if not (_is_number(value) and math.isfinite(value)):
        raise ArgumentError(argument, value, "Give a finite number.")


def need_positive(argument: str, value: float) -> None:
    """Raise ArgumentError unless the value is a finite number above 0."""
    if not (_is_number(value) and math.isfinite(value) and value > 0):
        raise ArgumentError(argument, value, "Give a finite number above 0; for a constant use Constant.")


def _is_number(value: object) -> bool:
    # NumPy's scalars and tensors of one entry turn into a float too; text does, but nobody means it.
    return hasattr(value, "__float__")
