"""How findings are put: a first sentence that can stand alone, and lists that read as English."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TypeVar

Judged = TypeVar("Judged")


def first_sentence(text: str) -> str:
    """Return a text up to its first full stop that a space follows: one within a number or a name ends nothing.

    >>> first_sentence("From 0.01·randn it gains 2.5 points. More.")
    'From 0.01·randn it gains 2.5 points.'
    """
    head, stop, _ = text.partition(". ")
    return f"{head}." if stop else text


def listed(names: Iterable[object]) -> str:
    """Return names as an English list.

    >>> listed(["relu"]), listed(["relu", "tanh"]), listed([5, 10, 20])
    ('relu', 'relu and tanh', '5, 10 and 20')
    """
    *most, last = (str(name) for name in names)
    return f"{', '.join(most)} and {last}" if most else last


def capital(text: str) -> str:
    """Return a text with its first letter as at the start of a sentence.

    >>> capital("with Adam it trains")
    'With Adam it trains'
    """
    return text[:1].upper() + text[1:]


def grouped(found: Mapping[str, Judged]) -> Mapping[Judged, list[str]]:
    """Return names by what was found of them, in their order; whatever was found of none has an empty list.

    >>> of = grouped({"relu": "holds", "tanh": "fails", "sigmoid": "holds"})
    >>> of["holds"], of["open"]
    (['relu', 'sigmoid'], [])
    """
    names: defaultdict[Judged, list[str]] = defaultdict(list)
    for name, judgement in found.items():
        names[judgement].append(name)
    return names


def clause(words: str, names: Iterable[object]) -> list[str]:
    """Return one clause with the names filled in, or none where there are no names.

    >>> clause("it holds for {}", ["relu", "tanh"]), clause("it fails for {}", [])
    (['it holds for relu and tanh'], [])
    """
    kept = list(names)
    return [words.format(listed(kept))] if kept else []
