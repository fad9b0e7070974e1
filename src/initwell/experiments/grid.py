"""The grid of a comparison: scheme × activation × depth × width × norm × optimizer × learning rate × seed."""

import dataclasses
import itertools
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypedDict

from initwell.apply.schemes.base import Scheme
from initwell.apply.schemes.registry import scheme as scheme_of
from initwell.errors import ArgumentError, UnknownNameError
from initwell.experiments.activations import ActivationSpec
from initwell.experiments.network import called
from initwell.experiments.train import TrainConfig


class GridOptions(TypedDict, total=False):
    """What ``compare`` takes by keyword: the axes (one value or several), and how every run is trained.

    ``learning_rate``, ``optimizer``, ``activations``, ``depths``, ``widths`` and ``norms`` are axes; the rest are
    fields of ``TrainConfig``.
    """

    learning_rate: float | Sequence[float]
    optimizer: str | Sequence[str]
    activations: ActivationSpec | Sequence[ActivationSpec]
    depths: int | Sequence[int]
    widths: int | Sequence[int]
    norms: str | Sequence[str | None] | None
    epochs: int
    batch_size: int
    momentum: float
    weight_decay: float
    policy: str
    gamma: float
    power: float
    step_size: int
    warmup_steps: int
    max_steps: int | None
    diverges_above: float


# Axis of the grid → the keyword that the network takes.
NETWORK_AXES: Mapping[str, str] = {"activations": "activation", "depths": "depth", "widths": "width", "norms": "norm"}


@dataclass(frozen=True)
class Setting:
    """One run to be made.

    Attributes:
        label: the scheme, as it stands in tables.
        scheme: the scheme itself.
        options: what the network is built with, those of the axes that were given.
        config: how it is trained; its seed is that of the weights too.
    """

    label: str
    scheme: Scheme
    options: tuple[tuple[str, Any], ...]
    config: TrainConfig

    def columns(self) -> dict[str, Any]:
        """Return what tells this run from the others, as a row begins."""
        return {
            "scheme": self.label,
            **{name: shown(value) for name, value in self.options},
            "optimizer": self.config.optimizer,
            "learning_rate": self.config.learning_rate,
            "seed": self.config.seed,
        }


@dataclass(frozen=True)
class Grid:
    """All runs of a comparison, seeds outermost, so that an early end has something of every scheme."""

    settings: tuple[Setting, ...]
    options: tuple[str, ...]

    @classmethod
    def of(cls, schemes: Iterable[object], seeds: int | Iterable[int], given: GridOptions) -> "Grid":
        """Multiply the axes out.

        Args:
            schemes: names, schemes or initializers.
            seeds: how many (0, 1, …), or which.
            given: axes and training.

        Raises:
            ArgumentError: an empty axis, a value twice, a bad number, a learning rate that is not above 0.
            UnknownNameError: no such scheme, optimizer, policy or option.
        """
        known = GridOptions.__annotations__
        for name in given:
            if name not in known:
                raise UnknownNameError.among("option", name, known)
        labels = _labelled([schemes] if isinstance(schemes, str) else schemes)
        axes = {name: _values(name, given[name]) for name in NETWORK_AXES if name in given}  # type: ignore[literal-required]
        rates = _values("learning_rate", given.get("learning_rate", TrainConfig.learning_rate))
        rates = tuple(float(rate) if type(rate) is int else rate for rate in rates)
        optimizers = _values("optimizer", given.get("optimizer", TrainConfig.optimizer))
        fixed = {name: value for name, value in given.items() if name in _FIXED}
        base = TrainConfig(**fixed)  # type: ignore[arg-type]
        names = tuple(NETWORK_AXES[axis] for axis in axes)
        settings = [
            Setting(
                label,
                scheme,
                tuple(zip(names, values, strict=True)),
                dataclasses.replace(base, seed=seed, optimizer=optimizer, learning_rate=rate),
            )
            for seed in _seeds(seeds)
            for values in itertools.product(*axes.values())
            for optimizer in optimizers
            for rate in rates
            for label, scheme in labels.items()
        ]
        return cls(tuple(settings), names)

    def networks(self) -> tuple[tuple[tuple[str, Any], ...], ...]:
        """Return the options of every network there is."""
        return tuple(dict.fromkeys(setting.options for setting in self.settings))


_FIXED = {field.name for field in dataclasses.fields(TrainConfig)} - {"learning_rate", "optimizer", "seed"}


def shown(value: Any) -> Any:
    """Return an option's value as it stands in a table and in a run's key: a factory by its name."""
    if callable(value):
        return called(value)
    return "none" if value is None else value


def _labelled(schemes: Any) -> dict[str, Scheme]:
    labels: dict[str, Scheme] = {}
    if not isinstance(schemes, Iterable):
        schemes = (schemes,)
    for spec in schemes:
        scheme = scheme_of(spec)
        label = spec if isinstance(spec, str) else scheme.describe()
        if label in labels:
            raise ArgumentError("schemes", f"{label!r} twice", "Name each scheme once.")
        labels[label] = scheme
    if not labels:
        raise ArgumentError("schemes", "none", "Name at least one, such as 'kaiming'.")
    return labels


def _values(name: str, given: Any) -> tuple[Any, ...]:
    single = isinstance(given, str) or callable(given) or not isinstance(given, Iterable)
    values = (given,) if single else tuple(given)
    if not values:
        raise ArgumentError(name, "nothing", "Give one value or several.")
    if not all(isinstance(value, Hashable) for value in values):
        raise ArgumentError(name, values, "Give one value, or a list of single ones.")
    names = [shown(value) for value in values]
    if any(names.index(n) < k for k, n in enumerate(names)):
        # Two functions of one name could not be told apart in any table.
        raise ArgumentError(name, names, "Give each value once; functions need names of their own.")
    return values


def _seeds(given: Any) -> tuple[int, ...]:
    cure = "Give how many, from 1, or a list of whole numbers from 0."
    if isinstance(given, Iterable) and not isinstance(given, str):
        seeds = tuple(given)
        if not all(isinstance(seed, Integral) for seed in seeds):
            raise ArgumentError("seeds", seeds, cure)
        return _values("seeds", [int(seed) for seed in seeds])
    if not isinstance(given, Integral) or given < 1:
        raise ArgumentError("seeds", given, cure)
    return tuple(range(int(given)))
