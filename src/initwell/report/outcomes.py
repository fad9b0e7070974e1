"""The page of a reproduction run: one section a claim, the verdicts first."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from initwell.charts import Chart, Panel, Series
from initwell.errors import DataFormatError
from initwell.files import write
from initwell.report.conditions import conditions
from initwell.report.files import safe_name
from initwell.report.html import Page, Section
from initwell.report.plots import draw
from initwell.report.tables import Table
from initwell.report.text import duration

if TYPE_CHECKING:
    from initwell.experiments.reproduce.claim import Claim, Outcome


def verdicts(outcomes: Sequence["Outcome"]) -> Table:
    """Return the verdict and the conclusion of each outcome, one a row."""
    rows = tuple({"name": o.name, "verdict": o.verdict, "conclusion": o.conclusion} for o in outcomes)
    return Table("Verdicts", ("name", "verdict", "conclusion"), rows)


def keep(outcome: "Outcome", folder: Path) -> Path:
    """Write an outcome's figures, then its JSON: where the JSON is, the claim is finished.

    Args:
        outcome: what came of a claim.
        folder: the claim's own; made when it is not there.

    Returns:
        The path of the JSON.
    """
    for chart in outcome.charts:
        draw(chart, folder / f"{safe_name(chart.name)}.png")
    return write(folder / "outcome.json", outcome.to_json(indent=2))


def kept(path: Path) -> "Outcome":
    """Read an outcome back from its JSON.

    Raises:
        DataFormatError: when the file is not an outcome that this version wrote.
    """
    from initwell.experiments.reproduce.claim import Outcome

    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        charts = tuple(_chart(c) for c in fields.pop("charts"))
        return Outcome(**{**fields, "rows": tuple(fields["rows"]), "charts": charts})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataFormatError(
            f"{path} is not an outcome of this version ({error}); delete it to run the claim again."
        ) from error


def _chart(fields: Mapping[str, Any]) -> Chart:
    panels = []
    for panel in fields["panels"]:
        series = []
        for one in panel["series"]:
            # JSON keeps 'nan' and 'inf' as strings.
            x, y, low, high = (tuple(float(v) for v in one[k]) for k in ("x", "y", "low", "high"))
            series.append(Series(one["label"], x, y, low, high, one["style"]))
        words = (panel["title"], panel["x_label"], panel["y_label"])
        panels.append(Panel(*words, tuple(series), x_log=panel["x_log"], y_log=panel["y_log"]))
    return Chart(fields["name"], fields["title"], fields["caption"], tuple(panels))


def reproduction_page(
    claims: Sequence["Claim"], outcomes: Sequence["Outcome"], failures: Mapping[str, str], command: str
) -> Page:
    """Build the page of a run of reproductions.

    Args:
        claims: what was claimed, in the order of ``outcomes``.
        outcomes: what came of it.
        failures: claim's name to the error that stopped it.
        command: the shell line that runs it again.
    """
    counted = {v: sum(o.verdict == v for o in outcomes) for v in ("confirmed", "refuted", "depends")}
    said = ", ".join(f"{n} {v if v != 'depends' else 'depend'}" for v, n in counted.items() if n)
    verdict = [f"Of {len(outcomes)} claims {said}."] if len(outcomes) > 1 else []
    verdict += [f"{o.name}: {o.verdict}. {o.conclusion}" for o in outcomes]
    verdict += [f"{name} did not finish: {why}" for name, why in failures.items()]
    seconds = sum(o.seconds for o in outcomes)
    return Page(
        title="Claims about initialization, put to the test",
        lead="Each verdict is computed from the numbers of the run below it.",
        verdict=tuple(verdict),
        sections=tuple(_section(c, o) for c, o in zip(claims, outcomes, strict=True)),
        conditions={"time": duration(seconds), **conditions()},
        commands=(command,),
    )


def _section(claim: "Claim", outcome: "Outcome") -> Section:
    words = (outcome.conclusion, outcome.figures, f"The claim: {claim.claim}", f"Source: {claim.source}")
    return Section(
        title=claim.title or claim.name,
        badge=outcome.verdict,
        words=tuple(w for w in words if w),
        charts=tuple(outcome.charts),
        tables=(Table("Evidence", tuple(outcome.table_columns()), outcome.rows),),
        conditions={"claim": claim.name, **outcome.conditions, "time": duration(outcome.seconds)},
    )
