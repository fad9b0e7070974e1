"""What a comparison found: every run, each scheme at its best learning rate with an interval, and the curves."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from initwell.charts import Chart
from initwell.experiments.statistics import Interval, mean_interval, paired_difference
from initwell.experiments.train import TrainResult
from initwell.records import Record, Row, TableRecord


@dataclass(frozen=True)
class Run(Record):
    """One run: what it was given, how it ended, and its curves (None if it failed)."""

    given: Mapping[str, Any]
    status: Literal["done", "diverged", "failed"]
    reason: str
    result: TrainResult | None

    def row(self) -> dict[str, Any]:
        """Return the run as a row; the figures are those after its last finished epoch, None where there is none."""
        result = self.result
        ends: dict[str, Any] = {}
        for name in ("test_accuracy", "test_loss", "train_loss", "train_accuracy"):
            curve: tuple[float, ...] = getattr(result, name) if result is not None and self.status == "done" else ()
            ends[name] = curve[-1] if curve else None
        steps, seconds = (result.steps, result.seconds) if result is not None else (0, 0.0)
        return {**self.given, "status": self.status, **ends, "steps": steps, "seconds": seconds, "reason": self.reason}


@dataclass(frozen=True)
class Entry(Record):
    """One scheme at one learning rate, within one group of the other settings.

    Attributes:
        scheme: its label.
        group: the other settings (activation, depth, width, norm, optimizer), by name.
        learning_rate: the rate.
        runs: one a seed, failed ones left out.
        failed: how many failed.
        accuracy: the test accuracy over seeds, its interval cut at 0 and 1; a diverged run counts as chance.
    """

    scheme: str
    group: Mapping[str, Any]
    learning_rate: float
    runs: tuple[Run, ...]
    failed: int
    accuracy: Interval

    @property
    def finished(self) -> tuple[TrainResult, ...]:
        """The results of the runs that did not diverge."""
        return tuple(run.result for run in self.runs if run.status == "done" and run.result is not None)

    @property
    def diverged(self) -> int:
        """How many runs diverged."""
        return len(self.runs) - len(self.finished)


@dataclass(frozen=True)
class Summary(TableRecord):
    """Each scheme at its best learning rate."""

    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def table_title(self) -> str:
        """Return what was compared."""
        return self.title

    def table_columns(self) -> Sequence[str]:
        """Return the keys of the rows."""
        return tuple(dict.fromkeys(key for row in self.rows for key in row))

    def table_rows(self) -> Sequence[Row]:
        """Return one row a scheme and group, best first within a group."""
        return self.rows

    def table_notes(self) -> Sequence[str]:
        """Return how the figures are to be read."""
        return self.notes


@dataclass(frozen=True)
class Comparison(TableRecord):
    """Every run of a comparison.

    Attributes:
        title: network, data and preparation.
        options: the network's options that were varied or set.
        chance: accuracy of guessing.
        rows: one a run, in the grid's order: scheme, the grid's settings, seed, status and the final figures.
        notes: what must not stay silent.
    """

    title: str
    options: tuple[str, ...]
    chance: float
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    _runs: tuple[Run, ...] = field(repr=False)

    @classmethod
    def of(
        cls, title: str, options: Sequence[str], chance: float, runs: Sequence[Run], notes: Sequence[str]
    ) -> "Comparison":
        """Put runs together; see the attributes."""
        return cls(title, tuple(options), chance, tuple(run.row() for run in runs), tuple(notes), tuple(runs))

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs with their curves, in the order of ``rows``; not part of ``to_dict()``."""
        return self._runs

    def entries(self) -> tuple[Entry, ...]:
        """Return the runs gathered over seeds: one entry for each scheme, learning rate and group."""
        gathered: dict[tuple[Any, ...], list[Run]] = {}
        for run in self.runs:
            key = tuple(value for name, value in run.given.items() if name != "seed")
            gathered.setdefault(key, []).append(run)
        return tuple(self._entry(runs) for runs in gathered.values())

    def _entry(self, runs: Sequence[Run]) -> Entry:
        given = runs[0].given
        group = {name: given[name] for name in (*self.options, "optimizer")}
        ended = tuple(run for run in runs if run.status != "failed")
        values = [self._accuracy(run) for run in ended]
        interval = mean_interval(values).within(0, 1) if values else Interval(math.nan, math.nan, math.nan, 0)
        return Entry(given["scheme"], group, given["learning_rate"], ended, len(runs) - len(ended), interval)

    def _accuracy(self, run: Run) -> float:
        accuracy = run.row()["test_accuracy"]
        return self.chance if accuracy is None else float(accuracy)

    def best(self) -> tuple[tuple[Entry, ...], ...]:
        """Return, for each group, every scheme at the learning rate of its highest mean accuracy, best scheme first."""
        groups: dict[tuple[Any, ...], dict[str, Entry]] = {}
        for entry in self.entries():
            schemes = groups.setdefault(tuple(entry.group.values()), {})
            before = schemes.get(entry.scheme)
            if before is None or _rank(entry) > _rank(before):
                schemes[entry.scheme] = entry
        return tuple(tuple(sorted(schemes.values(), key=_rank, reverse=True)) for schemes in groups.values())

    def summary(self) -> Summary:
        """Return each scheme at its best learning rate: mean test accuracy over seeds and its 95 % t interval."""
        rows: list[Row] = []
        ties = 0
        for group in self.best():
            for entry in group:
                gap = self._gap(group[0], entry)
                ties += entry is not group[0] and gap is not None and gap.low <= 0 <= gap.high
                rows.append(self._summary_row(entry, gap))
        return Summary(self.title, tuple(rows), (*self._reading(ties), *self.notes))

    def _summary_row(self, entry: Entry, gap: Interval | None) -> Row:
        losses = [result.train_loss[-1] for result in entry.finished if result.train_loss]
        return {
            "scheme": entry.scheme,
            **entry.group,
            "learning_rate": entry.learning_rate,
            "seeds": len(entry.runs),
            "diverged": entry.diverged,
            "failed": entry.failed,
            "test_accuracy": entry.accuracy.value,
            "low": entry.accuracy.low,
            "high": entry.accuracy.high,
            "train_loss": math.fsum(losses) / len(losses) if losses else None,
            "behind_best": None if gap is None else gap.value,
            "behind_low": None if gap is None else gap.low,
            "behind_high": None if gap is None else gap.high,
        }

    def _gap(self, best: Entry, entry: Entry) -> Interval | None:
        first = {run.given["seed"]: self._accuracy(run) for run in best.runs}
        second = {run.given["seed"]: self._accuracy(run) for run in entry.runs}
        seeds = [seed for seed in first if seed in second]
        if entry is best or not seeds:
            return None
        return paired_difference([first[s] for s in seeds], [second[s] for s in seeds])

    def _reading(self, ties: int) -> list[str]:
        rates = len({run.given["learning_rate"] for run in self.runs})
        lines = [
            "test_accuracy: mean over seeds, low and high its 95 % Student t interval, cut at 0 and 1; behind_best: "
            "the best scheme's accuracy minus this one's, seed by seed."
        ]
        if rates > 1:
            lines.append(
                f"Each scheme stands at the best of {rates} learning rates by the mean of these same seeds, on the "
                "test samples: the figures flatter all schemes alike."
            )
        if rates > 2 and (ends := self._at_the_ends()):
            lines.append(f"Best at the end of the rates tried, so a better one may lie beyond: {', '.join(ends)}.")
        if len({run.given["seed"] for run in self.runs}) == 1:
            lines.append("One seed gives no interval: ask for several to tell schemes apart.")
        if any(run.status == "diverged" for run in self.runs):
            lines.append(f"A diverged run counts as chance ({self.chance:.3g}).")
        if ties:
            lines.append(f"{ties} of the schemes cannot be told from the best of their group at 95 %.")
        failed = [run for run in self.runs if run.status == "failed"]
        failures = dict.fromkeys(f"{run.given['scheme']} failed: {run.reason}" for run in failed)
        return [*lines, *failures]

    def _at_the_ends(self) -> list[str]:
        rates = sorted({run.given["learning_rate"] for run in self.runs})
        ends = (rates[0], rates[-1])
        best = (entry for group in self.best() for entry in group)
        return list(dict.fromkeys(f"{e.scheme} {e.learning_rate:g}" for e in best if e.learning_rate in ends))

    def charts(self) -> tuple[Chart, ...]:
        """Return the loss and accuracy curves with bands over seeds, and accuracy by learning rate if several."""
        from initwell.experiments.curves import comparison_charts

        return comparison_charts(self)

    def table_title(self) -> str:
        """Return what was compared."""
        return self.title

    def table_columns(self) -> Sequence[str]:
        """Return the columns of the summary."""
        return self.summary().table_columns()

    def table_rows(self) -> Sequence[Row]:
        """Return the summary; ``rows`` has every run."""
        return self.summary().rows

    def table_notes(self) -> Sequence[str]:
        """Return how the figures are to be read, and what must not stay silent."""
        return self.summary().notes


def _rank(entry: Entry) -> float:
    return -math.inf if math.isnan(entry.accuracy.value) else entry.accuracy.value
