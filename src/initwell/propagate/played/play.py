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
and not by how the weights before happen to fall (``gram``), so that products of keys of unlike rows are too small, but
for attention (``scored``).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from initwell.propagate.moments.signal import Signal, constant, replace
from initwell.propagate.played.drawn import drawn, evenly
from initwell.propagate.played.families import Families, Together
from initwell.propagate.played.measuring import (
    RareError,
    against,
    averaged,
    check_frequent,
    following,
    frequent,
    parts_of_samples,
    swing,
)
from initwell.propagate.played.nothing import Nothing, Numbers
from initwell.propagate.played.own import sums_of_own
from initwell.propagate.played.products import products, without_rules
from initwell.propagate.played.scored import Scored
from initwell.propagate.played.seeds import WHOLE, seeds
from initwell.propagate.played.stretches import Stretch, last_readers, stretches
from initwell.propagate.table import Call, RuleTable, UnknowableError, UnknownSignalError
from initwell.trace.calls import called, overload
from initwell.trace.trace import Op, Trace, ValueRef

_WHY = "made by ops without a law of their own: measured of drawn numbers between layers of fresh weights"
_LEFT = "decays or factors that are met again, their steps as independent: too much lies around them to be played"
_LOST = "averages by positive scores, which go with their sum: too much lies around them to be played"
# So many entries of all draws of one value, and so many draws at most.
_ENTRIES = 1 << 24
_DRAWS = 32
# … and of a loss, which is one number a draw.
_JUDGED = 256, 1 << 20
# … of attention, of which each draw shows many rows.
_SCORES = 32, 1 << 22
# All entries of all draws, where channels alone are why a stretch is played.
_WORK = 1 << 25
_SEED = 20170
# Strides here may be others than those on meta tensors, which a view fits.
_RESHAPED = torch.ops.aten.reshape.default


