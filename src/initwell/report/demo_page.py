"""The page of the demonstration."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from initwell.report.conditions import conditions
from initwell.report.html import Page, Section
from initwell.report.tables import Table
from initwell.report.text import duration

if TYPE_CHECKING:
    from initwell.experiments.demo import Demo, NetResult

COLUMNS = ("scheme", "signal", "gradient", "test_accuracy", "low", "high", "learning_rate", "diverged", "overlap",
           "signal_theory", "gradient_theory")  # fmt: skip
READING = (
    "signal: size (rms) at the last layer over that at the first. gradient: size at the second layer over that at the "
    "last. _theory: what the chain formula says of both.",
    "overlap: how alike the outputs for two images are, 1 for the same. test_accuracy: mean over seeds at the scheme's "
    "best learning rate; low and high: its 95 % interval.",
)


def demo_table(result: "NetResult", *, reading: bool = True) -> Table:
    """Return one network's table, a row a scheme."""
    return Table(result.net.title, COLUMNS, result.rows, READING if reading else ())


def demo_page(found: "Demo", seconds: float, command: str) -> Page:
    """Build the page.

    Args:
        found: what came of the demonstration.
        seconds: how long it took.
        command: the shell line that runs it again.
    """
    first = found.results[0]
    run: Mapping[str, Any] = {**found.conditions, "time": duration(seconds), **conditions()}
    return Page(
        title="How a network starts decides whether it trains",
        lead=f"{first.net.title} on real images, under {len(first.rows)} initializations: what the formula says, what "
        "is measured, and what training makes of it.",
        verdict=first.verdicts,
        sections=tuple(_section(result, first) for result in found.results),
        conditions=run,
        commands=(command,),
    )


def _section(result: "NetResult", first: "NetResult") -> Section:
    return Section(
        title=result.net.title[0].upper() + result.net.title[1:],
        # The page begins with the first network's sentences; they are not said twice.
        words=() if result is first else result.verdicts,
        summary=demo_table(result),
        tables=(result.comparison.summary(),),
        charts=result.charts,
    )
