"""Compare initialization schemes by training: every scheme, several seeds, kept as they end, with intervals."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from initwell._version import __version__
from initwell.apply.write import init_
from initwell.errors import ArgumentError
from initwell.experiments.comparison import Comparison, Run
from initwell.experiments.data import Dataset, load
from initwell.experiments.ended import Ended
from initwell.experiments.grid import Grid, GridOptions, Setting, shown
from initwell.experiments.jobs import check_workers, cores, run_jobs
from initwell.experiments.network import Network
from initwell.experiments.preparation import Prepared, prepared
from initwell.experiments.store import KeptRun, RunStore, key_of
from initwell.experiments.train import TrainResult, train

# Part of every run's key: raise it when the same settings would train differently.
RECIPE = 2
# Samples that the model is followed with, to find what stands behind each layer.
_EXAMPLE = 2


def compare(
    build: str | Callable[..., nn.Module],
    data: Dataset | Prepared | str | Path,
    schemes: Iterable[object],
    seeds: int | Iterable[int] = 5,
    *,
    preparation: str = "standardize",
    out: str | Path | None = None,
    backend: str = "local",
    workers: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    **options: Unpack[GridOptions],
) -> Comparison:
    """Train a network under each scheme with each seed, and over a grid of other settings where asked.

    Args:
        build: a network of the zoo by name, or a function that returns a new model; it is given by keyword those of
            ``shape``, ``classes``, ``activation``, ``depth``, ``width`` and ``norm`` that it takes.
        data: a data set, prepared tensors, ``"mnist-5k"``, or a folder of idx or CIFAR-10 files.
        schemes: names, schemes or initializers.
        seeds: how many (0, 1, …), or which; a seed sets the weights and the order of the samples.
        preparation: what is done to a data set that is not prepared yet.
        out: a folder for ``runs.db``; a comparison that was cut off goes on from it. None keeps nothing. A run is known
            again by its settings, its data, and the code of ``build`` and of the model's own classes.
        backend: ``local`` (one process a core) or ``ray``.
        workers: processes; None for one a core, 1 to stay in this process.
        progress: told how many runs are done, of how many, and what the last one was.
        options: the axes ``learning_rate``, ``optimizer``, ``activations``, ``depths``, ``widths``, ``norms``, one
            value or several each; and what every run shares: ``epochs``, ``batch_size``, ``momentum``,
            ``weight_decay``, ``policy``, ``gamma``, ``power``, ``step_size``, ``warmup_steps``, ``max_steps``,
            ``diverges_above``, as in ``TrainConfig``.

    Returns:
        The comparison. A run that diverged, or failed, is a row like any other.

    Raises:
        ArgumentError: an argument that cannot be used.
        UnknownNameError: an unknown scheme, network, preparation, backend or option, with the nearest names.
        DataFormatError: a data file that is truncated or mislabelled.
        StoreError: the runs cannot be kept, as on a full disk; the finished ones stand.

    >>> result = compare("mlp", load("mnist-5k").subset(100, 50), ["xavier", "zeros"], seeds=2, workers=1, epochs=1)
    >>> [(row["scheme"], row["seed"], row["status"]) for row in result.rows]
    [('xavier', 0, 'done'), ('zeros', 0, 'done'), ('xavier', 1, 'done'), ('zeros', 1, 'done')]
    """
    check_workers(workers)
    grid = Grid.of(schemes, seeds, options)
    network = Network.of(build)
    network.check_options(grid.options)
    tensors = _tensors(data, preparation)
    work = _Work(grid, network, tensors, progress)
    with RunStore(None if out is None else _folder(out) / "runs.db") as store:
        enough = min(workers or cores(), len(grid.settings)) if backend == "local" else workers
        ended = run_jobs(run_setting, work.todo(store), shared=work.shared, workers=enough, backend=backend)
        # Closed at once when something fails here: an error that is looked at would keep the workers alive.
        with closing(ended):
            work.listen(ended, store)
        return work.comparison(store)


@dataclass(frozen=True)
class Shared:
    """What every run needs."""

    network: Network
    data: Prepared


def run_setting(shared: Shared, item: tuple[int, Setting]) -> TrainResult:
    """Build, initialize and train one model; the item is the run's number and its setting."""
    _, setting = item
    data = shared.data
    model = shared.network.build(data.shape, data.classes, dict(setting.options), setting.config.seed)
    init_(model, setting.scheme, example=data.train_x[:_EXAMPLE], seed=setting.config.seed)
    return train(model, data, setting.config)


