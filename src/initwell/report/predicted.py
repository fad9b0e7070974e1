"""A Prediction for a reader: summed up by module, its parameters, its page."""

from collections.abc import Mapping, Sequence
from typing import Any

from initwell.propagate.result.growth import Growth
from initwell.propagate.result.prediction import Prediction
from initwell.records import Row
from initwell.report.conditions import conditions
from initwell.report.depth import depth_words
from initwell.report.html import Page, Section
from initwell.report.tables import Table

# More rows than this are summed up by module: a screen and a half.
MANY = 40
_TRUST = ("exact", "approximate", "unknown")


def module_table(found: Prediction, most: int = MANY) -> Table:
    """Sum a prediction up by module: the last value of each, and the least trusted of its rows.

    Args:
        found: the prediction.
        most: rows; module paths are cut as short as it takes, one name at least.

    Returns:
        The table, in order of execution; "(model)" stands for what the model does itself.
    """
    deepest = max((row["path"].count(".") + 1 for row in found.rows), default=1)
    for parts in range(deepest, 0, -1):
        groups = _grouped(found.rows, parts)
        if len(groups) <= most or parts == 1:
            break
    rows = tuple(_summed(path, rows) for path, rows in groups.items())
    title = f"{found.table_title()}; the last value of each module"
    columns = ("path", "values", "shape", "forward_rms", "gradient_rms", "overlap", "fidelity")
    return Table(title, columns, rows)


def _grouped(rows: Sequence[Row], parts: int) -> Mapping[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(".".join(row["path"].split(".")[:parts]) or "(model)", []).append(row)
    return groups


def _summed(path: str, rows: Sequence[Row]) -> dict[str, Any]:
    last = rows[-1]
    kept = ("shape", "forward_rms", "gradient_rms", "overlap")
    fidelity = max((row["fidelity"] for row in rows), key=_TRUST.index)
    return {"path": path, "values": len(rows), **{key: last[key] for key in kept}, "fidelity": fidelity}


def value_table(found: Prediction) -> Table:
    """Return the table of all values, without the notes."""
    return Table(found.table_title(), tuple(found.table_columns()), found.rows)


def growth_table(growth: Growth) -> Table:
    """Return the table of growth by block, without its sentence."""
    return Table(growth.table_title(), tuple(growth.table_columns()), growth.rows)


def parameter_table(found: Prediction) -> Table:
    """Return the table of weights, their gradients and, where a learning rate was given, their updates."""
    ratio = ("update_ratio",) if any(row["update_ratio"] is not None for row in found.parameters) else ()
    columns = ("parameter", "shape", "weight_rms", "gradient_rms", *ratio, "fidelity")
    return Table("Parameters and their gradients, predicted", columns, tuple(found.parameters))


def prediction_page(found: Prediction, title: str, lead: str, given: Mapping[str, object], command: str) -> Page:
    """Build the page of a prediction.

    Args:
        found: the prediction.
        title: the model, and that it is predicted.
        lead: from what, in one line.
        given: name → value of what another would need to get the same.
        command: that makes the page again.
    """
    # The loss is no layer: its size says nothing of the signal's.
    rows = [row for row in found.rows if row["path"] != "(loss)"]
    summed = module_table(found)
    summary = summed if MANY < len(found.rows) > len(summed.rows) else None
    sections = [
        Section("Signal and gradient by depth", summary=summary, charts=found.charts(), tables=(value_table(found),))
    ]
    for growth in found.growth:
        sections.append(Section(growth.table_title(), tables=(growth_table(growth),)))
    sections.append(Section("Parameters", tables=(parameter_table(found),)))
    return Page(
        title=title,
        lead=lead,
        verdict=(*depth_words(rows), *found.notes),
        sections=tuple(sections),
        conditions={**given, **conditions()},
        commands=(command,),
    )
