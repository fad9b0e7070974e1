"""What draws of a stretch are measured as: averages over all draws, of few rare rows or without them."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from initwell.propagate.given.measured import in_parts, with_places
from initwell.propagate.moments.atoms import viewed
from initwell.propagate.moments.axes import Atom
from initwell.propagate.moments.gram import rescaled
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.played.stretches import Stretch
from initwell.propagate.shared.reuse import CUTS, indices_of
from initwell.propagate.table import UnknowableError
from initwell.trace.trace import Trace

# Of so many samples none makes this share of all squares but by a rare row.
_SAMPLES, _SHARE = 16, 0.25
_HALVINGS = 20
# Rows whose mean squares vary by less than this are as good as of one size.
_LEAST = 0.05
# The standard error of a second moment, over it, of which no more can be said; axes, and segments of one.
_UNSURE, _AXES, _PARTS = 0.2, 6, 8
# … of attention, of what few rows make: less than one in so many of a place.
_CLOSE, _SELDOM = 0.1, 64
_RARE = "made of rare rows and entries, as where margins of a loss are hardly ever broken or 1/s² is of few"


class RareError(UnknowableError):
    """What was drawn says too little of a value, though what else is made of it may be known."""


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


def check_frequent(tensors: Sequence[Tensor], batch: int) -> None:
    """Refuse a value that a few samples, or rows, make, as where a sum of scores that something is divided by is next
    to 0: how often that is hangs on the tails of what was drawn, and one batch has few of them, if any.

    Args:
        tensors: the value, of each draw; rows are along its last dimension.
        batch: how many samples there are in one.

    Raises:
        RareError: its second moment is not known within a fifth; or, where one in 64 rows of a place makes it, a tenth.

    >>> check_frequent([torch.ones(64, 4, 2)], 64)
    """
    samples = batch if tensors[0].ndim and tensors[0].shape[0] % batch == 0 else 1
    each = [torch.linalg.vector_norm(t, dim=-1) if t.ndim > 1 else t for t in tensors]
    rows = torch.cat([r.reshape(samples, -1) for r in each]).double().square()
    squares = rows.mean(1)
    if len(squares) < 2 or not float(squares.mean()) > 0:
        return
    unsure = float(squares.std() / squares.mean()) / math.sqrt(len(squares))
    seldom = float(rows.square().mean(0).sum()) > _SELDOM * float(rows.mean(0).square().sum())
    if unsure > (_CLOSE if seldom else _UNSURE):
        raise RareError(_RARE)


def averaged(tensors: Sequence[Tensor], batch: int, parts: tuple[int, ...] = ()) -> Signal | None:
    """Measure draws of one value together.

    Args:
        tensors: its numbers, of each draw.
        batch: how many samples there are in one.
        parts: segments of the samples that a loss treats by themselves, if any.

    Returns:
        Its Signal; None for numbers that are not finite, and for a number that nothing is counted in.

    Raises:
        RareError: few draws make most of it.

    >>> averaged([torch.tensor([[1.0, 2.0]]), torch.tensor([[-2.0, -1.0]])], 1).moments.tolist()
    [2.5, 2.0]
    """
    shape, whole = tuple(tensors[0].shape), torch.stack(list(tensors)).double()
    squares = whole.square().reshape(len(tensors), -1).mean(1)
    q = float(squares.mean())
    if not math.isfinite(q) or (q == 0 and not shape):
        return None
    if q == 0 or float(squares.std()) > _UNSURE * q * math.sqrt(len(tensors)):
        raise RareError(_RARE)
    if parts and shape[:1] == (batch,):
        each = [in_parts(t.double().numpy(), [parts, *((n,) for n in shape[1:])], sample=0) for t in tensors]
        moments, means = (np.mean([getattr(s, name) for s in each], 0) for name in ("moments", "means"))
        return replace(each[0], moments=moments, means=means)
    rows = bool(shape) and shape[0] > batch > 1 and shape[0] % batch == 0
    seen = whole.reshape(len(tensors), batch, shape[0] // batch, *shape[1:]) if rows else whole
    sample = 0 if seen.ndim > 1 and seen.shape[1] == batch > 1 else None
    if seen.ndim > _AXES:
        return None
    dims = tuple((Atom(n, i == sample),) if n > 1 else () for i, n in enumerate(seen.shape[1:]))
    found = Signal(dims, _pairs(seen), np.asarray(float(whole.mean())))
    if len(dims) > 2 and not rows:
        found = with_places(found, seen.flatten(0, 1).float())
    return viewed(found, shape) if rows else found


def _pairs(data: Tensor) -> Array:
    """Average products over all pairs that agree and differ along each axis but the first, and over that."""
    sizes = list(data.shape[1:])
    axes = [i for i, n in enumerate(sizes) if n > 1]
    found = np.empty((2,) * len(axes))
    for apart in itertools.product((0, 1), repeat=len(axes)):
        over = [axis + 1 for axis, far in zip(axes, apart, strict=True) if far]
        found[apart] = float((data.sum(over) if over else data).square().sum())
    for place, axis in enumerate(axes):
        n = sizes[axis]
        agree, every = found.take(0, place), found.take(1, place)
        found = np.stack([agree / n, (every - agree) / (n * (n - 1))], place)
    return found / len(data)


def following(g: Signal, u: Signal, gradients: Sequence[Tensor], values: Sequence[Sequence[Tensor]]) -> Signal:
    """Say that a gradient's rows follow what the rows do that it is the gradient of, in so far as it goes as these.

    What goes as siblings of that value, by the same weight, counts as what goes as itself: see ``responses``.

    Args:
        g: the gradient.
        u: what it is the gradient of.
        gradients: its numbers, of each draw.
        values: those of u, and of its siblings.
    """
    if len(g.atoms) != len(u.atoms) or any(
        a.size != b.size or a.parts or b.parts for a, b in zip(g.atoms, u.atoms, strict=True)
    ):
        return g
    numbers = torch.stack([torch.stack(list(t)).double().flatten() for t in (gradients, *values)])
    whole: Array = (numbers - numbers.mean(1, keepdim=True)).numpy()
    pairs = whole @ whole.T / whole.shape[1]
    size, spread, both = float(pairs[0, 0]), float(pairs[1, 1]), float(pairs[0, 1])
    found = replace(g, dims=u.dims)
    for axis in range(len(u.atoms)):
        found = rescaled(found, axis, both**2 / (size * spread) if size * spread > 0 else 0.0)
    explained = float(pairs[0, 1:] @ np.linalg.lstsq(pairs[1:, 1:], pairs[0, 1:], rcond=1e-6)[0])
    return replace(found, answer=math.copysign(math.sqrt(max(explained, 0.0) / spread), both) if spread > 0 else 0.0)


def parts_of_samples(trace: Trace, stretch: Stretch, batch: int) -> tuple[int, ...]:
    """Return the segments of samples that a loss cuts its inputs into, as real and made images; () for none."""
    ends = {0, batch}
    for op in (trace.ops[i] for i in stretch.ops):
        cuts = op.functional in CUTS and op.phase == "forward" and (op.arguments.get("dim") or 0) == 0
        if cuts and trace.values[op.inputs[0]].shape[:1] == (batch,):
            for value in op.outputs:
                ends.update(indices_of(trace, value, 0) or ())
    found = sorted(ends)
    return tuple(b - a for a, b in itertools.pairwise(found)) if 2 < len(found) <= _PARTS + 1 else ()


def against(gradients: list[Tensor], rows: list[Tensor], gain: float) -> list[Tensor]:
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


def swing(tensors: Sequence[Tensor]) -> float:
    """Return by how much rows vary in size, beyond what chance does to that of Gaussian numbers.

    Args:
        tensors: a value, of each draw; rows are along its last dimension.

    >>> swing([torch.ones(4, 2)]), swing([torch.tensor([[1.0] * 50, [7.0] * 50])])  # 2·(1 + 49²)/50²/1.04 − 1
    (0.0, 0.8476923076923075)
    """
    rows = torch.stack([t.double().square().mean(-1) for t in tensors])
    mean, square = float(rows.mean()), float(rows.square().mean())
    found = square / mean**2 / (1 + 2 / tensors[0].shape[-1]) - 1 if mean > 0 else 0.0
    return found if found > _LEAST else 0.0
