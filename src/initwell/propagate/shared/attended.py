"""Radial parts of what attention reads: how much of a gradient lies along rows of scores, of keys and of values.

R(v) = Σ v·∂L/∂v over a row, as in ``radial``. Of scores and of keys it is a moment of the weights, see
``laws.scores``. Of values: let o = Σ_t p_t v_t. Each term's part of R(o) is

    p_t v_t·g = β_t R(o) + s_t        β_t = E[p_t v_t·o]/E[o²] = p_t (c + p_t e)/(c + e Σp²)

for values of variance c + e, of which c is common to all of them: Σ β_t = 1, and the s_t, independent of R(o), add up
to 0. Of Σ_t E[(p_t v_t·g)²] the s make a share. Where one weight is 1 it is 0, and all is R(o); of T equal weights of
values without anything in common it is 1 − 1/T. It is an average over rows of what no moment of the weights gives, and
is taken over a fixed sample of rows of Gaussian scores, whose error is below 1 %. Where R(o) = 0, for a norm follows,
g² goes as 1/o²: rows of several large weights, whose sum is smaller, count for more.
Of H heads that are one row later on, R(o) of each is mostly what the others take back; so is Σ_t β_t R(o_t) of their
values, as far as the heads' β are alike, E[β]² of E[β²]. Rows behind a mask count by how much they send to values,
Σ p² g²: the first row, of one weight, sends one value all that it gets.

Where R(o) = 0, so is Σ p d of what weights get, d_t = v_t·g, of which values' common part c goes with all of them: of
covariance C = e + c, C − C p pᵀ C/(pᵀ C p) is left. What comes back to scores, p (d − Σ p d), is less by what it has of
that, and so is what lies along them, Σ s p (d − Σ p d): where one weight is nearly 1 its d is nearly 0, and the other
scores' gradients do not go together as −p_t d_1.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from initwell.propagate.laws.concentration import Weights
from initwell.propagate.laws.rows import stepped
from initwell.propagate.laws.scores import sent as sent_to
from initwell.propagate.moments.gram import strength
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal
from initwell.propagate.rules.hull import opened
from initwell.propagate.rules.softmax import weights_of
from initwell.propagate.shared.handwritten import operand, size
from initwell.trace.trace import Op, Trace

_NAMES = """
    view _unsafe_view t transpose permute expand clone neg native_dropout repeat squeeze unsqueeze slice select split
    split_with_sizes unbind alias detach _to_copy reshape contiguous flatten unflatten view_as_complex view_as_real
