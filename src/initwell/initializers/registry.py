"""Every distribution by its kind, so that a plan saved as JSON can be read back."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from initwell.errors import ArgumentError, UnknownNameError
from initwell.initializers.distributions import Constant, Distribution, Normal, TruncatedNormal, Uniform
from initwell.initializers.filters import Bilinear, UnitBall
from initwell.initializers.layout import Layout
from initwell.initializers.matrices import DeltaOrthogonal, Dirac, Identity, Orthogonal
from initwell.initializers.sparse import FixedCountSparse, SparseNormal

# A new distribution is one more name here.
DISTRIBUTIONS: tuple[type[Distribution], ...] = (
    Constant,
    Uniform,
    Normal,
    TruncatedNormal,
    SparseNormal,
    FixedCountSparse,
    Orthogonal,
    DeltaOrthogonal,
    Identity,
    Dirac,
    Bilinear,
    UnitBall,
)


def distribution_kinds() -> tuple[str, ...]:
    """Return the kinds that JSON may name.

    >>> "truncated_normal" in distribution_kinds()
    True
    """
    return tuple(_by_kind())


def distribution_from_dict(data: Mapping[str, Any]) -> Distribution:
    """Rebuild a distribution from what its ``to_dict`` gave, or from that JSON read back.

    Args:
        data: "kind" and the distribution's fields, no more and no fewer.

    Returns:
        The distribution, equal to the one that was written.

    Raises:
        UnknownNameError: an unknown kind or field; the nearest names are given.
        ArgumentError: a field is missing, or its value is of another type or out of range.

    >>> distribution_from_dict({"kind": "normal", "mean": 0.0, "std": 0.5})
    Normal(mean=0.0, std=0.5)
    """
    kinds = _by_kind()
    kind = data.get("kind")
    if not isinstance(kind, str):
        raise ArgumentError("kind", kind, f"Name one of: {', '.join(sorted(kinds))}.")
    if kind not in kinds:
        raise UnknownNameError.among("kind", kind, kinds)
    wanted = {f.name: f.type for f in fields(kinds[kind]) if f.init}  # type: ignore[arg-type]  # leaves are dataclasses
    for name in data:
        if name != "kind" and name not in wanted:
            raise UnknownNameError.among(f"{kind} field", name, wanted)
    missing = [name for name in wanted if name not in data]
    if missing:
        raise ArgumentError(kind, f"no {', '.join(missing)}", f"Give exactly the fields {', '.join(wanted)}.")
    return kinds[kind](**{name: _value(f"{kind}.{name}", data[name], wanted[name]) for name in wanted})


def _by_kind() -> dict[str, type[Distribution]]:
    found: dict[str, type[Distribution]] = {}
    for cls in DISTRIBUTIONS:
        kind = next(str(f.default) for f in fields(cls) if f.name == "kind")  # type: ignore[arg-type]
        if kind in found:
            raise ValueError(f"{cls.__name__} and {found[kind].__name__} are both of kind {kind!r}; rename one")
        found[kind] = cls
    return found


def _value(argument: str, value: Any, wanted: object) -> Any:
    if wanted is Layout and isinstance(value, Mapping):
        return Layout.from_dict(value)
    if wanted is bool and isinstance(value, bool):
        return value
    if wanted is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if wanted is float:
        if value in ("inf", "-inf"):  # as to_json writes them
            return float(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    raise ArgumentError(argument, value, f"Give a value of type {getattr(wanted, '__name__', wanted)}.")
