"""One model at one start: what is predicted against what is measured over many draws of the weights."""

import math
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch import nn

import initwell as iw
from initwell.trace.failure import NeedsValuesError
from initwell.trace.ops import ACTIVATIONS
from initwell.trace.recorder import record
from initwell.trace.trace import functional
from predict_bench.kept import kept
from predict_bench.zoo.entry import Entry

Direction = Literal["forward", "backward"]
KEYS: Mapping[Direction, str] = {"forward": "forward_rms", "backward": "gradient_rms"}
_NAMES = """
    convolution addmm mm bmm baddbmm mv add native_batch_norm _native_batch_norm_legit_no_training native_layer_norm
    native_group_norm _fused_rms_norm cudnn_batch_norm _native_batch_norm_legit _softmax
"""
COUNTED = {f"aten.{name}" for name in _NAMES.split()} | set(ACTIVATIONS)
"""Ops whose outputs count: convolutions, linear layers, matrix products, activations, norms and sums."""
ROUNDING = 1e-5


@dataclass(frozen=True)
class Value:
    """One value of one model in one direction.

    Attributes:
        path: of the module.
        op: the packet of the out-of-place op.
        direction: "forward" or "backward".
        predicted: its rms; None where it is unknown.
        measured: its rms over the seeds.
        standard_error: of ``measured``, relative.
        fidelity: what the prediction says of itself.
    """

    path: str
    op: str
    direction: Direction
    predicted: float | None
    measured: float
    standard_error: float
    fidelity: str

    @property
    def raw(self) -> float:
        """|predicted/measured − 1|; infinite where nothing was measured of what was predicted; nan if unknown."""
        if self.predicted is None:
            return math.nan
        if self.predicted == self.measured:
            return 0.0  # scores with −∞ filled in among them
        if self.measured == 0:
            return 0.0 if self.predicted == 0 else math.inf
        return abs(self.predicted / self.measured - 1)

    @property
    def error(self) -> float:
        """What of ``raw`` lies beyond two standard errors."""
        return max(0.0, self.raw - 2 * self.standard_error) if self.predicted is not None else math.nan

    @property
    def counts(self) -> bool:
        """Whether the op is one of those that the bars are about."""
        return self.op in COUNTED

    @property
    def place(self) -> str:
        """Where and what, for a table."""
        return f"{self.path} {self.op} {self.direction}"


@dataclass(frozen=True)
class Outcome:
    """One model at one start.

    Attributes:
        model: its name.
        start: the scheme.
        values: in order of execution.
        unsupported: ops without a rule → how often they ran.
        trace_seconds: of the processor, of the recording alone.
        walk_seconds: of the rest of ``predict``.
        error: what went wrong instead, in words; empty where nothing did.
        mismatched: measured rows without a predicted row of the same path and op, and the reverse.
        dropped: values that are no numbers when measured, or rounding noise about a zero.
    """

    model: str
    start: str
    values: tuple[Value, ...] = ()
    unsupported: Mapping[str, int] = field(default_factory=dict)
    trace_seconds: float = 0.0
    walk_seconds: float = 0.0
    error: str = ""
    mismatched: int = 0
    dropped: int = 0


class TooLongError(Exception):
    """A model took more than the time it was given."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise ``TooLongError`` in the block when the time is over; a single call into PyTorch is waited for."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooLongError(f"took more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(
    name: str, entry: Entry, start: str, seeds: int, *, folder: Path | None = None, limit: int = 600
) -> Outcome:
    """Predict and measure one model; a failure of either is an outcome too.

    Args:
        name: of the model.
        entry: how to build it.
        start: the scheme.
        seeds: draws of the weights.
        folder: where measurements are kept, if they are.
        limit: seconds for all of it.
    """
    stage = "build"
    try:
        with limited(limit):
            torch.manual_seed(0)
            model, batch = entry.build(), entry.batch()
            stage = "predict"
            traced = _seconds_to_trace(model, batch)
            plan = iw.plan(model, start)
            started = time.process_time()
            predicted = iw.predict(model, batch, plan=plan)
            seconds = time.process_time() - started
            stage = "measure"
            runs = kept(folder, f"{name} {start} {seeds}", lambda: measured(model, batch, start, seeds))
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        return Outcome(name, start, error=f"{stage}: {message[:300]}")
    values, mismatched, dropped = paired(predicted.rows, runs)
    unsupported = dict(predicted.unsupported)
    return Outcome(name, start, values, unsupported, traced, max(0.0, seconds - traced), "", mismatched, dropped)


def _seconds_to_trace(model: nn.Module, batch: Any) -> float:
    """Return the processor's time for a recording on meta tensors; 0 where it takes a real run."""
    started = time.process_time()
    try:
        record(model, batch, device="meta")
    except NeedsValuesError:
        return 0.0
    return time.process_time() - started


