"""Reads a filler from a Caffe prototxt snippet; strictly, so that a typing error is never a default."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields

from initwell.errors import ArgumentError, UnknownNameError
from initwell.initializers import caffe
from initwell.initializers.base import Initializer, Recipe
from initwell.initializers.layout import Layout

_FILLERS: dict[str, type[Initializer]] = {
    "constant": caffe.Constant,
    "uniform": caffe.Uniform,
    "gaussian": caffe.Gaussian,
    "positive_unitball": caffe.PositiveUnitball,
    "xavier": caffe.Xavier,
    "msra": caffe.MSRA,
    "bilinear": caffe.Bilinear,
}
_BLOCKS = ("weight_filler", "bias_filler", "filler")
_NUMBERS = ("value", "min", "max", "mean", "std")
_FIELDS = ("type", *_NUMBERS, "sparse", "variance_norm")
_TOKEN = re.compile(
    r"""(?P<space>[\s,;]+|\#[^\n]*)|(?P<mark>[:{}])|(?P<text>"[^"\n]*"|'[^'\n]*')
      |(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?[fF]?(?![\w.]))|(?P<word>-?[A-Za-z_]\w*)""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class WithIgnored(Initializer):
    """A filler whose snippet set fields that Caffe accepts and its type does not look at.

    Args:
        filler: the filler.
        ignored: the fields, such as "std: 0.1" of an xavier filler.
    """

    filler: Initializer
    ignored: tuple[str, ...]

    @property
    def name(self) -> str:
        """The filler's name."""
        return self.filler.name

    @property
    def citation(self) -> str:
        """The filler's papers."""
        return self.filler.citation

    def recipe(self, layout: Layout) -> Recipe:
        """Return the filler's recipe, with a note."""
        found = self.filler.recipe(layout)
        return Recipe(found.distribution, found.fan, found.gain, self._note())

    def describe(self) -> str:
        """Return the filler's description, with a note."""
        return f"{self.filler.describe()} ({self._note()})"

    def _note(self) -> str:
        return f"Caffe ignores {', '.join(self.ignored)} here"


def parse_filler(snippet: str) -> Initializer:
    """Read a filler from prototxt.

    Args:
        snippet: such as ``weight_filler { type: "xavier" variance_norm: AVERAGE }``, or only what is inside the braces;
            without a type it is constant, as in Caffe.

    Returns:
        The filler; one that names the fields which Caffe accepts but does not use there, if there are any.

    Raises:
        UnknownNameError: an unknown block, field, type or variance_norm; the nearest names are given.
        ArgumentError: text that is no prototxt, a field given twice, a value of the wrong type, or ``sparse`` on
            anything but a gaussian filler.

    >>> parse_filler('type: "xavier" variance_norm: AVERAGE')
    Xavier(variance_norm='AVERAGE')
    >>> parse_filler('weight_filler { type: "xavier" std: 0.1 }').describe()
    'caffe.xavier FAN_IN (Caffe ignores std: 0.1 here)'
    """
    if not isinstance(snippet, str):
        raise ArgumentError("snippet", snippet, 'Write such as weight_filler { type: "xavier" }.')
    given = _fields(list(_tokens(snippet)), snippet)
    kind = str(given.pop("type", "constant"))
    if kind not in _FILLERS:
        raise UnknownNameError.among("type", kind, _FILLERS)
    filler = _FILLERS[kind]
    used = {f.name for f in fields(filler) if f.init}  # type: ignore[arg-type]  # fillers are dataclasses
    if kind != "gaussian" and given.get("sparse", -1) != -1:
        raise ArgumentError(
            "sparse", f"{given['sparse']} with type {kind!r}", "Only the gaussian filler can be sparse."
        )
    ignored = tuple(f"{name}: {value}" for name, value in given.items() if name not in used)
    built = filler(**{name: value for name, value in given.items() if name in used})
    return WithIgnored(built, ignored) if ignored else built


def _tokens(snippet: str) -> Iterator[tuple[str, str]]:
    position = 0
    while position < len(snippet):
        match = _TOKEN.match(snippet, position)
        if match is None:
            raise _bad(snippet, f"nothing of prototxt starts at {snippet[position : position + 12]!r}")
        position = match.end()
        kind = match.lastgroup or ""
        if kind != "space":
            yield kind, match.group()


def _fields(tokens: list[tuple[str, str]], snippet: str) -> dict[str, str | float | int]:
    if not tokens:
        raise _bad(snippet, "it is empty")
    found: dict[str, str | float | int] = {}
    tokens = _without_block(tokens, snippet)
    while tokens:
        (kind, name), *rest = tokens
        if kind != "word":
            raise _bad(snippet, f"a field's name is wanted, not {name!r}")
        if name not in _FIELDS:
            raise UnknownNameError.among("field", name, _FIELDS)
        if name in found:
            raise _bad(snippet, f"{name} is given twice")
        if len(rest) < 2 or rest[0] != ("mark", ":"):
            raise _bad(snippet, f"{name} wants a colon and a value")
        found[name] = _field_value(name, *rest[1])
        tokens = rest[2:]
    return found


def _without_block(tokens: list[tuple[str, str]], snippet: str) -> list[tuple[str, str]]:
    """Take off ``weight_filler { … }``, of which prototxt allows a colon before the brace."""
    marks = [text for _, text in tokens]
    opening = 2 if marks[1:2] == [":"] else 1
    if marks[opening : opening + 1] != ["{"]:
        return tokens
    if marks[0] not in _BLOCKS:
        raise UnknownNameError.among("block", marks[0], _BLOCKS)
    if marks[-1] != "}":
        raise _bad(snippet, "its brace is not closed")
    return tokens[opening + 1 : -1]


def _field_value(name: str, kind: str, text: str) -> str | float | int:
    if name == "type" and kind == "text":
        return text[1:-1]
    if name == "variance_norm" and kind == "word":
        caffe.check_norm(text)
        return text
    if name == "sparse" and kind == "number" and re.fullmatch(r"[-+]?\d+", text):
        return int(text)
    if name in _NUMBERS and kind == "number":
        return float(text.rstrip("fF"))
    wanted = {"type": 'a name in quotes, such as "xavier"', "variance_norm": "FAN_IN, FAN_OUT or AVERAGE"}
    cure = wanted.get(name, "a whole number" if name == "sparse" else "a number")
    raise ArgumentError(name, text, f"Give {cure}.")


def _bad(snippet: str, why: str) -> ArgumentError:
    return ArgumentError("snippet", f"{snippet!r}: {why}", 'Write such as weight_filler { type: "xavier" }.')
