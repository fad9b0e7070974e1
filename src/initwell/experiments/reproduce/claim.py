"""What a claim is, what it may be run with, and what comes out."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from initwell.charts import Chart
from initwell.errors import ArgumentError
from initwell.experiments.data import EMBEDDED, Dataset, load
from initwell.experiments.jobs import run_all
from initwell.experiments.pool import Pool
from initwell.experiments.preparation import Prepared, prepared
from initwell.experiments.reproduce.wording import first_sentence
from initwell.experiments.statistics import Verdict
from initwell.records import Record, Row, TableRecord

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Settings(Record):
    """What a reproduction is run with.

    Attributes:
        quick: the short version, on fewer samples and epochs; the long one otherwise.
        data: a folder of idx or CIFAR-10 files, or None for the embedded MNIST-5k.
        seeds: how many seeds, 0, 1, …
        workers: processes, one a core.
        progress: told a line of text now and then.
        pool: workers that are already running, shared by several reproductions; None starts some where needed.
    """

    quick: bool = True
    data: str | None = None
    seeds: int = 5
    workers: int = 2
    progress: Callable[[str], None] | None = None
    pool: Pool | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be run with."""
        for name in ("seeds", "workers"):
            if getattr(self, name) < 1:
                raise ArgumentError(name, getattr(self, name), "Give a whole number from 1.")

    def seed_list(self) -> tuple[int, ...]:
        """Return the seeds: 0, 1, …"""
        return tuple(range(self.seeds))

    def dataset(self, train: int | None = None, test: int | None = None) -> Dataset:
        """Load the data, at most so many samples of each part, balanced by class."""
        data = load(self.data or EMBEDDED)
        fewer_train = train if train is not None and train < len(data.train_x) else None
        fewer_test = test if test is not None and test < len(data.test_x) else None
        return data if fewer_train is None and fewer_test is None else data.subset(fewer_train, fewer_test)

    def prepared(self, how: str = "standardize", train: int | None = None, test: int | None = None) -> Prepared:
        """Load the data and turn it into tensors."""
        return prepared(self.dataset(train, test), how)

    def say(self, text: str) -> None:
        """Tell the listener, if there is one, how far it is."""
        if self.progress:
            self.progress(text)

    def map(self, function: Callable[..., Result], items: Iterable[Any], shared: Any = None) -> list[Result]:
        """Run a module-level function on every item, one process a core, and return the results in the items' order.

        Args:
            function: called as ``function(item)``, or ``function(shared, item)`` if something is shared.
            items: picklable.
            shared: sent to each process once, such as the prepared data; None for nothing.

        Returns:
            The results, in order; the first failure is raised.
        """
        work: Sequence[Any] = list(items)
        return run_all(function, work, shared=shared, workers=self.workers, pool=self.pool, progress=self._count)

    def _count(self, done: int, total: int) -> None:
        self.say(f"{done} of {total} runs")


@dataclass(frozen=True)
class Finding:
    """What a claim's ``run`` found; ``Claim.reproduce`` makes an ``Outcome`` of it.

    Attributes:
        verdict: ``confirmed``, ``refuted`` or ``depends``, computed from the intervals.
        statement: plain words with the numbers, the conclusion first: see ``Outcome``.
        rows: the evidence; ``low`` and ``high`` are the ends of an interval.
        charts: its figures, as data.
        conditions: settings of the run that a reader needs, beside the data and the length.
    """

    verdict: Verdict
    statement: str
    rows: tuple[Row, ...]
    charts: tuple[Chart, ...]
    conditions: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome(TableRecord):
    """What a reproduction found.

    A statement begins with its conclusion: one sentence, computed from the judgements, that says what was found and on
    what it depends, and that stands alone in lists of many outcomes. The figures follow. A full stop and a space end
    the sentence, so it holds no abbreviation such as "e.g.".

    Attributes:
        name: the claim's.
        claim: what was claimed.
        verdict: ``confirmed``, ``refuted`` or ``depends``, computed from the intervals.
        statement: the finding in plain words: the conclusion, then the numbers.
        rows: the evidence; ``low`` and ``high`` are the ends of an interval.
        charts: its figures, as data.
        conditions: the data, the length, and the settings of the run that a reader needs.
        seconds: wall time.
    """

    name: str
    claim: str
    verdict: Verdict
    statement: str
    rows: tuple[Row, ...]
    charts: tuple[Chart, ...]
    conditions: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def conclusion(self) -> str:
        """The statement's first sentence: what was found, and on what it depends."""
        return first_sentence(self.statement)

    @property
    def figures(self) -> str:
        """The rest of the statement."""
        return self.statement.removeprefix(self.conclusion).strip()

    def table_title(self) -> str:
        """Return the verdict."""
        return f"{self.name}: {self.verdict}"

    def table_columns(self) -> Sequence[str]:
        """Return the keys of the evidence, in the order in which they first appear."""
        return tuple(dict.fromkeys(key for row in self.rows for key in row))

    def table_rows(self) -> Sequence[Row]:
        """Return the evidence."""
        return self.rows

    def table_notes(self) -> Sequence[str]:
        """Return the claim, the finding and the conditions."""
        conditions = ", ".join(f"{key} {value}" for key, value in self.conditions.items())
        return (f"Claim: {self.claim}", f"Found: {self.statement}", f"With {conditions}; {self.seconds:.1f} s.")


@dataclass(frozen=True)
class Claim(Record):
    """One claim of the tutorials or papers, and how it is put to the test.

    Attributes:
        name: as in ``initwell reproduce NAME``.
        title: a few words.
        claim: what was claimed, in one or two sentences.
        source: who claimed it.
        run: puts it to the test.
    """

    name: str
    title: str
    claim: str
    source: str
    run: Callable[[Settings], Finding]

    def reproduce(self, settings: Settings) -> Outcome:
        """Run it, time it, and note the data and the length of the run among its conditions."""
        started = time.perf_counter()
        found = self.run(settings)
        seconds = time.perf_counter() - started
        common = {"data": settings.data or EMBEDDED, "length": "quick" if settings.quick else "full"}
        return Outcome(
            self.name,
            self.claim,
            found.verdict,
            found.statement,
            found.rows,
            found.charts,
            conditions={**common, **found.conditions},
            seconds=seconds,
        )
