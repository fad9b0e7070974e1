"""Stochastic depth: samples whose branches are dropped, followed through the ways in which all masks can fall.

A branch is dropped sample by sample, x + m f/k with m = 1 of probability k. Second moments average over samples, which
does for sums and products, not for a norm: where f is much larger than x a sample without it is small, what a norm
sends back to it large, and f gets nothing of that. So beside the moments go sizes: E[x²] given how all masks of the
model have fallen, way by way. A mask's own are m²/k; sums add them, products multiply them, a function of degree d
raises them to it, and a norm divides by those of what it normalizes:

    x̂: 1        dx: E[g² | m]/E[x² | m]        E[x²] = Σ_m P(m) E[x² | m]

The walk's own moments, for which samples are independent of the masks, are set to that average wherever entries of one
sample meet. Ways are points of a Sobol sequence, one coordinate a mask: m = 1 where it is below k.
Where rows swing besides (see ``swing``), their swing is followed way by way, too, and 1/E[x² | m] gains by that.
Assumptions: a sample's entries share its size and have else the law that all have; ε is small beside every size.
"""

import math
from collections.abc import Iterator, Mapping, MutableMapping, Sequence

import numpy as np
import torch

from initwell.propagate.blank.rows import times
from initwell.propagate.given.known import Known
from initwell.propagate.laws.swing import inverse_square
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.table import UnknowableError
from initwell.trace.ops import COPIES, VIEWS
from initwell.trace.trace import Op, Trace, ValueRef

Found = Sequence[Signal | None]
_WAYS = 1024
_EVEN = 1.01
_ROUNDING = 1e-9
_NOTHING = "a norm of samples of which nothing is left once their branch was dropped"
_BY_WAYS = "samples whose branches were dropped, by the ways in which masks can fall, entries else alike"
_LEFT = "rows that a drawn mask keeps or leaves, taken as of one size"
_WHY = "samples whose branches were dropped, taken as all others where a function bends"

_PRODUCTS = frozenset({"aten.mul", "aten.div"})
_MEET = _PRODUCTS | {"aten.where", "aten.addcmul", "aten.addcdiv", "aten.lerp", "aten.masked_fill"}
_SUMS = frozenset({"aten.add", "aten.sub"})
_POWERS = {"aten.rsqrt": -0.5, "aten.sqrt": 0.5, "aten.reciprocal": -1.0, "aten.square": 2.0, "aten.var": 2.0}
_NORMS = ("aten.native_layer_norm", "aten.native_group_norm", "aten._fused_rms_norm")
_RAISES = frozenset({"aten.square", "aten.var", "aten.pow"})
_BACK = frozenset(f"{name}_backward" for name in _NORMS)
_ONE = (
    "relu",
    "leaky_relu",
    "abs",
    "neg",
    "sum",
    "mean",
    "avg_pool2d",
    "constant_pad_nd",
    "_to_copy",
    "clamp_min",
    "linalg_vector_norm",
)
_LENGTHS = ("linalg_vector_norm", "clamp_min")
# The degree in each operand; in what is not named here it is 0.
_DEGREES: Mapping[str, Mapping[str, float]] = {
    **{name: {"self": 1.0} for name in (*VIEWS, *COPIES)},
    **{f"aten.{name}": {"self": 1.0} for name in (*_ONE, *_LENGTHS)},
    **{name: {"self": power} for name, power in _POWERS.items()},
    **{f"aten.{name}": {"self": 1.0, "mat2": 1.0} for name in ("mm", "bmm")},
    **{f"aten.{name}": {"input": 1.0} for name in ("convolution", "native_batch_norm", "native_dropout")},
    **{name: {"input": 0.0} for name in _NORMS},
    **{name: {"grad_out": 1.0, "input": -1.0} for name in _BACK},
    "aten.addmm": {"mat1": 1.0, "mat2": 1.0},
    "aten.mul": {"self": 1.0, "other": 1.0},
    "aten.div": {"self": 1.0, "other": -1.0},
}
_OF_GRADIENT = {"grad_output": 1.0, "grad_out": 1.0, "grad": 1.0}


