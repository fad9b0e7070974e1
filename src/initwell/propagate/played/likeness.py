"""Whether values that a loss compares go together by more than is known, as what one encoder makes of two views.

Two views of one image are alike sample by sample. What one layer makes of both goes together as they do, and that is
followed through linear layers and functions (``shared.covariance``), but not through convolutions; and of views that
are put one behind the other samples count as alike all the same. Losses that compare them then cannot be drawn.
"""

from collections.abc import Iterable, Iterator, Mapping

from initwell.propagate.given.known import Known
from initwell.propagate.moments.signal import Signal
from initwell.propagate.table import UnknowableError
from initwell.trace.trace import Trace

# Of the size of both inputs: what samples have in common with their own other view, and with no other sample's.
_PAIRED = 0.1
_LIKENESS = "a loss that compares what one encoder made of two views, of which it is not known how alike they are"


def pairs_of_views(values: Known, known: Mapping[int, Signal]) -> Iterator[tuple[int, int]]:
    """Go over inputs of the batch that are alike sample by sample.

    Args:
        values: what has real numbers.
        known: value id → signal, of the inputs.
    """
    for (i, j), both in values.crossed.items():
        one, two = known.get(i), known.get(j)
        if i < j and one is not None and two is not None and both.shape == one.moments.shape and both.ndim:
            differ = float(both[(1, *[0] * (both.ndim - 1))])
            if abs(float(both.flat[0]) - differ) > _PAIRED * one.rms * two.rms:
                yield i, j


def check_likeness(trace: Trace, values: Known, known: Mapping[int, Signal], value: int, before: Iterable[int]) -> None:
    """Make sure that it is known how a value that a loss reads goes together with the others that it reads.

    Args:
        trace: of the model.
        values: what has real numbers.
        known: value id → signal, of all values so far.
        value: what a layer made.
        before: the others.

    Raises:
        UnknowableError: it is not.
    """
    for i, j in pairs_of_views(values, known):
        from_one, from_two = trace.dependents([i]), trace.dependents([j])
        rows = sum(trace.values[k].shape[0] for k in (i, j))
        if value in from_one and value in from_two and trace.values[value].shape[:1] == (rows,):
            raise UnknowableError(_LIKENESS)
        for o in before:
            apart = (value in from_one and o in from_two) or (value in from_two and o in from_one)
            if apart and _layer(trace, value) & _layer(trace, o) and _both_convolved(trace, value, o):
                raise UnknowableError(_LIKENESS)


def _layer(trace: Trace, value: int) -> frozenset[int]:
    """Return the parameters that the op which made a value reads."""
    made = trace.producer(value)
    shown = [trace.shown(i) for i in made.inputs] if made is not None else []
    return frozenset(i for i in shown if trace.values[i].kind == "parameter")


def _both_convolved(trace: Trace, one: int, two: int) -> bool:
    """Whether both were made by way of one weight of a convolution."""
    weights = {op.arguments["weight"].id for op in trace.forward_ops if op.functional == "aten.convolution"}
    return any({one, two} <= trace.dependents([w]) for w in weights)
