"""Which ops of a trace are played with drawn numbers: all that lies between layers of fresh weights around some ops.

A stretch begins at an op that has no law of its own, such as the solution of a triangular system, and takes in what is
made of its results and what its operands are made of, up to layers of fresh weights on all sides. What these make is a
Gaussian, whatever they read; and what they read is a matter of second moments alone. In the backward it is what can be
made of the stretch's own values, known numbers, and the gradients that arrive from the layers that read it.

A layer that reads sums of a token and the one before it makes neighbours alike, and others not. A Signal of rows says
how alike two tokens are on average, so such layers are part of the stretch, which begins at what they read the sums of.
"""

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from initwell.propagate.played.judging import judging
from initwell.propagate.played.products import is_own
from initwell.propagate.shared.twins import Twins
from initwell.trace.ops import CONTRACTIONS, COPIES, VIEWS
from initwell.trace.trace import Op, Trace

_LAYERS = frozenset({"aten.mm", "aten.addmm", "aten.linear", "aten.baddbmm"})
# A stretch of more ops is none: something else has come into it. Nor is one with larger values: it would take long.
_MOST = 1500
_LARGEST = 1 << 23
# … of attention, of few draws.
_SCORES = 1 << 24
# All values of a stretch together, where channels alone are why it is played.
_WORK = 1 << 28
_SHIFTING = frozenset({"aten.constant_pad_nd", "aten.cat", "aten.roll"})
_SUMMING = frozenset({"aten.add", "aten.sub", "aten.rsub", "aten.lerp"})
_MIXING = frozenset({*VIEWS, *COPIES, *_SHIFTING, *_SUMMING, "aten.mul", "aten.div"})
_SENDING = frozenset({"aten.convolution_backward", "aten.mm", "aten.bmm"})


@dataclass(frozen=True, eq=False)
class Stretch:
    """One stretch.

    Attributes:
        place: which it is, counted from 0.
        ops: indices of its ops, of forward and backward.
        inputs: values that layers of fresh weights make, and gradients that come from such.
        arriving: gradients that come from such → the values that they belong to.
        parameters: of the model's own that it reads.
        edge: values that other ops read, and what these are views of.
        written: known values whose memory is written to, with all views of it.
        last: index of its last op.
        entries: of all that is made in it, where that is limited.
        judges: whether it is a loss, and what it is made of.
        scores: whether it is attention, whose inputs are drawn as images of the rows that their layers read.
    """

    place: int
    ops: frozenset[int]
    inputs: frozenset[int]
    arriving: Mapping[int, int]
    parameters: frozenset[int]
    edge: frozenset[int]
    written: frozenset[int]
    last: int
    entries: int | None = None
    judges: bool = False
    scores: bool = False


def stretches(
    trace: Trace,
    values: Container[int],
    begun: Iterable[Op],
    own: Iterable[Op] = (),
    products: Iterable[Op] = (),
) -> Mapping[int, Stretch]:
    """Find the stretches of a trace.

    Args:
        trace: from ``record``.
        values: ids of what has real numbers.
        begun: the ops around which they are, in the order of the trace.
        own: others, around which channels are unlike; see ``own``.
        products: others, of which scores are made; see ``products``.

    Returns:
        Index of each op that belongs to one → its stretch.
    """
    found: dict[int, Stretch] = {}
    judged, left = _Growth(trace, values, 0).judged(), list[Op]()
    for op in begun:
        if judged is not None and op.index in judged.ops:
            left.append(op)
        else:
            _grow(found, _Growth(trace, values, _places(found)), op)
    if judged is not None and judged.ops.isdisjoint(found):
        found |= dict.fromkeys(judged.ops, replace(judged, place=_places(found)))
    for op in left:
        _grow(found, _Growth(trace, values, _places(found)), op)
    for op in products:
        if judged is None or op.index not in judged.ops:
            _grow(found, _Growth(trace, values, _places(found), scores=True), op)
    for op in own:
        if op.index not in found:
            stretch = _Growth(trace, values, _places(found), channels=True).grown(op)
            if stretch is not None and stretch.ops.isdisjoint(found):
                found |= dict.fromkeys(stretch.ops, stretch)
    return found


def _places(found: Mapping[int, Stretch]) -> int:
    return len({id(stretch) for stretch in found.values()})


def _grow(found: dict[int, Stretch], growth: "_Growth", op: Op) -> None:
    stretch = growth.grown(op) if op.index not in found else None
    if stretch is not None and (not growth.scores or stretch.ops.isdisjoint(found)):
        found.update(dict.fromkeys(stretch.ops, stretch))


