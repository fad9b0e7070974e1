"""Real tensors as Signals: their second moments by which indices agree, from sums and never from pairs."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from initwell.propagate.moments.axes import Atom
from initwell.propagate.moments.places import of_sizes, sizes
from initwell.propagate.moments.segments import MOST, Array, patterns
from initwell.propagate.moments.signal import UNLIKE, Signal, replace

_FRESH = 4.0
# Rows of so many features are no smaller than this share of their average by chance.
_FEATURES = 16
# So many inputs of a batch are compared with each other.
_CROSSED = 8
SMALL = 0.1
# Dimensions of rows of tokens; of more, the second counts channels.
_IMAGE = 3
# Features of a row, of which more are seldom of unlike size.
_NARROW = 64


@np.errstate(all="ignore")
def pair_averages(tensor: Tensor) -> Array:
    """Average x_i x_j over all pairs that agree and differ along each axis, in closed form.

    Summing the squares of the sums along some axes counts all pairs along these; of n indices n agree with themselves
    and n(n−1) differ, so along each axis differ = (all − agree)/(n(n−1)).

    Args:
        tensor: any shape; axes of length 1 stay and have differ = agree.

    Returns:
        Shape (2,) * axes.

    >>> pair_averages(torch.tensor([1.0, 2.0, 3.0])).round(4).tolist()
    [4.6667, 3.6667]
    """
    data = tensor.detach().to(torch.float64)
    rank = data.ndim
    sums = np.empty((2,) * rank)

    def reduce(part: Tensor, axis: int, place: tuple[int, ...]) -> None:
        if axis == rank:
            sums[place] = float((part * part).sum())
            return
        reduce(part, axis + 1, (*place, 0))
        reduce(part.sum(axis, keepdim=True), axis + 1, (*place, 1))

    reduce(data, 0, ())
    for axis, n in enumerate(data.shape):
        agree, every = sums.take(0, axis), sums.take(1, axis)
        differ = (every - agree) / (n * (n - 1)) if n > 1 else agree / n
        sums = np.stack([agree / n, differ], axis)
    return sums


def measured(tensor: Tensor, *, sample: int | None = None) -> Signal:
    """Measure a real tensor.

    Args:
        tensor: floating or integer, with values.
        sample: the dimension that counts samples, if any.

    Returns:
        Its Signal: the mean and ``pair_averages``, one atom for each dimension longer than 1.

    >>> measured(torch.tensor([[1.0, 2.0, 3.0]])).moments.round(4).tolist()
    [4.6667, 3.6667]
    """
    moments = pair_averages(tensor)
    dims = tuple((Atom(n, i == sample),) if n > 1 else () for i, n in enumerate(tensor.shape))
    moments = moments.reshape(tuple(2 for _ in range(moments.ndim)))
    moments = moments[tuple(slice(None) if dim else 0 for dim in dims)]
    return Signal(dims, np.asarray(moments), np.asarray(float(tensor.detach().double().mean())))


def crossed(tensors: Mapping[int, Tensor]) -> dict[tuple[int, int], Array]:
    """Return how real tensors of one shape vary together, as two views of one image do: E[x_i y_j] − E[x]E[y].

    Args:
        tensors: by value id; each pair of the first eight of a shape is looked at.

    >>> x = torch.tensor([[1.0, -1.0], [2.0, -2.0]])
    >>> crossed({0: x, 1: -x})[0, 1].tolist()
    [[-2.5, 2.5], [-2.0, 2.0]]
    """
    found: dict[tuple[int, int], Array] = {}
    for (i, x), (j, y) in itertools.combinations([*tensors.items()][:_CROSSED], 2):
        if x.shape == y.shape and x.ndim:
            one, two = x.detach().double(), y.detach().double()
            plus, minus = measured(one + two), measured(one - two)
            found[i, j] = found[j, i] = (plus.moments - minus.moments) / 4 - float(one.mean()) * float(two.mean())
    return found


def in_parts(values: Array, parts: Sequence[tuple[int, ...]], *, sample: int | None = None) -> Signal:
    """Measure known numbers by segments.

    All pairs between two segments are the product of their sums; what they have beside those that agree, differ.

    Args:
        values: the numbers.
        parts: for each axis, the lengths of its segments.
        sample: the axis that counts samples, if any.

    >>> in_parts(np.array([1.0, 2.0, 4.0]), [(1, 2)]).moments.tolist()
    [1.0, 10.0, 1.0, 3.0, 3.0, 8.0]
    """
    atoms = [Atom(sum(p), i == sample, p if len(p) > 1 else ()) for i, p in enumerate(parts)]
    dims = tuple((atom,) if atom.size > 1 else () for atom in atoms)
    parts = [p for p in parts if sum(p) > 1]
    values = values.reshape([sum(p) for p in parts])
    member = [np.repeat(np.eye(len(p)), p, axis=0) for p in parts]
    moments = np.empty([len(p) + len(p) ** 2 for p in parts])
    for apart in np.ndindex((2,) * values.ndim):
        block = tuple(slice(len(p) if far else 0, None if far else len(p)) for p, far in zip(parts, apart, strict=True))
        moments[block] = _pair_sums(values, member, apart).reshape(moments[block].shape)
    means = values
    for axis, p in enumerate(parts):
        moments, means = _averages(moments, p, axis), _summed(means, member[axis] / p, axis)
    return Signal(dims, moments, means)


def _summed(array: Array, member: Array, axis: int) -> Array:
    return np.asarray(np.moveaxis(np.tensordot(array, member, (axis, 0)), -1, axis))


def _pair_sums(values: Array, member: Sequence[Array], apart: Sequence[int]) -> Array:
    """Sum over all pairs of two segments along some axes, and over each index with itself along the others."""
    for axis in range(values.ndim):
        values = _summed(values, member[axis], axis) if apart[axis] else values
    shape = list(zip(values.shape, apart, strict=True))
    first = values.reshape([m for n, far in shape for m in ((n, 1) if far else (n,))])
    found = first * values.reshape([m for n, far in shape for m in ((1, n) if far else (n,))])
    place = 0
    for axis, far in enumerate(apart):
        found = found if far else _summed(found, member[axis], place)
        place += 2 if far else 1
    return found


def _averages(sums: Array, parts: tuple[int, ...], axis: int) -> Array:
    """Return averages over pairs that agree and that differ, of sums over those that agree and over all."""
    found, s = patterns(parts), len(parts)
    moved = np.moveaxis(sums, axis, 0).copy()
    moved[s + np.arange(s) * (s + 1)] -= moved[:s]
    there = found.counts > 0
    moved = moved / np.where(there, found.counts, 1.0).reshape(-1, *[1] * (moved.ndim - 1))
    # A segment of one index has no pair that differs within it.
    moved[~there] = moved[found.first[~there]]
    return np.moveaxis(moved, 0, axis)


def with_unlike_noted(signal: Signal, tensor: Tensor, what: str) -> Signal:
    """Mark a measured signal as approximate where the sizes along dimension 0 spread by more than half their average.

    φ of entries of many sizes is no φ of one Gaussian, and what is normalized row by row has other gradients.

    Args:
        signal: of the tensor.
        tensor: real; fewer than two dimensions have nothing to average over.
        what: the rows are, such as "samples".
    """
    if tensor.ndim < 2 or tensor.shape[0] < 2 or signal.q == 0:
        return signal
    sizes = tensor.detach().double().flatten(1).square().mean(1)
    chance = 18 / math.prod(tensor.shape[1:])
    if float(sizes.var() / sizes.mean() ** 2) <= UNLIKE + chance:
        return signal
    return signal.approximate(f"{what} of unlike size, taken as alike")


def with_lengths(signal: Signal, tensor: Tensor) -> Signal:
    """Say by how much the mean squares of rows vary, where that is much, as of points of two coordinates.

    Args:
        signal: of the tensor.
        tensor: real, features along its last dimension.

    >>> from initwell.propagate.moments.signal import independent
    >>> with_lengths(independent((2, 2), 5.0), torch.tensor([[1.0, 1.0], [3.0, 3.0]])).lengths
    0.64
    """
    if tensor.ndim not in (2, 3) or tensor.shape[-1] > _NARROW or signal.q == 0:
        return signal
    varies = unlikeness(tensor)
    return replace(signal, lengths=varies) if varies > UNLIKE else signal


def unlikeness(tensor: Tensor) -> float:
    """Return the relative variance of the mean squares of a tensor's rows, of images of whole samples; 0 of one row.

    Args:
        tensor: real, features along its last dimension, or an image with channels and places.

    >>> unlikeness(torch.tensor([[1.0, 1.0], [3.0, 3.0]]))
    0.64
    """
    rows = tensor.detach().flatten(1) if tensor.ndim > _IMAGE else tensor.detach()
    sizes = rows.double().square().mean(-1) if rows.ndim else rows.double()
    mean = float(sizes.mean()) if sizes.numel() else 0.0
    return float(sizes.var(correction=0)) / mean**2 if mean > 0 else 0.0


def unlike_rows(tensor: Tensor) -> Array | None:
    """Return the mean square of each row, of shape (samples, places), where some are far smaller than their average.

    Padding that is 0, or nearly, is such: a norm divides it by √ε.

    Args:
        tensor: of shape (sample, features) or (sample, place, features).

    >>> unlike_rows(torch.tensor([[1.0], [0.0]]).expand(2, 16)).tolist()
    [[1.0], [0.0]]
    """
    if tensor.ndim not in (2, 3) or tensor.shape[-1] < _FEATURES or not tensor.numel():
        return None
    sizes = tensor.detach().double().square().mean(-1).reshape(tensor.shape[0], -1)
    return sizes.cpu().numpy() if float(sizes.min()) < SMALL * float(sizes.mean()) else None


def measured_weight(tensor: Tensor) -> Signal:
    """Measure a weight; moments between different entries that chance explains are taken as 0.

    Independent zero-mean entries of variance σ² give an average over P pairs a standard error of about σ²√(2/P). What
    lies within four of them says nothing about the next draw; rows that sum to zero, or a mean, lie far outside. Equal
    entries, such as a temperature or a gate of one number each, were not drawn at all, however few they are.

    A row of a few numbers, each many times over, is known by segments: a bias that opens some gates and shuts others.
    So is a row that all rows repeat, such as the rates −1 … −16 of a state: no draw would have made that.

    >>> measured_weight(torch.ones(4)).mean
    1.0
    >>> measured_weight(torch.tensor([1.0, 1.0, 1.0, 5.0, 5.0])).means.tolist()
    [1.0, 5.0]
    >>> measured_weight(torch.tensor([[1.0, 2.0, 3.0]] * 4)).means.tolist()
    [[1.0, 2.0, 3.0]]
    """
    if (written := _in_runs(tensor) or _repeated(tensor)) is not None:
        return written
    signal = measured(tensor)
    if float(tensor.detach().min()) == float(tensor.detach().max()):
        return signal
    moments = signal.moments.copy()
    sizes = [a.size for a in signal.atoms]
    total = math.prod(sizes)
    if signal.q == 0 or _has_mean(signal.mean**2 / signal.q, total):
        return signal
    for place in np.ndindex(moments.shape):
        pairs = total * math.prod(n - 1 for n, p in zip(sizes, place, strict=True) if p)
        if any(place) and abs(moments[place]) < _FRESH * signal.q * math.sqrt(2 / max(pairs, 1)):
            moments[place] = 0.0
    squares = tensor.detach().double().square()
    scatter = float(squares.square().mean() / squares.mean() ** 2) - 1.0
    return replace(signal.changed(moments, 0.0), scatter=(scatter,))


def _has_mean(share: float, count: int) -> bool:
    """Whether entries have a mean: more than four standard errors, and of few entries as rarely by chance.

    Of independent Gaussian entries around 0, mean²/E[x²] is a Beta(½, (n − 1)/2).

    Args:
        share: mean²/E[x²].
        count: n, how many entries there are.

    >>> _has_mean(0.95, 8), _has_mean(0.5, 8)
    (True, False)
    """
    if count >= _MANY or share * count < _FRESH:
        return share * count > _FRESH**2
    from scipy.special import betainc

    return bool(betainc((count - 1) / 2, 0.5, 1 - min(share, 1.0)) < math.erfc(_FRESH / math.sqrt(2)))


# Of so many entries a mean is as good as Gaussian.
_MANY = 1000


def _in_runs(tensor: Tensor) -> Signal | None:
    """Return a row of numbers by its runs of equal ones; None where they are no fewer than half as many, or but one."""
    if tensor.ndim != 1:
        return None
    numbers, parts = torch.unique_consecutive(tensor.detach(), return_counts=True)
    if not 1 < len(numbers) <= min(MOST, len(tensor) // 2):
        return None
    lengths, means = tuple(parts.tolist()), numbers.double().cpu().numpy()
    found = patterns(lengths)
    return Signal(((Atom(len(tensor), False, lengths),),), means[found.first] * means[found.second], means)


def _repeated(tensor: Tensor) -> Signal | None:
    """Return by segments a tensor that is one and the same along all its axes but one; None of any other."""
    if tensor.ndim < 2 or not tensor.numel():
        return None
    numbers, long = tensor.detach(), [axis for axis, n in enumerate(tensor.shape) if n > 1]
    varies = [axis for axis in long if not bool((numbers == numbers.narrow(axis, 0, 1)).all())]
    if len(varies) != 1 or len(long) < 2:
        return None
    axis = varies[0]
    row = numbers[tuple(slice(None) if i == axis else 0 for i in range(tensor.ndim))]
    levels, parts = torch.unique_consecutive(row, return_counts=True)
    if len(levels) > MOST:
        return None
    lengths, means = tuple(parts.tolist()), levels.double().cpu().numpy()
    dims = tuple((Atom(n, False, lengths if i == axis else ()),) if n > 1 else () for i, n in enumerate(tensor.shape))
    found, place = patterns(lengths), long.index(axis)
    moments = _spread_out(means[found.first] * means[found.second], place, len(long), 2)
    return Signal(dims, moments, _spread_out(means, place, len(long), 1))


def _spread_out(values: Array, axis: int, rank: int, length: int) -> Array:
    """Repeat values of one axis along others of one length."""
    shape = [1 if i != axis else values.size for i in range(rank)]
    wide = [length if i != axis else values.size for i in range(rank)]
    return np.ascontiguousarray(np.broadcast_to(values.reshape(shape), wide))


def masked_weight(weight: Tensor, mask: Tensor) -> Signal | None:
    """Measure a weight times known numbers that were made of it, such as a mask that keeps its largest entries.

    Args:
        weight: with its numbers.
        mask: of the same shape.

    Returns:
        The Signal of the product; None where the squares of both go together no more than chance explains.

    >>> x = torch.linspace(-1.0, 1.0, 1000)
    >>> found = masked_weight(x, (x.abs() > 0.5).double())
    >>> round(found.q, 2), masked_weight(x, torch.arange(1000) % 2) is None
    (0.29, True)
    """
    w, m = weight.detach().double(), mask.to(weight.device).double()
    squares = torch.stack([w.square().flatten(), m.square().flatten()])
    together = float(torch.corrcoef(squares)[0, 1]) if w.numel() > 1 else 0.0
    return measured_weight(w * m) if abs(together) > _FRESH / math.sqrt(w.numel()) else None


# So many rows of an image, evenly chosen, show how its places go together.
_ROWS = 16384


def with_places(signal: Signal, tensor: Tensor) -> Signal:
    """Note how positions along dimensions 2, 3, … of a batch of images differ; see ``places``.

    Args:
        signal: measured of the tensor.
        tensor: real, of three dimensions or more: (sample, channel, positions…).
    """
    if tensor.ndim < 3 or signal.q <= 0 or signal.segmented:
        return signal
    space = signal.axes(range(2, tensor.ndim))
    level = min(max(signal.averaged(space) / signal.q, 0.0), 1 - 1e-6)
    profile = []
    for axis in range(2, tensor.ndim):
        rows = tensor.detach().movedim(axis, -1).reshape(-1, tensor.shape[axis])
        rows = rows[:: max(len(rows) // _ROWS, 1)].double()
        size = (rows.square().mean(0) / signal.q).cpu().numpy()
        tables = of_sizes(size)
        if tables.ndim == 3 and len(size) > 1:
            together = (rows.T @ rows / len(rows) / signal.q).cpu().numpy()
            own = (together / float(size.mean()) - level * tables[0]) / (1 - level)
            root = np.sqrt(np.maximum(sizes(tables), 1e-300))
            own = own / np.outer(root, root)
            # What chance makes of this many rows is no likeness.
            own[np.abs(own) < _FRESH / math.sqrt(len(rows))] = 0.0
            np.fill_diagonal(own, 1.0)
            tables = of_sizes(size, np.clip(own, -1.0, 1.0))
        profile.append(tables)
    return replace(signal, profile=tuple(profile))