def measured(model: nn.Module, batch: Any, start: str, seeds: int) -> list[Sequence[Mapping[str, Any]]]:
    """Measure a model once for each draw of its weights; dropout masks and starting gradients are drawn anew too."""
    runs: list[Sequence[Mapping[str, Any]]] = []
    for seed in range(seeds):
        iw.init_(model, start, seed=seed)
        runs.append(iw.measure(model, batch, seed=seed).rows)
    return runs


def paired(
    predicted: Sequence[Mapping[str, Any]], runs: Sequence[Sequence[Mapping[str, Any]]]
) -> tuple[tuple[Value, ...], int, int]:
    """Put predicted and measured rows side by side.

    Returns:
        The values; how many rows of either have no partner (the measured among them count as unknown); how many values
        were dropped because what was measured is no number, or rounding about a zero.
    """
    partners, unmatched = _partners(predicted, runs[0])
    scales = {key: max((run[key] or 0.0 for run in runs[0]), default=0.0) for key in KEYS.values()}
    values, dropped = list[Value](), 0
    for i, row in enumerate(runs[0]):
        for direction, key in KEYS.items():
            if row[key] is None:
                continue
            partner = partners.get(i)
            expected = None if partner is None else partner[key]
            size, spread = rms_over([run[i][key] for run in runs])
            nothing = not expected or expected < 1e-3 * size
            noise = ROUNDING * scales[key]
            rounding = expected is not None and size < noise and (nothing or (size == 0 and expected < noise))
            if not math.isfinite(size) or rounding:
                dropped += 1
                continue
            fidelity = "unknown" if partner is None or expected is None else partner["fidelity"]
            values.append(Value(row["path"], functional(row["op"]), direction, expected, size, spread, fidelity))
    return tuple(values), unmatched, dropped


def _partners(
    predicted: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> tuple[dict[int, Mapping[str, Any]], int]:
    """Return the predicted row of each measured one, by its index, and how many rows of either have none.

    Where the two took different routes within a module, ops of it that look alike may be different ones, so that none
    of its rows is paired.
    """
    ours, theirs = _by_module(predicted), _by_module(rows)
    found: dict[int, Mapping[str, Any]] = {}
    for module, indices in theirs.items():
        mine = ours.get(module, [])
        if [_key(predicted[i]) for i in mine] == [_key(rows[i]) for i in indices]:
            found.update((i, predicted[k]) for i, k in zip(indices, mine, strict=True))
    return found, len(predicted) + len(rows) - 2 * len(found)


def _by_module(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, int], list[int]]:
    found: dict[tuple[str, int], list[int]] = {}
    for i, row in enumerate(rows):
        found.setdefault((row["path"], row["call"]), []).append(i)
    return found


def _key(row: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    return functional(row["op"]), tuple(row["shape"])


def rms_over(sizes: Sequence[float]) -> tuple[float, float]:
    """Return the rms over seeds of rms values, and its relative standard error.

    The error is that of the mean square, halved, since √(m(1 + ε)) is √m·(1 + ε/2).

    >>> rms_over([1.0, 1.0])
    (1.0, 0.0)
    """
    squares = torch.tensor(sizes, dtype=torch.float64).square()
    mean = float(squares.mean())
    if len(sizes) < 2 or mean == 0 or not math.isfinite(mean):
        return math.sqrt(mean) if mean >= 0 else mean, 0.0
    return math.sqrt(mean), float(squares.std()) / math.sqrt(len(sizes)) / (2 * mean)
