"""The axes of a Signal: atoms, the values whose rows those along them follow, and how dimensions are made of them."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from initwell.propagate.moments.copies import worked_out
from initwell.propagate.moments.segments import Patterns, patterns
from initwell.records import Record

if TYPE_CHECKING:
    from initwell.propagate.moments.slots import Slots


class Source(NamedTuple):
    """A value whose rows some others are linear images of; see ``gram``.

    Attributes:
        value: its id.
        strength: square root of the relative variance of the average product of two of its rows.
        apart: how much of that is left between entries that differ along other axes that follow something, too.
        level: 1 where all its rows are of one length, as a layer norm's; 0 where their lengths vary as Gaussians' do.
        among: segments of another axis, as of features from two layers, and the share of the strength in each.
    """

    value: int
    strength: float = 1.0
    apart: float = 1.0
    level: float = 0.0
    among: tuple[tuple[int, float], ...] = ()

    def of(self, strength: float) -> "Source":
        """Return it of another strength."""
        return Source(self.value, strength, self.apart, self.level, self.among)


@dataclass(frozen=True)
class Atom(Record):
    """One atomic axis.

    Attributes:
        size: its length, at least 2.
        sample: whether it counts samples, so that differing in it means another sample; no matter in comparing atoms.
        parts: lengths of its segments, where they are unlike; empty when all indices are alike.
        follows: the values whose rows those along it are linear images of.
        slots: where it counts the experts that a token is sent to; it agrees where these are the same.
    """

    BASIS: ClassVar = frozenset({"size", "parts"})

    size: int
    sample: bool = field(default=False, compare=False)
    parts: tuple[int, ...] = ()
    follows: tuple[Source, ...] = field(default=(), compare=False)
    slots: "Slots | None" = field(default=None, compare=False)

    @worked_out
    def patterns(self) -> Patterns:
        """The patterns of pairs of its indices."""
        return patterns(self.parts or (self.size,))

    @worked_out
    def segments(self) -> int:
        """How many segments it has."""
        return len(self.parts) or 1

    def following(self, sources: tuple[Source, ...]) -> "Atom":
        """Return it with other values that those along it follow; a walk makes a thousand such."""
        found = object.__new__(Atom)
        found.__dict__.update(self.__dict__, follows=sources)
        return found


Dims = tuple[tuple[Atom, ...], ...]