class Dropped:
    """Follows samples whose branches are dropped through a walk, and sets the moments right where they matter."""

    def __init__(self, trace: Trace, known: Mapping[int, Signal], values: Known) -> None:
        """Begin a walk.

        Args:
            trace: that is walked.
            known: signals so far, by value id.
            values: known numbers.
        """
        self._trace, self._known = trace, known
        self._masks: Mapping[int, Array] = values.once("masks of samples", lambda: _masks(trace))
        self._sizes: dict[int, Array] = {}
        self._swings: dict[int, Array] = {}
        self._levels: set[int] = set()
        self._left: frozenset[int] = values.once("masks of other rows", lambda: _left(trace, self._masks))
        self.any: bool = bool(self._masks or self._left)
        """Whether there are masks of rows at all."""

    def amended(self, op: Op, found: Found) -> Found:
        """Return the signals of an op's results, with what the masks of samples make of them.

        Args:
            op: any.
            found: its signals, samples and masks as independent.
        """
        if op.index in self._left:
            found = [s and s.approximate(_LEFT) for s in found]
        if not found or found[0] is None or not any(i in self._sizes or i in self._masks for i in op.inputs):
            return found
        sizes, swings = self._of(op), self._swings_of(op, found[0])
        if sizes is None:
            return [s and s.approximate(_WHY) for s in found]
        if self._is_level(op):
            # Rules of norms written by hand take rows as of one size, from squares to their inverse root.
            self._levels.update(_made(op))
            self._sizes.update(dict.fromkeys(_made(op), sizes))
            return found
        average = float(sizes.mean())
        if not average < math.inf:
            raise UnknowableError(_NOTHING)
        if average <= 0:
            return found
        samples = self._samples(op, found[0])
        first = times(found[0], average, samples)
        first = first if abs(average - 1) < _ROUNDING else first.approximate(_BY_WAYS)
        if op.functional in _PRODUCTS and first.swing > 0 and any(i in self._masks for i in op.inputs):
            # What the masks make of it is in the sizes.
            other = next((self._known[i] for i in op.inputs if i not in self._masks and i in self._known), first)
            first = replace(first, swing=max(other.swing, 0.0), floor=other.floor)
        if swings is not None and first.swing < 0:
            first = replace(first, swing=float(sizes @ swings / sizes.sum()))
        if samples and sizes.max() > _EVEN * sizes.min():
            self._sizes.update(dict.fromkeys(_made(op), sizes / average))
            self._swings.update({} if swings is None else dict.fromkeys(_made(op), swings))
        return [first, *found[1:]]

    def _samples(self, op: Op, found: Signal) -> tuple[int, ...]:
        """Return the axes that count samples: of a product, of an output's gradient too, which says nothing of them."""
        own = _samples_of(found)
        if own or op.functional not in _PRODUCTS:
            return own
        others = [self._known.get(i) for i in op.inputs]
        layouts = [_samples_of(x) for x in others if x is not None and [*map(len, x.dims)] == [*map(len, found.dims)]]
        return max(layouts, key=len, default=())

    def settle(self, known: MutableMapping[int, Signal]) -> None:
        """Set squares, averages of them, and what is made of these right in the end: rules took rows as of one size."""
        for value in self._levels & known.keys():
            signal, average = known[value], float(self._sizes[value].mean())
            if 0 < average < math.inf:
                known[value] = times(signal, average, _samples_of(signal)).approximate(_BY_WAYS)

    def _is_level(self, op: Op) -> bool:
        """Whether an op makes squares, or averages and powers of such."""
        if op.functional in _PRODUCTS:
            same = op.arguments["self"] == op.arguments["other"]
            return op.phase == "forward" and (same or self._levels.issuperset(op.inputs))
        return op.functional in _RAISES or (bool(op.inputs) and self._levels.issuperset(op.inputs[:1]))

    def _swings_of(self, op: Op, found: Signal) -> Array | None:
        """Return by how much rows swing, way by way, where that differs; see ``swing.of_sum``."""
        if not found.swing:
            return None
        if op.functional in _SUMS:
            power = 1 if found.swing < 0 else 2
            whole, total = np.zeros(_WAYS), np.zeros(_WAYS)
            for ref, weight in self._terms(op):
                signal, own = self._known[ref.id], self._own(ref)
                size = weight * max(signal.q, 0.0) * (np.ones(_WAYS) if own is None else own)
                whole, total = whole + size**power * self._swings.get(ref.id, signal.swing), total + size
            return np.asarray(whole / np.maximum(total, 1e-300) ** power)
        if op.functional in _BACK:
            return 1 - gain if (gain := self._gain(op)) is not None else None
        of = next((i for i in op.inputs if i in self._swings), None)
        return self._swings[of] if of is not None and self._known[of].swing == found.swing else None

    def _gain(self, op: Op) -> Array | None:
        """Return by how much E[1/s²] of the rows that a norm divides is larger as they swing, way by way."""
        swings = self._swings.get(op.arguments["input"].id)
        if swings is None:
            return None
        levels, at = np.unique(swings.round(4), return_inverse=True)
        return np.array([inverse_square(float(n), _free(op)) for n in levels])[at]

    def _of(self, op: Op) -> Array | None:
        """Return the sizes of an op's result, over what its rule takes them for; None where they cannot be followed."""
        if op.functional in _SUMS or op.functional == "aten.cat":
            return self._sum(op)
        degrees = _degrees(op)
        if degrees is None:
            return None
        found = np.ones(_WAYS)
        for name, degree in degrees.items():
            own = self._own(op.arguments.get(name))
            if own is not None:
                # A norm makes all rows alike but those of which nothing is left.
                found = found * (own**degree if degree else np.sign(own))
        if op.functional in _BACK and (gain := self._gain(op)) is not None:
            found = found * gain / inverse_square(self._known[op.arguments["input"].id].swing, _free(op))
        return found

    def _sum(self, op: Op) -> Array | None:
        """Return the sizes of a sum, or of what lies side by side, whose terms are independent of each other."""
        whole, found = 0.0, np.zeros(_WAYS)
        for ref, weight in self._terms(op):
            signal, own = self._known.get(ref.id), self._own(ref)
            if signal is None:
                return None
            size = weight * max(signal.q, 0.0)
            whole, found = whole + size, found + (size if own is None else size * own)
        return found / whole if whole > 0 else None

    def _terms(self, op: Op) -> Iterator[tuple[ValueRef, float]]:
        if op.functional == "aten.cat":
            yield from ((ref, math.prod(self._trace.values[ref.id].shape)) for ref in op.arguments["tensors"])
            return
        for name, factor in (("self", 1.0), ("other", float(op.arguments.get("alpha") or 1.0))):
            if isinstance(ref := op.arguments[name], ValueRef):
                yield ref, factor**2

    def _own(self, ref: object) -> Array | None:
        """Return the sizes of an operand; None where they are all alike."""
        if not isinstance(ref, ValueRef):
            return None
        if ref.id not in self._masks:
            return self._sizes.get(ref.id)
        signal = self._known.get(ref.id)
        if signal is None or signal.q <= 0:
            return None
        on = (self._masks[ref.id] < signal.mean**2 / signal.q).astype(float)
        return on / on.mean() if on.any() else None


