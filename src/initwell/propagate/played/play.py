"""Stretches played with drawn numbers: what ops make of Gaussian inputs, where no rule says it.

The gated delta rule solves a triangular system of products of keys, each times a decay of its own: a state is read, and
what it says is taken off what is written. A norm divides what comes of it, a number times a vector for each row, by its
own length. No step of that is a matter of second moments: which keys are alike, which decays are near 1 and which rows
are short goes from op to op. What goes in is known, though: outputs of layers of fresh weights are Gaussian, with
moments that the walk has found, and so are the gradients that come back from such layers. So the ops themselves are run
on numbers drawn by these, and what they make is measured,

    E[y_i y_j] = (1/N) Σ_n y_i(x_n) y_j(x_n)

over all rows of N draws, of the weights between, too. Between two layers it is exact up to 1/√(rows), some per cent
of what a few short rows decide, and without samples that rare ones make all of. Assumption: inputs of one stretch are
independent of each other, and the gradients that arrive of the stretch's values; rows go together as their moments say,
and not by how the weights before happen to fall (``gram``), so that products of keys of unlike rows are too small.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils._pytree import tree_leaves

from initwell.propagate.default import default_table
from initwell.propagate.given.known import Known
from initwell.propagate.given.measured import measured, with_places
from initwell.propagate.moments.atoms import viewed
from initwell.propagate.moments.axes import Atom
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.played.drawn import drawn, evenly
from initwell.propagate.played.own import sums_of_own
from initwell.propagate.played.seeds import WHOLE, seeds
from initwell.propagate.played.stretches import Stretch, stretches
from initwell.propagate.table import Call, RuleTable, UnknowableError, UnknownSignalError
from initwell.trace.fold import called, overload
from initwell.trace.trace import Op, Trace, ValueRef

_WHY = "made by ops without a law of their own: measured of drawn numbers between layers of fresh weights"
_LEFT = "decays or factors that are met again, their steps as independent: too much lies around them to be played"
# So many entries of all draws of one value, and so many draws at most.
_ENTRIES = 1 << 22
_DRAWS = 16
# All entries of all draws, where channels alone are why a stretch is played.
_WORK = 1 << 25
_SEED = 20170
# Strides here may be others than those on meta tensors, which a view fits.
_RESHAPED = torch.ops.aten.reshape.default
# Of so many samples none makes this share of all squares but by a rare row.
_SAMPLES, _SHARE = 16, 0.25
# Rows whose mean squares vary by less than this are as good as of one size.
_LEAST = 0.05
_HALVINGS = 20


class Played:
    """Gives the values of a stretch their signals, as a walk comes by."""

    def __init__(self, trace: Trace, known: Mapping[int, Signal], values: Known, table: RuleTable) -> None:
        """Begin a walk.

        Args:
            trace: that is walked.
            known: value id → signal, of all values so far.
            values: what has real numbers.
            table: of rules, for views.
        """
        self.trace, self.known, self.values, self.table = trace, known, values, table
        every = {*values.folded.tensors}
        begun = [*seeds(trace, known, values.kept, every)]
        own = values.once("sums of own", lambda: [*sums_of_own(trace)])
        name = f"stretches {[op.index for op in begun]}"
        found: Mapping[int, Stretch] = values.once(name, lambda: stretches(trace, every, begun, own))
        self._stretches = {i: stretch for i, stretch in found.items() if not self._has_own(stretch)}
        self.any = bool(self._stretches)
        # Ops around which no stretch has an end → what to say of them: the rules serve them as they can.
        self.left = dict.fromkeys((op.index for op in begun if op.index not in found), _LEFT)
        self._plays: dict[int, _Play] = {}
        # Of what stretches read: by how much a row's gradient, in all, lies along it.
        self.along_rows: dict[int, float] = {}

    def _has_own(self, stretch: Stretch) -> bool:
        """Whether a caller gave a rule for one of its ops."""
        own, given = default_table().rules, self.table.rules
        names = {name for i in stretch.ops for name in (self.trace.ops[i].packet, self.trace.ops[i].functional)}
        return any(given.get(name) is not own.get(name) for name in names)

    def found(self, op: Op) -> Sequence[Signal | None] | None:
        """Return the signals of what an op of a stretch makes; None where it is of none.

        Raises:
            UnknownSignalError: a value that it reads has no numbers.
            UnknowableError: PyTorch cannot run the op on what was drawn.
        """
        stretch = self._stretches.get(op.index)
        if stretch is None:
            return None
        if stretch.place not in self._plays:
            self._plays[stretch.place] = _Play(self.trace, self.known, self.values, stretch)
        play = self._plays[stretch.place]
        try:
            found = self._made(play, op)
        except UnknownSignalError:
            play.fail(op)
            raise
        except RuntimeError as error:
            play.fail(op)
            said = str(error).splitlines()[0]
            raise UnknowableError(f"what {op.packet} makes of drawn numbers, PyTorch says: {said}") from error
        if op.index == stretch.last:
            self.along_rows |= play.along_rows()
        play.forget(op.index)
        return found

    def _made(self, play: "_Play", op: Op) -> Sequence[Signal | None]:
        play.run(op)
        found = self._by_rule(op) if op.functional in WHOLE else None
        if found is None:
            found = [play.signal(value) for value in op.outputs]
        if found == [None] and op.phase == "forward":
            found = self._by_rule(op) or found  # scores filled with what is infinite
        return found

    def _by_rule(self, op: Op) -> Sequence[Signal | None] | None:
        """Return what a rule says, as of views: there is nothing to be measured."""
        rule = self.table.rules.get(op.packet) or self.table.rules.get(op.functional)
        if rule is None:
            return None
        try:
            return rule(Call(op, self.trace, self.known, self.values))
        except UnknownSignalError:
            return None


class _Play:
    """One stretch, with its numbers of each draw."""

    def __init__(self, trace: Trace, known: Mapping[int, Signal], values: Known, stretch: Stretch) -> None:
        self.trace, self.known, self.values, self.stretch = trace, known, values, stretch
        self.failed: set[int] = set()
        self._tensors: dict[int, list[Tensor]] = {}
        self._read_last = _last_readers(trace, stretch)
        self._generator = Generator().manual_seed(_SEED + stretch.place)
        shapes = [trace.values[o].shape for i in stretch.ops for o in trace.ops[i].outputs]
        whole = stretch.entries or 1
        self.draws = max(1, min(_DRAWS, _ENTRIES // max(map(math.prod, shapes)), _WORK // whole))
        self.batch = next((trace.values[v].shape[0] for v in trace.inputs.values() if trace.values[v].shape), 1)

    def fail(self, op: Op) -> None:
        """Keep in mind that what an op makes has no numbers."""
        self.failed.update(op.outputs, (new for _, new in op.mutates))

    def run(self, op: Op) -> None:
        """Run an op on every draw."""
        if any(i in self.failed for i in op.inputs):
            raise UnknownSignalError(op.packet)
        func = _RESHAPED if op.packet in ("aten.view", "aten._unsafe_view") else overload(op)
        for i in op.inputs:
            self._numbers(i)
        results: list[list[Tensor]] = []
        for n in range(self.draws):
            numbers = partial(_number, {i: self._numbers(i)[n] for i in op.inputs})
            arguments = {**op.arguments, "shape": op.arguments.get("size")} if func is _RESHAPED else op.arguments
            if arguments.get("training") or arguments.get("train"):
                arguments = {**arguments, "running_mean": None, "running_var": None}  # they are written to
            out = called(func, arguments, numbers)
            results.append([_plain(t) for t in tree_leaves(out) if isinstance(t, Tensor)])
        for place, value in enumerate(op.outputs):
            self._tensors[value] = [made[place] for made in results]
        for old, new in op.mutates:
            if old in self._tensors or old in self.values or old in self.stretch.written:
                self._tensors[new] = self._numbers(old)

    def _numbers(self, value: int) -> list[Tensor]:
        """Return the numbers of a value, for each draw."""
        if value in self._tensors:
            return self._tensors[value]
        if value in self.stretch.written:
            op = self.trace.producer(value)
            if op is not None:
                self.run(op)
                return self._tensors[value]
        if value in self.values:
            return [_plain(self.values[value])] * self.draws
        if value in self.values.kept:
            return [_plain(self.values.kept[value].detach())] * self.draws
        if value not in self.stretch.inputs and value not in self.stretch.parameters:
            raise UnknownSignalError(str(value))
        signal = self.known.get(value)
        if signal is None:
            raise UnknownSignalError(str(value))
        made = self._drawn(value, signal)
        rows = self._tensors.get(self.stretch.arriving.get(value, -1))
        self._tensors[value] = made if rows is None or signal.swing >= 0 else _against(made, rows, 1 - signal.swing)
        return self._tensors[value]

    def _drawn(self, value: int, signal: Signal) -> list[Tensor]:
        if self.stretch.entries is None:
            return [drawn(signal, self._generator) for _ in range(self.draws)]
        if value in self.stretch.parameters and len(signal.shape) > 1 and math.prod(signal.shape[1:]) == 1:
            return evenly(signal, self.draws, self._generator)
        return [drawn(signal, self._generator, torch.float32) for _ in range(self.draws)]

    def along_rows(self) -> dict[int, float]:
        """Return the sum over rows of E[(Σ v·g)²] of each input of the forward, g its gradient."""
        found = {}
        for value in self.stretch.inputs & self.trace.gradients.keys():
            pairs = [self._tensors.get(i, []) for i in (value, self.trace.gradients[value])]
            sums = [(v.double() * g).sum(-1).square().sum() for v, g in zip(*pairs, strict=False)]
            if sums:
                found[value] = float(torch.stack(sums).mean())
        return found

    def signal(self, value: int) -> Signal | None:
        """Measure a value over all draws."""
        tensors = self._tensors[value]
        if not tensors[0].is_floating_point():
            return None
        edge = value in self.stretch.edge
        each = [self._measured(t) if edge else self._by_sample(t) for t in tensors]
        if edge and each[0].atoms and len(each[0].dims) > 2:
            each[0] = with_places(each[0], torch.cat(tensors))
        moments = np.mean([s.moments for s in each], 0) * self._frequent(value)
        if not np.isfinite(moments).all():
            return None
        mean = float(np.mean([s.mean for s in each]))
        found = replace(each[0].changed(moments, mean), joint=True, profile=each[0].profile).approximate(_WHY)
        rows = edge and tensors[0].ndim > 0 and self.stretch.entries is None and not self._is_gradient(value)
        return replace(found, swing=self._swing(tensors)) if rows else found

    def _frequent(self, value: int) -> float:
        op, first = self.trace.producer(value), self._tensors[value][0]
        by_sample = first.ndim > 0 and (first.shape[0] == self.batch or (op is not None and op.packet == "aten.bmm"))
        return frequent(self._tensors[value], self.batch) if by_sample else 1.0

    def _is_gradient(self, value: int) -> bool:
        op = self.trace.producer(value)
        return op is not None and op.phase == "backward"

    def _swing(self, tensors: list[Tensor]) -> float:
        """Return by how much rows vary in size, beyond what chance does to that of Gaussian numbers."""
        rows = torch.stack([t.double().square().mean(-1) for t in tensors])
        mean, square = float(rows.mean()), float(rows.square().mean())
        found = square / mean**2 / (1 + 2 / tensors[0].shape[-1]) - 1 if mean > 0 else 0.0
        return found if found > _LEAST else 0.0

    def _measured(self, tensor: Tensor) -> Signal:
        """Measure along all dimensions, the first of which may hold rows of all samples."""
        shape = tuple(tensor.shape)
        rows = bool(shape) and shape[0] > self.batch > 1 and shape[0] % self.batch == 0
        if rows:
            tensor = tensor.reshape(self.batch, shape[0] // self.batch, *shape[1:])
        sample = 0 if tensor.ndim and tensor.shape[0] == self.batch > 1 else None
        found = measured(tensor, sample=sample)
        return viewed(found, shape) if rows else found

    def _by_sample(self, tensor: Tensor) -> Signal:
        """Measure what no other op reads: by samples alone, as ``measured`` does, but with 32 bits."""
        shape, b = tuple(tensor.shape), self.batch
        if not shape or shape[0] % b or b < 2 or tensor.numel() == b:
            return self._measured(tensor)
        rows = tensor.reshape(b, -1)
        n = rows.shape[1]
        whole = float(torch.linalg.vector_norm(rows)) ** 2
        along = [float(torch.linalg.vector_norm(rows.sum(axis))) ** 2 for axis in (0, 1)]
        every = float(rows.sum())
        apart = [(along[0] - whole) / (b - 1), (along[1] - whole) / (n - 1)]
        both = (every**2 - along[0] - along[1] + whole) / ((b - 1) * (n - 1))
        moments = np.array([[whole, apart[1]], [apart[0], both]]) / (b * n)
        return viewed(Signal(((Atom(b, True),), (Atom(n),)), moments, np.asarray(every / (b * n))), shape)

    def forget(self, index: int) -> None:
        """Let the numbers go that no op behind this one reads."""
        for value in self._read_last.get(index, ()):
            self._tensors.pop(value, None)
        if index == self.stretch.last:
            self._tensors.clear()


def frequent(tensors: Sequence[Tensor], batch: int) -> float:
    """Return the average square of a value without the few samples that make it, over that of all.

    What a norm sends back to a row goes as 1/s², and one row in thousands may be so short that it has as much as all
    others: in a batch of a model there hardly ever is one. What is a quarter of all squares, of 16 samples or more, is
    left out.

    Args:
        tensors: the value, of each draw.
        batch: how many samples there are in one.

    >>> frequent([torch.ones(16, 4), torch.ones(16, 4)], 16)
    1.0
    >>> round(frequent([torch.cat([torch.ones(15, 4), 9 * torch.ones(1, 4)])], 16), 4)  # 1 of (15 + 81)/16
    0.1667
    """
    if tensors[0].shape[0] % batch or len(tensors) * batch < _SAMPLES:
        return 1.0
    squares = torch.cat([t.reshape(batch, -1).square().mean(1) for t in tensors]).double().sort().values
    kept = len(squares)
    while kept > 1 and squares[kept - 1] > _SHARE * squares[:kept].sum():
        kept -= 1
    return float(squares[:kept].mean() / squares.mean()) if kept < len(squares) else 1.0


def _plain(tensor: Tensor) -> Tensor:
    """Return numbers of the one precision that is played in, whatever the model's own is."""
    return tensor.float() if tensor.is_floating_point() else tensor


