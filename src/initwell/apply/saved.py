"""Plans as JSON files: written whole or not at all, read strictly."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from initwell.apply.record import Plan, PlanRow
from initwell.errors import ArgumentError, DataFormatError
from initwell.files import write
from initwell.initializers.registry import distribution_from_dict
from initwell.records import plain

FORMAT = "initwell.plan"
VERSION = 1

_HEAD = ("format", "version", "scheme", "seed", "rows", "notes", "citations")
_ROW = tuple(f.name for f in fields(PlanRow))


def save(plan: Plan, path: str | Path) -> None:
    """Write a plan into a file, whole or not at all.

    Args:
        plan: the plan.
        path: the file; its folder is made when it is not there.

    Raises:
        ArgumentError: the file cannot be written; an older one of that name is still there.
    """
    text = json.dumps({"format": FORMAT, "version": VERSION, **_plain(plan)}, indent=1, ensure_ascii=False) + "\n"
    write(Path(path), text, "path")


def _plain(plan: Plan) -> Any:
    def finite(value: Any) -> Any:
        # A truncated normal may reach to infinity; distribution_from_dict reads these words.
        if isinstance(value, dict):
            return {k: finite(v) for k, v in value.items()}
        if isinstance(value, list):
            return [finite(v) for v in value]
        return str(value) if value in (float("inf"), float("-inf")) else value

    return finite(plain(plan))


def load(path: str | Path) -> Plan:
    """Read a plan that ``save`` wrote.

    Args:
        path: the file.

    Returns:
        A plan that equals the one saved.

    Raises:
        ArgumentError: there is no such file.
        DataFormatError: not JSON, not a plan, of another version, or with keys or values that are not a plan's.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ArgumentError("path", str(path), f"It cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise DataFormatError(f"{path}: not UTF-8 text, so not a plan that initwell saved.") from error
    try:
        data = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        return _plan(data)
    except RecursionError as error:
        raise DataFormatError(f"{path}: nested too deeply for a plan.") from error
    except ValueError as error:
        # JSON's own errors, those of the distributions, and those below: all say what is wrong, none says where.
        raise DataFormatError(f"{path}: not a plan that initwell saved: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number that a plan can hold")


def _plan(data: Any) -> Plan:
    _keys(data, _HEAD, "the file")
    if data["format"] != FORMAT:
        raise ValueError(f"its format is {data['format']!r}, not {FORMAT!r}")
    if data["version"] != VERSION:
        raise ValueError(f"its version is {data['version']!r}; this initwell reads version {VERSION}")
    seed = data["seed"]
    if not _whole(seed) or not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed!r}, not a whole number from 0 to 2**64 - 1")
    if not isinstance(data["rows"], list):
        raise ValueError("rows is not a list")
    rows = tuple(_row(row, f"row {i}") for i, row in enumerate(data["rows"]))
    names = [name for row in rows for name in (row.parameter, *row.tied_to)]
    if len(set(names)) != len(names):
        raise ValueError("a parameter stands in two rows")
    _check_norms(rows)
    _check("the file", data, {"scheme": _text, "notes": _texts, "citations": _texts})
    return Plan(data["scheme"], seed, rows, tuple(data["notes"]), tuple(data["citations"]))


def _row(data: Any, where: str) -> PlanRow:
    _keys(data, _ROW, where)
    _check(where, data, _FIELDS)
    values = dict(data)
    values["shape"], values["tied_to"] = tuple(data["shape"]), tuple(data["tied_to"])
    if data["distribution"] is not None:
        values["distribution"] = distribution_from_dict(data["distribution"])
        values["distribution"].check_shape(values["shape"])
    row = PlanRow(**values)
    _agree(row, where)
    return row


def _agree(row: PlanRow, where: str) -> None:
    """Refuse a row of which one part was changed by hand and the other not: what is read is what must be written."""
    drawn = None if row.distribution is None else float(row.distribution.std)
    if (drawn is None) != (row.std is None) or not math.isclose(row.std or 0, drawn or 0, rel_tol=1e-9):
        raise ValueError(f"{where}: std is {row.std}, and that of its distribution {drawn}: change both or neither")
    if row.zero_row is not None and (not row.shape or row.zero_row >= row.shape[0]):
        raise ValueError(f"{where}: zero_row is {row.zero_row}, and its shape {row.shape}")


def _check_norms(rows: Sequence[PlanRow]) -> None:
    drawn = {row.parameter: row for row in rows if row.distribution is not None}
    for row in rows:
        if not row.norm_of:
            continue
        if row.norm_of not in drawn or row.distribution is not None:
            raise ValueError(f"{row.parameter} is to be the norm of {row.norm_of!r}, which no row draws")
        if not -1 <= row.norm_axis < len(drawn[row.norm_of].shape):
            raise ValueError(f"{row.parameter}: norm_axis is {row.norm_axis}, which {row.norm_of!r} does not have")


def _keys(data: Any, wanted: Sequence[str], where: str) -> None:
    if not isinstance(data, dict):
        raise ValueError(f"{where} is not an object")
    if set(data) != set(wanted):
        raise ValueError(f"{where} has the keys {', '.join(sorted(data)) or 'none'}; wanted {', '.join(wanted)}")


def _check(where: str, data: Mapping[str, Any], wanted: Mapping[str, Callable[[Any], bool]]) -> None:
    for name, fits in wanted.items():
        if not fits(data[name]):
            raise ValueError(f"{where}: {name} is {data[name]!r}")


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number_or_none(value: Any) -> bool:
    return value is None or isinstance(value, float) or _whole(value)


_FIELDS: Mapping[str, Callable[[Any], bool]] = {
    "parameter": _text,
    "shape": lambda v: isinstance(v, list) and all(_whole(n) and n >= 0 for n in v),
    "initializer": _text,
    "fan": _number_or_none,
    "gain": _number_or_none,
    "std": _number_or_none,
    "reason": _text,
    "distribution": lambda v: v is None or isinstance(v, dict),
    "key": _text,
    "tied_to": _texts,
    "zero_row": lambda v: v is None or (_whole(v) and v >= 0),
    "norm_of": _text,
    "norm_axis": _whole,
}
