"""Sizes: by how much the rows of what a loss judges differ, since rows of few features made them, layer by layer.

A fresh layer makes of rows h of C features outputs of the variance s = σ²Σ h² + σ_b². With q the average of s, f the
share of it that is not the bias's, κ = E[h⁴]/E[h²]², and V the relative variance of sizes,

    1 + V(s) = (1 + f²·((1 + p²·V(u))·(1 + (κ − 1)/C) − 1))

where h = φ(u), and E[h²] grows as the power p of the size of u: 1 of ReLU, less of tanh. A norm of each row leaves
none. So the rows of a ReLU net vary by 5/C a layer and by what the batch's own do, and the fourth moments of its
outputs, of which 1/|y|² and e^y are made, are larger by as much than those of Gaussians. What each layer adds is a
factor of its own with a gamma law, as sums of squares have. What two views of one row have in common is of one size,
and what they differ by of its own. Rows of which a share o is alike, as far down a deep net, have sizes that are alike
by o². Assumption: entries of a row are independent of each other.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Generator, Tensor

from initwell.propagate.given.known import Known
from initwell.propagate.laws.functions import as_image, function_moments
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal
from initwell.trace.ops import ACTIVATIONS, COPIES, VIEWS
from initwell.trace.trace import Op, Trace, ValueRef

LAYERS: Mapping[str, tuple[str, str]] = {"aten.addmm": ("mat1", "self"), "aten.mm": ("self", "")}
"""Layers → the names of what they read, and of their bias."""
_NORMS = frozenset({"aten.native_layer_norm", "aten._fused_rms_norm"})
_PASSED = frozenset({*VIEWS, *COPIES, "aten.native_batch_norm", "aten.native_dropout", "aten.detach", "aten.neg"})
_SUMS = frozenset({"aten.add", "aten.sub"})
_STEPS = 200
_STEP = 1.1
_MOST = 8
_CHANCES = np.linspace(-6.0, 6.0, 1201)
# Sizes that vary by less than this are as good as one.
_LEAST = 1e-3


class Sizes:
    """Finds by how much rows of a value differ in size, as far as the layers before can be followed."""

    def __init__(self, trace: Trace, known: Mapping[int, Signal], values: Known) -> None:
        """Begin.

        Args:
            trace: that is walked.
            known: value id → signal, of all values so far.
            values: what has real numbers, and how much rows of the batch differ.
        """
        self._trace, self._known, self._values = trace, known, values

    def of(self, value: int, steps: int = _STEPS) -> tuple[float, ...] | None:
        """Return the relative variances of factors of a row's E[y²], of all layers before; None if they are not known.

        Args:
            value: y.
            steps: how many ops to go back at most.
        """
        if value in self._values.sizes:
            return (self._values.sizes[value],)
        op, signal = self._trace.producer(value), self._known.get(value)
        if op is None or signal is None or steps == 0 or signal.q <= 0:
            return None
        if op.functional in _NORMS:
            return ()
        if op.functional in LAYERS:
            return self._of_layer(op, signal, steps)
        if op.functional in ACTIVATIONS and len(op.inputs) == 1:
            before = self.of(op.inputs[0], steps - 1)
            return None if before is None else _times(_power(signal) ** 2, before)
        if op.functional in _PASSED:
            return self.of(op.inputs[0], steps - 1)
        if op.functional in _SUMS:
            return self._of_sum(op, signal, steps)
        return None

    def beside_bias(self, value: int) -> tuple[float, tuple[float, ...] | None]:
        """Return the second moment of a layer's bias, and by what the rest of its rows varies; else 0, and all.

        Args:
            value: y.
        """
        op, signal = self._trace.producer(value), self._known.get(value)
        if op is None or signal is None or op.functional not in LAYERS or signal.q <= 0:
            return 0.0, self.of(value)
        return self._layer(op, signal, _STEPS)

    def _layer(self, op: Op, signal: Signal, steps: int) -> tuple[float, tuple[float, ...] | None]:
        inputs_name, bias_name = LAYERS[op.functional]
        x, bias = op.arguments[inputs_name], op.arguments.get(bias_name)
        added = self._known.get(bias.id) if isinstance(bias, ValueRef) else None
        own_bias, before = 0.0 if added is None else min(added.q, signal.q), self.of(x.id, steps - 1)
        share = 1 - own_bias / signal.q
        if before is None or share <= 0:
            return own_bias, None
        # What the layer's own features add is known of the walk, with the bias beside it.
        level = max((s.level for atom in signal.atoms for s in atom.follows), default=0.0)
        own = 0.0 if level > 0 else max(signal.lengths, 0.0) / share**2
        return own_bias, (own, *before) if own > _LEAST else before

    def _of_layer(self, op: Op, signal: Signal, steps: int) -> tuple[float, ...] | None:
        bias, rest = self._layer(op, signal, steps)
        return None if rest is None else _times((1 - bias / signal.q) ** 2, rest)

    def _of_sum(self, op: Op, signal: Signal, steps: int) -> tuple[float, ...] | None:
        found = tuple[float, ...]()
        for i in (i for i in op.inputs if i not in self._values):
            term = self._known.get(i)
            varies = self.of(i, steps // 2)
            if term is None or varies is None:
                return None
            found += _times((term.q / signal.q) ** 2, varies)
        return found


def _power(signal: Signal) -> float:
    """Return p: E[φ(u)²] grows as the p-th power of the size of u, for sizes near their average."""
    image = as_image(signal)
    if image.base is not None:
        return 1.0
    ends = []
    for size in (_STEP, 1 / _STEP):
        pre = image.pre.changed(image.pre.moments * size, image.pre.means * math.sqrt(size), gaussian=True)
        ends.append(float(np.asarray(function_moments(image.phi, pre)[1]).flat[0]))
    return math.log(ends[0] / ends[1]) / math.log(_STEP**2) if min(ends) > 0 else 0.0


def _times(factor: float, varies: Sequence[float]) -> tuple[float, ...]:
    return tuple(factor * v for v in varies if factor * v > _LEAST)


def chances(signal: Signal, rows: Sequence[int], generator: Generator) -> Tensor:
    """Return normal numbers that decide which rows are large: one a factor and row.

    Args:
        signal: whose rows they are; those of other samples are alike by its overlap.
        rows: how many, by dimension.
        generator: of the numbers.
    """
    own = torch.randn([_MOST, *rows], generator=generator, dtype=torch.float64)
    alike = min(max(signal.overlap or 0.0, 0.0), 1.0) ** 2
    if alike < _LEAST:
        return own
    common = torch.randn([_MOST, *[1] * len(rows)], generator=generator, dtype=torch.float64)
    return math.sqrt(alike) * common + math.sqrt(1 - alike) * own


def factors(varies: Sequence[float], chance: Tensor) -> Tensor:
    """Return what rows are multiplied by to be of sizes that are products of independent factors, of a gamma law each.

    Args:
        varies: the factors' relative variances; those beyond the largest few count as one.
        chance: see ``chances``.

    >>> from initwell.propagate.moments.signal import independent
    >>> chance = chances(independent((100000,), 1.0), [100000], Generator().manual_seed(0))
    >>> found = factors([0.5, 0.2], chance).square()
    >>> round(float(found.mean()), 2), round(float(found.var()), 1)  # 1.5·1.2 − 1
    (1.0, 0.8)
    """
    ordered = sorted(varies, reverse=True)
    several = ordered[: _MOST - 1] + ([sum(ordered[_MOST - 1 :])] if len(ordered) >= _MOST else [])
    found = np.ones(chance.shape[1:])
    for v, z in zip(several, chance.numpy(), strict=False):
        found = found * np.interp(z, _CHANCES, _gamma(v)) if v > 0 else found
    return torch.from_numpy(found).sqrt()


@lru_cache(maxsize=256)
def _gamma(variance: float) -> Array:
    """Return the quantiles of a gamma law of mean 1 at those of a normal one; to look one up is cheap."""
    from scipy.special import gammaincinv, ndtr

    return np.asarray(gammaincinv(1 / variance, ndtr(_CHANCES)) * variance)
