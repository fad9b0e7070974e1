"""Indices that point nowhere: tokens, positions and targets that a look-up has no row for.

On meta a look-up has no numbers to complain of; the model itself would, and so must its prediction.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor

from initwell.errors import ArgumentError
from initwell.propagate.given.known import Known
from initwell.trace.failure import where
from initwell.trace.trace import Op, Trace, ValueRef

_TABLES = frozenset({"aten.embedding", "aten._embedding_bag"})
_ALONG_NAMES = "index_select gather scatter scatter_add scatter_reduce index_add"
_ALONG = frozenset(f"aten.{name}" for name in _ALONG_NAMES.split())
_PLACES = frozenset({"aten.index", "aten.index_put"})
_TARGETS = frozenset({"aten.nll_loss_forward", "aten.nll_loss2d_forward"})
_MASKS = frozenset({"bool", "uint8"})
_LOSS = "(loss)"


def check_indices(trace: Trace, values: Known) -> None:
    """Refuse known tokens, positions or targets that a look-up has no row for.

    Args:
        trace: of the model.
        values: its known numbers, the indices among them.

    Raises:
        ArgumentError: naming the input that the indices were made from, what looks them up, and its rows.
    """
    for op in trace.forward_ops:
        for index, rows, least in _look_ups(trace, op):
            if index.id not in values or values[index.id].numel() == 0:
                continue
            low, high = _range(op, values[index.id])
            if low < least or high >= rows:
                raise _refused(trace, op, index.id, (low, high), rows)


def _look_ups(trace: Trace, op: Op) -> Iterator[tuple[ValueRef, int, int]]:
    """Yield each index of an op, how many rows there are for it, and the least number that it may be."""
    given = op.arguments
    if op.functional in _TABLES:
        yield from _one(trace, given.get("indices"), given.get("weight"), 0)
    elif op.functional in _ALONG:
        yield from _one(trace, given.get("index"), given.get("self"), given["dim"])
    elif op.functional in _TARGETS:
        table = given.get("self")
        classes = 1 if isinstance(table, ValueRef) and len(trace.values[table.id].shape) > 1 else 0
        yield from _one(trace, given.get("target"), table, classes)
    elif op.functional in _PLACES:
        dim = 0
        for index in given["indices"]:
            known = trace.values[index.id] if isinstance(index, ValueRef) else None
            mask = known is not None and known.dtype in _MASKS
            for ref, rows, _ in () if mask else _one(trace, index, given.get("self"), dim):
                yield ref, rows, -rows
            dim += len(known.shape) if mask and known is not None else 1


def _one(trace: Trace, index: object, table: object, dim: int) -> Iterator[tuple[ValueRef, int, int]]:
    if not isinstance(index, ValueRef) or not isinstance(table, ValueRef):
        return
    shape = trace.values[table.id].shape
    if -len(shape) <= dim < len(shape):
        yield index, shape[dim], 0


def _range(op: Op, found: Tensor) -> tuple[int, int]:
    if op.functional in _TARGETS:
        found = found[found != op.arguments["ignore_index"]]
    return (int(found.min()), int(found.max())) if found.numel() else (0, 0)


def _refused(trace: Trace, op: Op, index: int, got: tuple[int, int], rows: int) -> ArgumentError:
    given = {value: name for name, value in trace.inputs.items()}
    between = f"{got[0]} to {got[1]}"
    if op.functional in _TARGETS:
        said, owner = f"targets from {between}", f"The output has {rows} classes"
    elif op.functional in _TABLES:
        place = repr(op.path) if op.path else "the model itself"
        said, owner = f"tokens from {between}", f"The embedding at {place} has {rows} rows"
    else:
        said, owner = f"indices from {between}", f"{op.packet} at {where(op.path)} looks among {rows} places"
    if index not in given and op.path != _LOSS:
        said = f"what is made of it looks up rows {between}"
    source = _source(trace, index, given) or ("loss" if op.path == _LOSS else "")
    if not source:  # positions, which the shape of the batch alone decides
        return ArgumentError("batch", f"a shape whose positions are {between}", f"{owner}: give a shorter one.")
    return ArgumentError(source, said, f"{owner}: give whole numbers from 0 to {rows - 1}.")


def _source(trace: Trace, value: int, given: Mapping[int, str]) -> str:
    """Return the names of the inputs that a value is made from; "" where there are none, as for positions."""
    names: dict[str, None] = {}
    waiting, seen = [value], set[int]()
    while waiting:
        current = waiting.pop()
        if current in given:
            names[given[current]] = None
        producer = trace.producer(current)
        if producer is not None and current not in seen:
            waiting.extend(producer.inputs)
        seen.add(current)
    return ", ".join(sorted(names))