class Played:
    """Gives the values of a stretch their signals, as a walk comes by."""

    def __init__(
        self,
        trace: Trace,
        known: Mapping[int, Signal],
        values: Known,
        table: RuleTable,
        together: Together = lambda _, __: None,
    ) -> None:
        """Begin a walk.

        Args:
            trace: that is walked.
            known: value id → signal, of all values so far.
            values: what has real numbers.
            table: of rules, for views.
            together: how two values vary together, where they share a weight.
        """
        self.trace, self.known, self.values, self.table, self.together = trace, known, values, table, together
        every = {*values.folded.tensors}
        begun = [*seeds(trace, known, values.kept, every)]
        own = values.once("sums of own", lambda: [*sums_of_own(trace)])
        scores = values.once("products", lambda: [*products(trace, every)])
        name = f"stretches {[op.index for op in begun]}"
        found: Mapping[int, Stretch] = values.once(name, lambda: stretches(trace, every, begun, own, scores))
        given = {stretch for stretch in {*found.values()} if self._has_own(stretch)}
        self._stretches = {i: stretch for i, stretch in found.items() if stretch not in given}
        self.any = bool(self._stretches)
        # Ops around which no stretch has an end → what to say of them: the rules serve them as they can.
        self.left = dict.fromkeys((op.index for op in begun if op.index not in found), _LEFT)
        # Ops whose rules are wrong by factors, and what to say of them.
        lost = values.once(
            f"lost {name}", lambda: [*without_rules(trace, every, (o for o in scores if o.index not in found))]
        )
        self.lost = dict.fromkeys(lost, _LOST)
        self._plays: dict[int, _Play] = {}
        # Of what stretches read: by how much a row's gradient, in all, lies along it.
        self.along_rows: dict[int, float] = {}

    def _has_own(self, stretch: Stretch) -> bool:
        """Whether a caller gave a rule for one of its ops."""
        own, given = default_table().rules, self.table.rules
        names = {name for i in stretch.ops for name in (self.trace.ops[i].packet, self.trace.ops[i].functional)}
        return any(given.get(name) is not own.get(name) for name in names)

    def is_of_loss(self, op: Op) -> bool:
        """Whether an op belongs to a loss that is played."""
        stretch = self._stretches.get(op.index)
        return stretch is not None and stretch.judges

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
            self._plays[stretch.place] = _Play(self.trace, self.known, self.values, stretch, self.together)
        play = self._plays[stretch.place]
        try:
            found = self._made(play, op)
        except RareError:
            raise  # what is made of it may be known
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
            found = [play.signal(value) for value in op.outputs[:1]]
            found += [play.beside(value) for value in op.outputs[1:]]
        else:
            found = [s and play.with_rows(value, s) for value, s in zip(op.outputs, found, strict=True)]
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

    def __init__(
        self, trace: Trace, known: Mapping[int, Signal], values: Known, stretch: Stretch, together: Together
    ) -> None:
        self.trace, self.known, self.values, self.stretch = trace, known, values, stretch
        self.failed = set[int]()
        self._nothing = Nothing(values, self._results)
        self._tensors: dict[int, list[Tensor]] = {}
        self._read_last = last_readers(trace, stretch)
        self._generator = Generator().manual_seed(_SEED + stretch.place)
        self._families = Families(trace, known, values, together, self._generator)
        self._judged = {trace.gradients[i]: i for i in stretch.inputs if i in trace.gradients} if stretch.judges else {}
        shapes = [trace.values[o].shape for i in stretch.ops for o in trace.ops[i].outputs]
        most, entries = _JUDGED if stretch.judges else _SCORES if stretch.scores else (_DRAWS, _ENTRIES)
        whole = stretch.entries or 1
        self.draws = max(1, min(most, entries // max(map(math.prod, shapes)), _WORK // whole))
        self._scored = Scored(trace, self._generator, self.draws) if stretch.scores else None
        self.batch = next((trace.values[v].shape[0] for v in trace.inputs.values() if trace.values[v].shape), 1)
        self._parts = parts_of_samples(trace, stretch, self.batch) if stretch.judges else ()

    def fail(self, op: Op) -> None:
        """Keep in mind that what an op makes has no numbers."""
        self.failed.update(op.outputs, (new for _, new in op.mutates))

    def run(self, op: Op) -> None:
        """Run an op on every draw."""
        if any(i in self.failed for i in op.inputs):
            raise UnknownSignalError(op.packet)
        for i in op.inputs:
            self._numbers(i)
        for old, _ in op.mutates:
            if old in self.values and old not in self._tensors:
                self._tensors[old] = [t.clone() for t in self._numbers(old)]
        results = self._results(op, {i: self._numbers(i) for i in op.inputs})
        for place, value in enumerate(op.outputs):
            self._tensors[value] = [made[place] for made in results]
        for old, new in op.mutates:
            if old in self._tensors or old in self.values or old in self.stretch.written:
                self._tensors[new] = self._numbers(old)
        if self.stretch.judges:
            self._nothing.look(op, {i: self._numbers(i) for i in (*op.inputs, *op.outputs)})

    def _results(self, op: Op, numbers: Numbers) -> list[list[Tensor]]:
        """Return what an op makes, for each draw."""
        func = _RESHAPED if op.packet in ("aten.view", "aten._unsafe_view") else overload(op)
        arguments = {**op.arguments, "shape": op.arguments.get("size")} if func is _RESHAPED else op.arguments
        if arguments.get("training") or arguments.get("train"):
            arguments = {**arguments, "running_mean": None, "running_var": None}  # they are written to
        results: list[list[Tensor]] = []
        with _own_randomness(op):
            for n in range(self.draws):
                out = called(func, arguments, partial(_number, {i: numbers[i][n] for i in op.inputs}))
                results.append([_plain(t) for t in tree_leaves(out) if isinstance(t, Tensor)])
        return results

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
        if self._scored is not None:
            for twin in self._scored.alike(value, self.stretch.inputs):
                self._tensors[twin] = [t.clone() for t in made]
        rows = self._tensors.get(self.stretch.arriving.get(value, -1))
        self._tensors[value] = made if rows is None or signal.swing >= 0 else against(made, rows, 1 - signal.swing)
        return self._tensors[value]

    def _drawn(self, value: int, signal: Signal) -> list[Tensor]:
        if self.stretch.judges and value in self.stretch.arriving:
            # What a loss sends back is a multiple of this one number: whatever its sign, of its size.
            return [torch.full(signal.shape, signal.rms)] * self.draws
        if self.stretch.judges:
            before = self._judged.values() & self._tensors.keys()
            found, unlike = self._families.drawn(value, signal, before, self.draws), self._families.unlike(value)
            if found is not None:
                return found
            return [drawn(signal, self._generator, as_images=True, unlike=unlike) for _ in range(self.draws)]
        if self.stretch.entries is None:
            if self._scored is not None:
                return self._scored.drawn(value, signal)
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
        if self.stretch.judges:
            return self._of_loss(value, tensors)
        edge = value in self.stretch.edge
        each = [self._measured(t) if edge else self._by_sample(t) for t in tensors]
        if edge and each[0].atoms and len(each[0].dims) > 2 and not each[0].segmented:
            each[0] = with_places(each[0], torch.cat(tensors))
        if self._scored is not None:
            check_frequent(tensors, self.batch)
        moments = np.mean([s.moments for s in each], 0) * self._frequent(value)
        if not np.isfinite(moments).all():
            return None
        means = np.mean([s.means for s in each], 0)
        found = replace(each[0].changed(moments, means), joint=True, profile=each[0].profile).approximate(_WHY)
        return self.with_rows(value, found)

    def with_rows(self, value: int, found: Signal) -> Signal:
        """Return a value with how much its rows differ in size, where layers of fresh weights read them, and a gradient
        with how it goes back through such a layer.
        """
        if self._scored is not None:
            found = replace(found, undone=self._scored.undone(value, self._tensors[value]))
        rows = value in self.stretch.edge and self._tensors[value][0].ndim > 0 and self.stretch.entries is None
        if not rows or self.stretch.judges or self._is_gradient(value):
            return found
        return replace(found, swing=swing(self._tensors[value]), floor=0.0)

    def _of_loss(self, value: int, tensors: list[Tensor]) -> Signal | None:
        """Measure a value of a loss; what it sends back to a layer goes, in part, as what the layer made."""
        if value in self._nothing.certain:
            return constant(tuple(tensors[0].shape), 0.0)
        found = averaged(tensors, self.batch, self._parts if value in self.stretch.edge else ())
        if found is None:
            return None
        judged = self._judged.get(value)
        if judged is not None and judged in self._tensors and judged in self.known:
            siblings = [self._tensors[i] for i in self._families.of(judged) if i in self._tensors]
            found = following(found, self.known[judged], tensors, siblings)
            found = replace(found, undone=self._families.undone(judged, found, tensors))
        if value in self._judged and self.trace.loss is None:
            found = replace(found, means=np.zeros_like(found.means))
        return replace(found, joint=True).approximate(_WHY)

    def beside(self, value: int) -> Signal | None:
        """Measure what an op makes beside its result, such as the sum of a loss's weights."""
        try:
            return self.signal(value)
        except RareError:
            return None

    def _frequent(self, value: int) -> float:
        op, first = self.trace.producer(value), self._tensors[value][0]
        by_sample = first.ndim > 0 and (first.shape[0] == self.batch or (op is not None and op.packet == "aten.bmm"))
        return frequent(self._tensors[value], self.batch) if by_sample else 1.0

    def _is_gradient(self, value: int) -> bool:
        op = self.trace.producer(value)
        return op is not None and op.phase == "backward"

    def _measured(self, tensor: Tensor) -> Signal:
        """Measure along all dimensions, the first of which may hold rows of all samples."""
        shape = tuple(tensor.shape)
        rows = bool(shape) and shape[0] > self.batch > 1 and shape[0] % self.batch == 0
        if rows:
            tensor = tensor.reshape(self.batch, shape[0] // self.batch, *shape[1:])
        sample = 0 if tensor.ndim and tensor.shape[0] == self.batch > 1 else None
        by = measured(tensor, sample=sample) if self._scored is None else self._scored.measured(tensor, sample)
        return viewed(by, shape) if rows else by

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


def _plain(tensor: Tensor) -> Tensor:
    """Return numbers of the one precision that is played in, whatever the model's own is."""
    return tensor.float() if tensor.is_floating_point() else tensor


def _number(numbers: Mapping[int, Tensor], ref: ValueRef) -> Tensor:
    return numbers[ref.id]


@contextmanager
def _own_randomness(op: Op) -> Iterator[None]:
    """Let an op that draws, as a permutation or noise in a loss, do so from a seed of its own, the caller's unmoved."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_SEED + op.index)
        yield
