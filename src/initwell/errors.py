"""The errors that initwell raises on purpose; each says what was got and what to do instead."""

import difflib
from collections.abc import Iterable


class InitwellError(Exception):
    """Base of every error initwell raises on purpose; the command line turns it into exit code 2."""


class ArgumentError(InitwellError, ValueError):
    """An argument that cannot be used: names the argument, what it was, and the cure."""

    def __init__(self, argument: str, got: object, cure: str) -> None:
        """Compose the message from ``argument`` (its name), ``got`` (its value) and ``cure`` (what to do)."""
        self.argument = argument
        self.got = got
        self.cure = cure
        super().__init__(f"{argument}: got {got if isinstance(got, str) else repr(got)}. {cure}")

    def __reduce__(self) -> tuple[type["ArgumentError"], tuple[str, str, str]]:
        """Survive a trip between processes: an exception is rebuilt from these, not from its message."""
        return (type(self), (self.argument, str(self.got), self.cure))


class UnknownNameError(ArgumentError):
    """A name that is in no catalogue; the message lists the nearest names there are."""

    @classmethod
    def among(cls, argument: str, got: object, known: Iterable[str]) -> "UnknownNameError":
        """Build the error for ``got``, text or not, given the ``known`` names, nearest first, in whatever case."""
        names = sorted(known)
        folded = {name.lower(): name for name in names}
        near = [folded[n] for n in difflib.get_close_matches(str(got).lower(), folded, n=3, cutoff=0.5)]
        cure = f"Did you mean {' or '.join(repr(n) for n in near)}?" if near else f"Known: {', '.join(names)}."
        return cls(argument, repr(got), cure)


class ShapeError(ArgumentError):
    """A shape that the operation has no meaning for (no fan, not square, too few axes)."""


class DataFormatError(InitwellError, ValueError):
    """A data file that is not what its name says: truncated, mislabelled, or not readable by the strict parser."""


class ModelError(InitwellError):
    """A model that cannot be used, or whose own forward or backward failed; names the module path."""