"""
SAME = frozenset(f"aten.{name}" for name in _NAMES.split())
"""Ops whose results hold the entries that they read, each at another place."""
TO_SOFTMAX = frozenset({*SAME, "aten.add", "aten.masked_fill", "aten.where"} - {"aten.detach"})
_BETWEEN = TO_SOFTMAX | {"aten.mul", "aten.div", "aten.tanh"}
_PRODUCTS = frozenset({"aten.bmm", "aten.mm"})
SOFTMAX = frozenset({"aten._softmax", "aten._safe_softmax"})
_SUMMING = frozenset({*SAME, *_PRODUCTS} - {"aten.detach"})
_FURTHEST = 27
_ENTRIES = 400_000
_MOST = 20_000


class Attended:
    """Says how much of gradients lies along rows of scores, keys and values, of what the walk has found so far."""

    def __init__(self, trace: Trace, known: Mapping[int, Signal], ratio: Callable[[int], float | None]) -> None:
        """Begin a walk.

        Args:
            trace: that is walked.
            known: signals so far, by value id.
            ratio: returns Σ R² of a value over what it is of random gradients.
        """
        self._trace, self._signals, self._ratio = trace, known, ratio

    def scores(self, op: Op, value: int) -> tuple[float, float] | None:
        """Return Σ R² of the scores of a softmax, and how much of it goes with R of what is summed by its weights.

        None where it is not known.
        """
        scores, dim = self._opened(value), int(op.arguments["dim"])
        if scores is None or self._gradient(op.outputs[0]) is None:
            return None
        sent, axes = self._gradient(value), scores.axes([dim % len(scores.dims)])
        variance = scores.q - scores.averaged(axes)
        if variance <= 0 or not axes or sent is None:
            return 0.0, 0.0
        along, _, alone, _ = self._rows(op, scores, variance)
        found = float(size(self._trace, value) * sent.q * along / max(alone, 1e-300))
        left, summed = self._left(op, scores, variance)[0]
        return found * (left + summed), found * summed

    def keys(self, op: Op) -> tuple[float, float] | None:
        """Return the same of keys: over rows of scores s·g, with s large where there is any g; None where it is no key.

        Queries that are alike send more than as many others. What has a bias follows the scores by its share.
        """
        end, s = self._softmax(op.outputs[0]), self._signals.get(op.outputs[0])
        sent = self._gradient(op.outputs[0])
        scores = None if end is None else self._opened(end[0].inputs[0])
        if s is None or sent is None or end is None or scores is None:
            return None
        axes, rows = s.axes([len(s.dims) - 1]), [x.axes([len(x.dims) - 2]) for x in (s, sent)]
        common, variance = s.averaged(axes), scores.q - scores.averaged(scores.axes([len(scores.dims) - 1]))
        own = max(s.q - common, 0.0)
        if variance <= 0:
            return None
        _, keys, alone, _ = self._rows(end[0], scores, variance)
        left, summed = self._left(end[0], scores, variance)[1]
        share = min(end[1] ** 2 * own / variance, 1.0)
        alike = (s.shape[-2] - 1) * s.averaged(rows[0]) * sent.averaged(rows[1]) / max(s.q * sent.q, 1e-300)
        along, rest = own * share * keys / max(alone, 1e-300), own * (1 - share) + common
        whole = float(math.prod(s.shape) * sent.q * (1 + max(alike, 0.0)))
        return whole * (along * (left + summed) + rest), whole * along * summed

    def values(self, op: Op, along: float) -> tuple[float, float, float] | None:
        """Return Σ R² of values that are summed by the weights of a softmax, and how much of it is their sum's R.

        None where they are not summed so. Of the second, what all heads of a row have by weights of one size, too:
        Σ β² of that is less than of each one's own weights.

        Args:
            op: the product of weights and values.
            along: Σ R(o)² of what it makes.
        """
        behind, value, sent = self.behind(operand(op, "self")), operand(op, "mat2"), self._gradient(op.outputs[0])
        scores = None if behind is None else self._opened(behind.inputs[0])
        made, values = (self._signals.get(i if i is not None else -1) for i in (op.outputs[0], value))
        if scores is None or made is None or sent is None or value is None or values is None or values.q <= 0:
            return None
        got = self._gradient(value)
        if got is None:
            return None
        variance = scores.q - scores.averaged(scores.axes([len(scores.dims) - 1]))
        common = max(values.averaged(values.axes([len(values.dims) - 2])) / values.q, 0.0)
        rows = [(share, apart(stepped(variance), n, round(common, 3))) for n, share in _by_size(scores, sent)]
        # A row of few weights sends each value more, but for what a norm of such rows divides by.
        every = sum(share * row.square for share, row in rows)
        alone, whole = size(self._trace, value) * values.q * got.q, size(self._trace, op.outputs[0]) * made.q * sent.q
        whole = min(along / whole, 1.0) if whole > 0 else 0.0
        rest = sum(share * row.square / every * (whole * row.even + (1 - whole) * row.normed) for share, row in rows)
        alike = sum(share * row.square / every * (1 - row.even) * row.alike for share, row in rows)
        # What the gradients of several queries have in common adds up in both alike.
        summed = alone * whole * (1 - rest)
        return alone * rest + summed, summed, alone * whole * min(alike, 1 - rest)

    def _left(self, op: Op, scores: Signal, variance: float) -> Sequence[tuple[float, float]]:
        """Return what a norm of what the weights sum up leaves of R² of scores and of keys, by their gradients' size.

        Of either that which has nothing of R of the sum, and what goes with that.

        Args:
            op: the softmax.
            scores: what is open of what goes into it.
            variance: of a score.
        """
        product = self.summing(op)
        values = None if product is None else self._signals.get(operand(product, "mat2") or -1)
        t = None if product is None or values is None or values.q <= 0 else self._ratio(product.outputs[0])
        if t is None or values is None or t >= 1:
            return (1.0, 0.0), (1.0, 0.0)
        common = max(values.averaged(values.axes([len(values.dims) - 2])) / values.q, 0.0)
        rows = [(share, constrained(stepped(variance), n, round(common, 3))) for n, share in _open(scores)]
        left = [sum(share * found[i] for share, found in rows) for i in (0, 1)]
        return [(part, t * (1 - part)) if part <= 1 else (t + (1 - t) * part, 0.0) for part in left]

    def summing(self, op: Op) -> Op | None:
        """Return the product that sums up values by the weights that a softmax makes."""
        weights = op.outputs[0]
        for _ in range(_FURTHEST):
            later = [op for op in self._trace.consumers(weights) if op.phase == "forward" and op.functional in _SUMMING]
            if not later:
                return None
            if later[0].functional in _PRODUCTS:
                return later[0] if operand(later[0], "self") == weights else None
            weights = later[0].outputs[0]
        return None

    def with_keys(self, op: Op) -> tuple[Op, float] | None:
        """Return the product that made the scores, and how R of its keys and of values correlate, row by row.

        A key's row gets Σ s_t p_t (d_t − Σ p d), that of its value Σ p_t d_t, with the same d. None: it is unknown.
        """
        behind, values = self.behind(operand(op, "self")), self._signals.get(operand(op, "mat2") or -1)
        scores = None if behind is None else self._opened(behind.inputs[0])
        made = None if behind is None or scores is None else self._trace.producer(behind.inputs[0])
        for _ in range(_FURTHEST):
            if made is None or made.functional in _PRODUCTS:
                break
            made = self._trace.producer(made.inputs[0]) if made.inputs and made.functional in _BETWEEN else None
        if made is None or behind is None or scores is None or values is None or values.q <= 0:
            return None
        variance = scores.q - scores.averaged(scores.axes([len(scores.dims) - 1]))
        if variance <= 0:
            return None
        _, keys, _, both = self._rows(behind, scores, variance)
        square = sum(share * n * float(Weights(n).moments(stepped(variance), [(2,)])[0]) for n, share in _open(scores))
        own = max(1 - values.averaged(values.axes([len(values.dims) - 2])) / values.q, 0.0)
        return made, min(float(both / math.sqrt(max(keys * square, 1e-300))) * math.sqrt(own), 1.0)

    def softmax(self, value: int) -> Op | None:
        """Return the softmax that scores, or what they are made of, go to."""
        found = self._softmax(value)
        return None if found is None else found[0]

    def _opened(self, value: int) -> Signal | None:
        scores = self._signals.get(value)
        return None if scores is None else opened(scores)

    def _gradient(self, value: int) -> Signal | None:
        return self._signals.get(self._trace.gradients.get(value, -1))

    def behind(self, value: int | None) -> Op | None:
        """Return the softmax that made weights; None where they are no weights."""
        made = self._trace.producer(value) if value is not None else None
        while made is not None and made.functional in SAME:
            made = self._trace.producer(made.inputs[0])
        return None if made is None or made.functional not in SOFTMAX else made

    def _rows(self, op: Op, scores: Signal, variance: float) -> Array:
        """Return ``laws.scores.sent`` averaged over rows, of which a mask leaves unlike numbers of scores open.

        Args:
            op: the softmax.
            scores: what is open of what goes into it.
            variance: of a score.
        """
        gradient = self._gradient(op.outputs[0])
        ends = [x.axes([len(x.dims) - 1]) for x in (scores, gradient or scores)]
        v, row, common, level = stepped(variance), Weights(1, stepped(2 * scores.spread)), 0.0, 0.0
        if gradient is not None and all(len(axes) == 1 for axes in ends):
            row, common = weights_of(scores, ends[0][0]), strength(gradient, ends[1][0], scores, ends[0][0])
            level = max((source.level for source in scores.atoms[ends[0][0]].follows), default=0.0)
        return np.asarray(sum(share * sent_to(row.of(n), v, common, level) for n, share in _open(scores)))

    def _softmax(self, value: int) -> tuple[Op, float] | None:
        """Return the softmax that a value goes to, and by which number it is multiplied on the way."""
        factor = 1.0
        for _ in range(_FURTHEST):
            # What a backward op keeps is detached, and goes nowhere.
            later = [o for o in self._trace.consumers(value) if o.phase == "forward" and o.functional != "aten.detach"]
            name, other = later[0].functional if later else "", later[0].arguments.get("other") if later else None
            if name in SOFTMAX:
                return later[0], factor
            if name in ("aten.mul", "aten.div") and isinstance(other, (int, float)):
                factor *= other if name == "aten.mul" else 1 / other
            elif name == "aten.tanh" and (capped := self._signals.get(later[0].outputs[0])) is not None:
                factor *= 1 - capped.q  # a soft cap: E[tanh′] = 1 − E[tanh²]
            elif name not in TO_SOFTMAX or len(later) > 1:
                return None
            value = later[0].outputs[0]
        return None


def _open(scores: Signal) -> Sequence[tuple[float, float]]:
    """Return how many scores of a row a mask leaves open, and the share of such rows."""
    return scores.mask.sizes if scores.mask is not None else ((float(scores.shape[-1]), 1.0),)


def _by_size(scores: Signal, sent: Signal) -> Sequence[tuple[float, float]]:
    """Return the same by powers of √2, as a row of one weight sends its value all that it gets; rows by gradient.

    Args:
        scores: what is open of them.
        sent: the gradient of what the weights sum.
    """
    if scores.mask is None:
        return _open(scores)
    counts, square = scores.mask.counts, np.ones(1)
    axes = sent.axes([len(sent.dims) - 2])
    if len(axes) == 1 and counts.shape[-1] == sent.shape[-2]:
        by_segment = sent.diagonal.swapaxes(0, axes[0]).reshape(sent.diagonal.shape[axes[0]], -1).mean(1)
        square = np.repeat(by_segment, sent.atoms[axes[0]].patterns.parts)
    weights = np.broadcast_to(square, counts.shape)[counts > 0] / max(float(square.mean()), 1e-300)
    counts = counts[counts > 0].astype(float)
    steps = np.round(2 * np.log2(counts))
    groups = [steps == i for i in np.unique(steps)]
    return [(float(1 / (1 / counts[g]).mean()), float(weights[g].sum() / counts.size)) for g in groups]


class Shares(NamedTuple):
    """What the s_t are of the terms of a sum Σ p v.

    Attributes:
        even: the share of Σ E[(p_t v_t·g)²] that is theirs, for gradients of one size.
        normed: for gradients of what a norm follows.
        square: E[Σ p²].
        alike: the share of Σ β² that is that of the average β, 1/n.
    """

    even: float
    normed: float
    square: float
    alike: float


@lru_cache(maxsize=1024)
def apart(variance: float, count: float, common: float) -> Shares:
    """Return what the s_t are of the terms of a sum.

    Args:
        variance: of a score.
        count: how many scores a row has.
        common: which share of the values' square is common to all of them.

    >>> [round(x, 3) for x in (*apart(0.0, 4, 0.0), *apart(0.0, 4, 1.0))]
    [0.75, 0.75, 0.25, 1.0, 0.0, 0.0, 0.25, 1.0]
    """
    _, p = _drawn(variance, count)
    square = (p * p).sum(1)
    whole = common + (1 - common) * square
    along = ((p * (common + (1 - common) * p)) ** 2).sum(1) / whole
    even, normed = 1 - along.mean() / square.mean(), 1 - (along / whole).mean() / (square / whole).mean()
    return Shares(float(even), float(normed), float(square.mean()), float(whole.mean() / p.shape[1] / along.mean()))


@lru_cache(maxsize=1024)
def constrained(variance: float, count: float, common: float) -> tuple[float, float]:
    """Return R² of scores, and of keys, by their gradients' size, behind a norm over what it is without one.

    Args:
        variance: of a score.
        count: how many scores a row has.
        common: which share of the values' square is common to all of them.

    >>> [round(x, 2) for x in (*constrained(10.0, 16, 0.0), *constrained(10.0, 1, 0.0), *constrained(10.0, 16, 1.0))]
    [0.37, 0.85, 1.0, 1.0, 1.0, 1.0]
    """
    s, p = _drawn(variance, count)
    own, square = 1 - common, (p * p).sum(1)
    if p.shape[1] < 2 or own <= 0 or variance <= 0:
        return 1.0, 1.0
    a, whole = p * (s - (p * s).sum(1, keepdims=True)), own * square + common
    free = own * p * p * (1 - 2 * p + square[:, None])
    left = p * p * (1 - (own * p + common) ** 2 / whole[:, None]) / whole[:, None]
    along = own * (a * a).sum(1)
    less = (along - own**2 * (a * p).sum(1) ** 2 / whole) / whole
    scores = less.mean() / left.sum(1).mean() / (along.mean() / free.sum(1).mean())
    keys = (s * s * left).sum(1).mean() / left.sum(1).mean() / ((s * s * free).sum(1).mean() / free.sum(1).mean())
    return float(scores), float(keys)


@lru_cache(maxsize=8)
def _drawn(variance: float, count: float) -> tuple[Array, Array]:
    """Return a fixed sample of rows of Gaussian scores, and their weights."""
    n = max(round(count), 1)
    rows = min(max(_ENTRIES // n, 16), _MOST)
    scores = math.sqrt(variance) * np.random.default_rng(0).standard_normal((rows, n))
    p = np.exp(scores - scores.max(1, keepdims=True))
    return scores, p / p.sum(1, keepdims=True)
