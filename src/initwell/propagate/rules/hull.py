"""Rows and columns of scores that a mask shuts from end to end, as of blocks that are padded to one length.

A column that no row looks at has the weight 0 everywhere, and what stands there says nothing of the open scores: those
of padding are often 0, while the others' variance is what softmax is about. So weights are those of the scores between
the first and the last that are open, with zeros around them. A row with nothing open is one in which all scores are
alike, shut by the same number: its weights are 1/T.
"""

from dataclasses import replace as with_fields
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from initwell.propagate.given.mask import Mask
from initwell.propagate.moments.centring import centred
from initwell.propagate.moments.signal import Signal, constant, replace
from initwell.propagate.rules.parts import concatenated, padded, sliced

Span = tuple[int, int]
T = TypeVar("T", bound=np.generic)


def hull(s: Signal) -> tuple[Span, Span] | None:
    """Return from where to where rows and columns of scores have any that is open; None where all have.

    Args:
        s: scores with a mask or without.
    """
    if s.mask is None or len(s.shape) < 2:
        return None
    spans = tuple(_span(s.mask, axis, s.shape[axis]) for axis in (-2, -1))
    whole = all(span == (0, n) for span, n in zip(spans, s.shape[-2:], strict=True))
    return None if whole or any(start >= stop for start, stop in spans) else (spans[0], spans[1])


def _span(mask: Mask, axis: int, length: int) -> Span:
    if mask.open.shape[axis] != length:
        return 0, length
    found = np.flatnonzero(np.moveaxis(mask.open, axis, -1).any(axis=tuple(range(mask.open.ndim - 1))))
    return (int(found[0]), int(found[-1]) + 1) if found.size else (0, 0)


def opened(s: Signal) -> Signal:
    """Return the scores of those rows and columns alone, with what is left of their mask."""
    spans = hull(s)
    if spans is None or s.mask is None:
        return s
    found, mask = within(s, spans), s.mask
    bias = None if mask.bias is None else _cut(mask.bias, spans)
    left = with_fields(mask, open=_cut(mask.open, spans), bias=bias)
    return replace(found, mask=None if left.shut == 0 and bias is None else left)


def within(x: Signal, spans: tuple[Span, Span]) -> Signal:
    """Return those rows and columns of a signal."""
    rank = len(x.shape)
    return sliced(sliced(x, rank - 2, *spans[0]), rank - 1, *spans[1])


def _cut(known: NDArray[T], spans: tuple[Span, Span]) -> NDArray[T]:
    for axis, (start, stop) in zip((-2, -1), spans, strict=True):
        if known.shape[axis] > 1:
            known = known.take(np.arange(start, stop), axis)
    return known


def surrounded(weights: Signal, spans: tuple[Span, Span], shape: tuple[int, ...]) -> Signal:
    """Return weights of open scores among all: 0 in other columns, 1/T in other rows."""
    (top, bottom), (left, right) = spans
    rows = padded(weights, len(shape) - 1, left, shape[-1] - right)
    ends = [constant((*shape[:-2], n, shape[-1]), 1 / shape[-1]) for n in (top, shape[-2] - bottom)]
    parts = [*([ends[0]] if top else []), rows, *([ends[1]] if bottom < shape[-2] else [])]
    return concatenated(parts, len(shape) - 2)


def back(gradient: Signal, spans: tuple[Span, Span], g: Signal) -> Signal:
    """Return a gradient of open scores among all: 0 in other columns, (g − ḡ)/T in other rows."""
    (top, bottom), (left, right) = spans
    rank, count = len(g.shape), g.shape[-1]
    rows = padded(gradient, rank - 1, left, count - right)
    ends = [_alike(sliced(g, rank - 2, *span)) for span in ((0, top), (bottom, g.shape[-2])) if span[1] > span[0]]
    parts = [*ends[: top > 0], rows, *ends[top > 0 :]]
    return concatenated(parts, rank - 2)


def _alike(g: Signal) -> Signal:
    """Take a gradient back through weights that are all alike."""
    moments = centred(g, g.axes([len(g.shape) - 1])) / g.shape[-1] ** 2
    return g.changed(moments, 0.0)
