"""What an initializer is: it looks at a layout and says what to draw."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from initwell.initializers.distributions import Distribution
from initwell.initializers.layout import Layout
from initwell.records import Record


@dataclass(frozen=True)
class Recipe(Record):
    """What an initializer decided for one layout.

    Attributes:
        distribution: what to draw.
        fan: the fan that the standard deviation was made from; None where there was none.
        gain: the gain that it was made from; None where there was none.
        note: what must not stay silent, such as a count that was cut to the fan.
    """

    distribution: Distribution
    fan: float | None = None
    gain: float | None = None
    note: str = ""


class Initializer(ABC, Record):
    """A rule from layouts to distributions; a leaf is a frozen dataclass whose fields are the rule's options."""

    if TYPE_CHECKING:
        # Fields of the leaves; an abstract property would shadow them.
        @property
        def name(self) -> str:
            """Short name, such as "xavier"."""

        @property
        def citation(self) -> str:
            """BibTeX of the papers the rule comes from, entries separated by an empty line; "" where there is none."""

    @abstractmethod
    def recipe(self, layout: Layout) -> Recipe:
        """Decide what to draw for a weight.

        Args:
            layout: the weight's shape and axes.

        Returns:
            The distribution, with the fan and gain it was made from.

        Raises:
            ShapeError: the rule has no meaning for that layout.
        """

    @abstractmethod
    def describe(self) -> str:
        """Return the name with the options that matter, in a few words."""


@dataclass(frozen=True)
class Given(Initializer):
    """The same distribution for every layout.

    Args:
        name: what the rule is called.
        distribution: what to draw.
        details: what to add to the name in a description.
        citation: BibTeX, or "".
    """

    name: str
    distribution: Distribution
    details: str = ""
    citation: str = field(default="", repr=False)

    def recipe(self, layout: Layout) -> Recipe:
        """Return the distribution, whatever the layout."""
        self.distribution.check_shape(layout.shape)
        return Recipe(self.distribution)

    def describe(self) -> str:
        """Return the name with its numbers."""
        return f"{self.name} {self.details}".rstrip()