def _tensors(data: object, preparation: str) -> Prepared:
    if isinstance(data, Prepared):
        return data
    if isinstance(data, (str, Path)):
        return prepared(load(data), preparation)
    if isinstance(data, Dataset):
        return prepared(data, preparation)
    cure = "Give 'mnist-5k', a folder, or a data set; experiments.data has from_arrays and from_loaders."
    raise ArgumentError("data", type(data).__name__, cure)


def _folder(out: str | Path) -> Path:
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ArgumentError("out", str(out), "It is a file; name a folder.")
    return folder


@dataclass
class _Work:
    """The runs of one comparison: which there are, which are left, what came of them."""

    grid: Grid
    network: Network
    data: Prepared
    progress: Callable[[int, int, str], None] | None
    kept: dict[int, KeptRun] = field(default_factory=dict)
    failed: dict[int, Exception] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    resumed: int = 0

    def __post_init__(self) -> None:
        self.shared = Shared(self.network, self.data)
        networks = {options: self._identity(options) for options in self.grid.networks()}
        self.described = [self._describe(s, networks[s.options]) for s in self.grid.settings]
        self.keys = [key_of(description) for description in self.described]

    def _identity(self, options: tuple[tuple[str, Any], ...]) -> dict[str, str]:
        return self.network.identity(self.data.shape, self.data.classes, dict(options))

    def _describe(self, setting: Setting, network: Mapping[str, str]) -> dict[str, Any]:
        return {
            "initwell": __version__,
            "recipe": RECIPE,
            "network": network,
            "options": {name: shown(value) for name, value in setting.options},
            "data": {"fingerprint": self.data.fingerprint, "preparation": self.data.preparation},
            "scheme": repr(setting.scheme),
            "train": setting.config.to_dict(),
        }

    def todo(self, store: RunStore) -> Iterator[tuple[int, Setting]]:
        """Yield what is not finished, as it is asked for: another process may have finished some meanwhile."""
        for number, (setting, key) in enumerate(zip(self.grid.settings, self.keys, strict=True)):
            if (run := store.get(key)) is not None:
                self.resumed += 1
                self._end(number, run)
            else:
                yield number, setting

    def listen(self, ended: Iterable[Ended], store: RunStore) -> None:
        """Keep every run as it ends."""
        for end in ended:
            number, _ = end.item
            if end.note:
                self.notes[end.note] = None
            if end.error is not None:
                self.failed[number] = end.error
                self._tell(number, "failed")
            else:
                self._end(number, store.finish(self.described[number], end.result.status, end.result.to_dict()))

    def _end(self, number: int, run: KeptRun) -> None:
        self.kept[number] = run
        self._tell(number, run.status)

    def _tell(self, number: int, status: str) -> None:
        if self.progress:
            setting = self.grid.settings[number]
            what = " ".join(f"{value}" for name, value in setting.columns().items() if name != "optimizer")
            self.progress(len(self.kept) + len(self.failed), len(self.keys), f"{what}: {status}")

    def comparison(self, store: RunStore) -> Comparison:
        """Put the runs together, in the grid's order."""
        runs = tuple(self._run(number, setting) for number, setting in enumerate(self.grid.settings))
        notes = list(self.notes)
        if self.resumed:
            notes.append(f"{self.resumed} of {len(self.keys)} runs were finished before and stand in {store.path}.")
        title = f"{self.network.name} on {self.data.name} ({self.data.preparation})"
        return Comparison.of(title, self.grid.options, 1 / self.data.classes, runs, tuple(notes))

    def _run(self, number: int, setting: Setting) -> Run:
        if number in self.kept:
            result = TrainResult.from_dict(self.kept[number].result)
            return Run(setting.columns(), result.status, result.reason, result)
        error = self.failed[number]
        return Run(setting.columns(), "failed", f"{type(error).__name__}: {error}", None)