def _number(numbers: Mapping[int, Tensor], ref: ValueRef) -> Tensor:
    return numbers[ref.id]


def _last_readers(trace: Trace, stretch: Stretch) -> dict[int, list[int]]:
    """Return op → values that it is the last of a stretch to read; but for those that are looked at in the end."""
    last: dict[int, int] = {}
    for index in sorted(stretch.ops):
        here = trace.ops[index]
        last |= dict.fromkeys((*here.outputs, *here.inputs, *(old for old, _ in here.mutates)), index)
    kept = stretch.inputs | stretch.written | {*stretch.arriving.values()}
    kept |= {trace.gradients[value] for value in stretch.inputs if value in trace.gradients}
    for op in map(trace.producer, stretch.written):
        kept |= {*op.inputs} if op is not None else set()
    found: dict[int, list[int]] = {}
    for value, index in last.items():
        if value not in kept:
            found.setdefault(index, []).append(value)
    return found


def _against(gradients: list[Tensor], rows: list[Tensor], gain: float) -> list[Tensor]:
    """Return gradients that are larger where rows are short, as behind a norm that divides by their lengths.

    A norm of a stream of which these rows are a part f has divided by s² = 1 − f + f·m, m a row's mean square by the
    average of all, and so f follows from gain = E[1/s²].

    Args:
        gradients: of the rows, drawn without regard to them.
        rows: of each draw, of the same shape.
        gain: by how much E[1/s²] is larger than 1.
    """
    if any(g.shape != r.shape for g, r in zip(gradients, rows, strict=True)):
        return gradients
    sizes = torch.stack([r.double().square().mean(-1, keepdim=True) for r in rows])
    sizes = sizes / sizes.mean()
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        part = (low + high) / 2
        low, high = (part, high) if float((1 / (1 - part + part * sizes)).mean()) < gain else (low, part)
    inverse = 1 / (1 - low + low * sizes)
    factors = (inverse / inverse.mean()).sqrt()
    return [(g * f).to(g.dtype) for g, f in zip(gradients, factors, strict=True)]