def _degrees(op: Op) -> Mapping[str, float] | None:
    """Return the degree of an op's result in each of its operands; None where it has none."""
    if op.functional == "aten.pow":
        power = op.arguments["exponent"]
        return {"self": float(power)} if isinstance(power, int | float) else None
    return _DEGREES.get(op.functional, _OF_GRADIENT if op.phase == "backward" else None)


def _made(op: Op) -> tuple[int, ...]:
    return (op.outputs[0], *(new for _, new in op.mutates))


def _samples_of(x: Signal) -> tuple[int, ...]:
    return tuple([i for i, atom in enumerate(x.atoms) if atom.sample])


def _free(op: Op) -> float:
    return float(math.prod(op.arguments.get("normalized_shape") or (math.inf,)))


def _masks(trace: Trace) -> dict[int, Array]:
    """Return the masks of samples that multiply something, each with a coordinate of all ways."""
    drawn, samples = trace.folded.drawn, _samples(trace)
    found: dict[int, tuple[int, bool]] = {}
    for op in trace.forward_ops:
        if op.functional in _PRODUCTS and not drawn.issuperset(op.inputs):
            found |= {i: _root(trace, i) for i in op.inputs if i in drawn and _by_sample(trace, i, samples)}
    if not found:
        return {}
    roots = list(dict.fromkeys(root for root, _ in found.values()))
    sobol = torch.quasirandom.SobolEngine(len(roots), scramble=True, seed=0)  # type: ignore[no-untyped-call]
    ways = dict(zip(roots, sobol.draw(_WAYS).double().numpy().T, strict=True))
    return {value: 1 - ways[root] if turned else ways[root] for value, (root, turned) in found.items()}


def _left(trace: Trace, followed: Mapping[int, Array]) -> frozenset[int]:
    """Return the ops where drawn masks of rows meet values, and are not followed: of tokens, or not by a product."""
    drawn = trace.folded.drawn
    return frozenset(
        op.index
        for op in trace.forward_ops
        if op.functional in _MEET
        and not drawn.issuperset(op.inputs)
        and any(i in drawn and i not in followed and _by_row(trace.values[i].shape) for i in op.inputs)
    )


def _by_row(shape: tuple[int, ...]) -> bool:
    """Whether there is one number for all features, the last dimension or the second of images."""
    return len(shape) > 1 and math.prod(shape) > 1 and shape[1 if len(shape) == 4 else -1] == 1


def _root(trace: Trace, value: int) -> tuple[int, bool]:
    """Return what a mask was drawn as, and whether it is what that leaves of 1."""
    turned = False
    while (op := trace.producer(value)) is not None and op.inputs:
        turned ^= op.functional in ("aten.rsub", "aten.neg") or (
            op.functional == "aten.sub" and not isinstance(op.arguments["self"], ValueRef)
        )
        value = op.inputs[0]
    return value, turned


def _samples(trace: Trace) -> int:
    shapes = [trace.values[value].shape for value in trace.inputs.values()]
    return next((shape[0] for shape in shapes if shape), 0)


def _by_sample(trace: Trace, value: int, samples: int) -> bool:
    shape = trace.values[value].shape
    return len(shape) > 1 and shape[0] == samples and math.prod(shape[1:]) == 1