class _Growth:
    """A stretch as it grows."""

    def __init__(
        self, trace: Trace, values: Container[int], place: int, *, channels: bool = False, scores: bool = False
    ) -> None:
        self.trace, self.values, self.place, self.channels, self.scores = trace, values, place, channels, scores
        self.endless = _ENDLESS - {"aten._softmax"} if channels or scores else _ENDLESS
        self.ops = dict[int, Op]()
        self.inputs, self.parameters = set[int](), set[int]()
        self.outer = set[tuple[int, int]]()
        self.arriving: dict[int, int] = {}
        self.mixing = set[int]()

    def grown(self, seed: Op) -> Stretch | None:
        """Return the stretch around an op; None where it has no end."""
        waiting = [seed]
        while waiting:
            op = waiting.pop()
            if op.index not in self.ops:
                self.ops[op.index] = op
                if len(self.ops) > _MOST or op.functional in self.endless:
                    return None
                waiting += [*self._before(op), *self._behind(op)]
            if not waiting and not self.channels:
                waiting += self._inner_layers()
        if any(self.trace.values[i].kind == "input" for i in self.inputs):
            return None
        if (
            self.scores
            and is_own(self.trace, seed, Twins(self.trace))
            and any(self._is_of_images(i) for i in self.inputs)
        ):
            return None
        largest = _SCORES if self.scores else _LARGEST
        if any(math.prod(self.trace.values[o].shape) > largest for op in self.ops.values() for o in op.outputs):
            return None
        self._backward()
        entries = sum(math.prod(self.trace.values[o].shape) for op in self.ops.values() for o in op.outputs)
        if self.channels and entries > _WORK:
            return None
        return self._whole(entries if self.channels else None)

    def _is_of_images(self, value: int) -> bool:
        """Whether a convolution made a value, whose rows of few channels differ in size as they were made to."""
        op = self.trace.producer(value)
        return op is not None and op.functional == "aten.convolution"

    def judged(self) -> Stretch | None:
        """Return the stretch of what a walk's losses are made of; None where their rules serve, or it has no end."""
        found = judging(self.trace, self.values, self._is_weight)
        if found is None:
            return None
        self.ops, self.inputs, self.parameters = dict(found.ops), set(found.inputs), set(found.parameters)
        self.arriving = dict(found.arriving)
        self._sent_back(also=self.inputs | self.parameters)
        return replace(self._whole(None), judges=True)

    def _whole(self, entries: int | None) -> Stretch:
        written = self._written()
        ops = frozenset(self.ops)
        edge = frozenset(self._edge())
        inputs, parameters = frozenset(self.inputs), frozenset(self.parameters)
        return Stretch(
            self.place,
            ops,
            inputs,
            self.arriving,
            parameters,
            edge,
            written,
            max(ops, default=-1),
            entries,
            scores=self.scores,
        )

    def _before(self, op: Op) -> Iterator[Op]:
        for value in op.inputs:
            if value in self.values:
                continue
            made = self.trace.producer(value)
            if made is None and self.trace.values[value].kind in ("parameter", "buffer"):
                self.parameters.add(value)
            elif made is None or self._is_outside(made, op):
                self.inputs.add(value)
            else:
                yield made

    def _is_outside(self, made: Op, op: Op) -> bool:
        """Whether what an op of the stretch reads is made before it."""
        if self._is_layer(made):
            return not self._reads_neighbours(made)
        return op.index in self.mixing and made.index not in self.mixing

    def _reads_neighbours(self, layer: Op) -> bool:
        """Whether a layer reads sums of shifted rows: it is taken in, with all that makes these sums."""
        if self.channels or layer.index in self.mixing:
            return not self.channels
        found = _reached(layer, lambda op: (self.trace.producer(i) for i in op.inputs if i not in self.values))
        if not any(op.functional in _SHIFTING for op in found) or not any(op.functional in _SUMMING for op in found):
            return False
        self.mixing.update(op.index for op in found)
        # The same rows are shifted for other layers, too.
        for op in found:
            for end in _reached(op, lambda made: (o for i in made.outputs for o in self.trace.consumers(i))):
                for later in self.trace.consumers(end.outputs[0]):
                    if later.phase == "forward" and self._is_layer(later):
                        self._reads_neighbours(later)
        return True

    def _behind(self, op: Op) -> Iterator[Op]:
        for value in (*op.outputs, *(new for _, new in op.mutates)):
            for later in self.trace.consumers(value):
                if later.phase != "forward":
                    continue
                if self._is_layer(later):
                    self.outer.add((value, later.index))
                else:
                    yield later

    def _inner_layers(self) -> list[Op]:
        """Take in the layers that the stretch reads and is read by: what they make goes with what they read."""
        found = {i: op for i in self.inputs if (op := self.trace.producer(i)) is not None and self._reads(op)}
        self.inputs -= found.keys()
        return list(found.values())

    def _reads(self, layer: Op) -> bool:
        return any(self._is_own(i) for i in layer.inputs)

    def _is_own(self, value: int) -> bool:
        op = self.trace.producer(value)
        return op is not None and op.index in self.ops and not self._is_weight(value)

    def _is_layer(self, op: Op) -> bool:
        if op.functional == "aten.convolution":
            return (self.channels or self.scores) and self.trace.values[op.arguments["weight"].id].shape[1] > 1
        return op.functional in _LAYERS and any(self._is_weight(i) for i in op.inputs)

    def _is_weight(self, value: int) -> bool:
        made = self.trace.producer(value)
        while made is not None and len(made.inputs) == 1 and self.trace.values[value].kind != "parameter":
            value = made.inputs[0]
            made = self.trace.producer(value)
        return self.trace.values[value].kind == "parameter"

    def _backward(self) -> None:
        outer = {value for value, layer in self.outer if layer not in self.ops}
        if self.channels:
            self.arriving = dict(self._sent())
        else:
            self.arriving = {self.trace.gradients[v]: v for v in sorted(outer) if v in self.trace.gradients}
        self._sent_back()

    def _sent_back(self, also: Container[int] = frozenset()) -> None:
        """Take in what can be made of the stretch's own values and the gradients that arrive, or of others alone."""
        moving = {v for op in self.ops.values() for v in (*op.outputs, *(new for _, new in op.mutates))}
        moving.update(self.arriving)
        have = self.inputs | self.parameters
        self.inputs.update(self.arriving)
        for op in self.trace.backward_ops:
            read = [i for i in op.inputs if i not in self.values]
            if not any(i in moving or i in also for i in read) or not all(i in moving or i in have for i in read):
                continue
            self.ops[op.index] = op
            moving.update(op.outputs, (new for _, new in op.mutates))

    def _sent(self) -> Iterator[tuple[int, int]]:
        """Go over what each layer sends back to a value that it reads, which may be read by others, too."""
        layers = {layer: value for value, layer in sorted(self.outer) if layer not in self.ops}
        for op in self.trace.backward_ops:
            value = None if op.of is None else layers.get(op.of)
            if value is None or op.functional not in _SENDING or not op.arguments.get("output_mask", (True,))[0]:
                continue
            if self.trace.values[op.outputs[0]].shape == self.trace.values[value].shape and self._reads_weight(op):
                yield op.outputs[0], value

    def _reads_weight(self, op: Op) -> bool:
        return any(self._is_weight(i) for i in op.inputs)

    def _edge(self) -> Iterator[int]:
        for op in self.ops.values():
            for value in (*op.outputs, *(new for _, new in op.mutates)):
                later = self.trace.consumers(value)
                if not later or any(o.index not in self.ops for o in later):
                    yield value
                    made: Op | None = op
                    while made is not None and (made.functional in VIEWS or made.functional in COPIES):
                        yield from made.inputs
                        made = self.trace.producer(made.inputs[0])

    def _written(self) -> frozenset[int]:
        """Return known values that share memory with one that is written to."""
        bases = set()
        for op in self.ops.values():
            for old, _ in op.mutates:
                if old in self.values:
                    base = self.trace.values[old].base
                    bases.add(old if base is None else base)
        return frozenset(v.id for v in self.trace.values if v.id in bases or v.base in bases)


def _reached(start: Op, beside: Callable[[Op], Iterable[Op | None]]) -> list[Op]:
    """Return an op and those of the forward that cut, shift and add up rows on the way from it."""
    found, ahead = {start.index: start}, [start]
    while ahead:
        for op in beside(ahead.pop()):
            if op is not None and op.phase == "forward" and op.functional in _MIXING and op.index not in found:
                found[op.index] = op
                ahead.append(op)
    return [*found.values()]


_ENDLESS = frozenset({"aten.embedding", "aten._softmax", "aten.topk"}) | (
    CONTRACTIONS.keys() - {"aten.bmm", "aten.baddbmm", "aten.mm", "aten.convolution", "aten.mul", "aten.matmul"}
)


def last_readers(trace: Trace, stretch: Stretch) -> dict[int, list[int]]:
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
