"""dead-relu: counting by hand, and each part of the verdict from made-up deaths."""

import math
from dataclasses import replace

import pytest

from initwell.experiments.reproduce.dead_relu import (
    DEEP,
    HIGH,
    SHALLOW,
    Deaths,
    Job,
    evidence,
    jobs,
    judge,
    judgements,
    statement,
    summarize,
)
from initwell.experiments.reproduce.wording import first_sentence


def made_up(*, rate: float, stay: float, scheme: float, policy: float) -> dict[Job, Deaths]:
    """Every run loses 20 %, more by the given effects where its setting differs; seeds wobble by half a point."""
    found = {}
    for job in jobs(range(4), 4, None):
        end = 0.2 + 0.005 * (job.seed % 2) + (rate if job.rate >= HIGH else 0.0)
        if job.depth == SHALLOW and job.rate == HIGH:
            end += scheme * (job.scheme != "kaiming") + policy * (job.policy != "fixed")
        found[job] = Deaths(0.0, end, end, stay - 0.001 * job.seed, "done")
    return found


def test_all_parts_hold() -> None:
    rows = evidence(made_up(rate=0.3, stay=0.99, scheme=0.1, policy=-0.1))
    assert judge(rows) == "confirmed"
    assert first_sentence(statement(rows)) == (
        "High rates kill units, and initialization and policy change how many; the dead stay dead, with one hidden "
        "layer and with four."
    )
    assert "The rate: holds" in statement(rows)


def test_all_parts_fail() -> None:
    rows = evidence(made_up(rate=-0.1, stay=0.3, scheme=0.0, policy=0.0))
    assert set(judgements(rows).values()) == {"fails"} and judge(rows) == "refuted"
    assert first_sentence(statement(rows)) == (
        "High rates kill no more units than low ones, and initialization and policy make no difference; the dead "
        "come back in more than one case in ten, with one hidden layer and with four."
    )


def test_parts_that_differ_make_it_depend() -> None:
    rows = evidence(made_up(rate=0.3, stay=0.3, scheme=0.1, policy=0.0))
    assert judge(rows) == "depends"
    parts = judgements(rows)
    assert (
        parts["the rate"] == "holds" and parts["policy"] == "fails" and parts[f"staying dead, depth {DEEP}"] == "fails"
    )
    found = first_sentence(statement(rows))
    assert "initialization changes how many and policy makes no difference" in found


def test_depths_that_differ_are_told_apart() -> None:
    found = made_up(rate=0.3, stay=0.99, scheme=0.1, policy=-0.1)
    for job, deaths in found.items():
        if job.depth == DEEP:
            found[job] = replace(deaths, stayed=0.5 + 0.001 * job.seed)
    said = first_sentence(statement(evidence(found)))
    assert said.endswith(
        "the dead stay dead with one hidden layer, but come back in more than one case in ten with four."
    )


def test_diverged_runs_are_counted_apart() -> None:
    found = made_up(rate=0.3, stay=0.99, scheme=0.1, policy=-0.1)
    for job in found:
        if job.rate == HIGH:
            found[job] = Deaths(0.0, math.nan, math.nan, None, "diverged")
    rows = evidence(found)
    assert judgements(rows)["the rate"] == "open"
    assert statement(rows).startswith("The seeds do not settle whether high rates kill units")
    row = next(r for r in rows if r.get("learning_rate") == HIGH)
    assert row["diverged"] == 4 and row["seeds"] == 0 and math.isnan(row["value"])


def test_few_dead_units_say_nothing_of_staying() -> None:
    flags = [True] * 4 + [False] * 96
    assert summarize([flags, flags, flags], 1, "done").stayed is None
    more = [True] * 10 + [False] * 90
    assert summarize([more, more, [True] * 9 + [False] * 91], 1, "done").stayed == pytest.approx(0.9)
