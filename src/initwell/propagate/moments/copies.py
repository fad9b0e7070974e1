"""What a frozen record works out of its fields, once, when it is asked for; a walk makes thousands of such records."""

from collections.abc import Callable
from dataclasses import fields
from functools import cache, wraps
from typing import Any, Generic, TypeVar, cast, overload

T = TypeVar("T")
R = TypeVar("R")


class worked_out(Generic[T]):
    """A property that is worked out once: ``cached_property`` without the lock that Python 3.11 takes for it.

    >>> class Square:
    ...     side = 3
    ...
    ...     @worked_out
    ...     def area(self):
    ...         return self.side**2
    >>> Square().area
    9
    """

    def __init__(self, work: Callable[[Any], T]) -> None:
        """Take the function of the record."""
        self._work, self.__doc__ = work, work.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        """Learn under which name it is kept."""
        self._name = name

    @overload
    def __get__(self, record: None, kind: type) -> "worked_out[T]": ...

    @overload
    def __get__(self, record: object, kind: type) -> T: ...

    def __get__(self, record: object, kind: type) -> "worked_out[T] | T":
        """Work it out; from then on the record has an attribute of this name, which Python finds first."""
        if record is None:
            return self
        found = record.__dict__[self._name] = self._work(record)
        return found


def kept(work: Callable[[R], T]) -> Callable[[R], T]:
    """Let a function of one record keep what it found with the record's ``kept``, which goes with what it is made of.

    >>> class Square:
    ...     side = 3
    ...     kept = worked_out(lambda self: {})
    >>> square, calls = Square(), []
    >>> area = kept(lambda record: calls.append(1) or record.side**2)
    >>> area(square), area(square), len(calls)
    (9, 9, 1)
    """

    @wraps(work)
    def found(record: R) -> T:
        known: dict[object, Any] = record.kept  # type: ignore[attr-defined]
        if work not in known:
            known[work] = work(record)
        return cast(T, known[work])

    return found


@cache
def names(kind: type) -> tuple[frozenset[str], tuple[str, ...], frozenset[str]]:
    """Return the fields of a kind of record, what it works out when asked, and the fields that this is worked out of.

    The last are those that it names as ``BASIS``, or else all.
    """
    known = frozenset(field.name for field in fields(kind))
    derived = [name for name, value in vars(kind).items() if isinstance(value, worked_out)]
    return known, tuple(derived), getattr(kind, "BASIS", known)
