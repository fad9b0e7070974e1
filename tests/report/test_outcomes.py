"""An outcome is kept, read back the same, and shown on the page with its verdict; a foreign file is refused."""

import math
from pathlib import Path

import pytest

from initwell.charts import Chart, Panel, Series
from initwell.errors import DataFormatError
from initwell.experiments.reproduce.claim import Claim, Finding, Outcome
from initwell.report.depth import depth_chart, depth_words
from initwell.report.html import render
from initwell.report.outcomes import keep, kept, reproduction_page, verdicts

SERIES = Series("s", (1.0, 2.0), (math.inf, math.nan), (0.0, 1.0), (2.0, 3.0), "both")
CHART = Chart("a chart", "t", "c", (Panel("p", "x", "y", (SERIES,), x_log=True),))
OUTCOME = Outcome(
    "a-claim", "All is well.", "refuted", "It is 0.5 and not 1. More.", ({"value": 0.5},), (CHART,), {"seeds": 3}, 61.0
)
CLAIM = Claim(
    "a-claim", "A <title>", "All is well.", "A paper", lambda _: Finding("refuted", OUTCOME.statement, (), ())
)


def test_an_outcome_comes_back_as_it_was(tmp_path: Path) -> None:
    path = keep(OUTCOME, tmp_path)
    again = kept(path)
    assert repr(again) == repr(OUTCOME)
    assert (tmp_path / "a-chart.png").is_file()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"charts": []}', '{"charts": [{"name": 1}]}'])
def test_a_file_that_is_no_outcome_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "outcome.json"
    path.write_text(content)
    with pytest.raises(DataFormatError, match=r"outcome\.json is not an outcome"):
        kept(path)


def test_the_page_has_verdict_statement_evidence_and_what_failed() -> None:
    page = reproduction_page([CLAIM], [OUTCOME], {"other": "no data"}, "initwell reproduce a-claim")
    assert page.verdict == ("a-claim: refuted. It is 0.5 and not 1.", "other did not finish: no data")
    assert page.sections[0].words[:2] == ("It is 0.5 and not 1.", "More.")
    assert verdicts([OUTCOME]).rows == (
        {"name": "a-claim", "verdict": "refuted", "conclusion": "It is 0.5 and not 1."},
    )
    text = render(page)
    assert '<span class="badge refuted">refuted</span>' in text
    assert "A &lt;title&gt;" in text
    assert "1 min 1 s" in text


ROWS = [
    {"path": "a", "op": "mm", "forward_rms": 1.0, "gradient_rms": 1e-9},
    {"path": "b", "op": "relu", "forward_rms": 0.5, "gradient_rms": None},
    {"path": "c", "op": "mm", "forward_rms": 0.02, "gradient_rms": 1.0},
]


def test_depth_is_said_in_words_and_drawn_without_what_is_missing() -> None:
    signal, gradient = depth_words(ROWS)
    assert signal == "The signal is shrinking: its rms goes from 1 to 0.02 at c."
    assert gradient == "The gradient is vanishing: its rms goes from 1 to 1e-09 at a."
    chart = depth_chart({"run": ROWS}, "n", "t")
    assert [panel.series[0].x for panel in chart.panels] == [(1.0, 2.0, 3.0), (1.0, 3.0)]
    dead = [{**row, "forward_rms": 0.0} for row in ROWS]
    assert depth_words(dead)[0] == "The signal is dead: exactly zero from a (mm) on."
    lost = [*ROWS[:2], {**ROWS[2], "forward_rms": math.inf}]
    assert depth_words(lost)[0] == "The signal is lost: it is inf at c (mm)."
