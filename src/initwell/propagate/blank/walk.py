"""Blank rows: those of a padding token, whose embedding is 0, followed one by one beside the moments of all rows.

A second moment averages over rows, which does for sums and products with what is alike everywhere. Not for a norm: a
row of zeros is divided by √ε, and what comes back through it is a thousand times the others' gradient, however few
such rows there are. So beside the moments go two sizes: E[x²] in each blank row, and E[x²] of all others. Layers
multiply both alike, sums add them, products multiply them, and a norm divides each by its own:

    x̂: e/(e + ε)        dx: E[g²]/(e + ε)        E[x²] = share · average of the blank rows' + (1 − share) · the others'

The walk's own moments are set to that wherever entries of the same row meet. How rows mix in attention is said in
``attention``, what each op does in ``rules``. At an op that is not known here the row counts as any other again.
Assumption: a blank row's scores and gradients are otherwise as any row's, and independent of which rows are blank.
"""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence

import numpy as np
from numpy.typing import NDArray

from initwell.propagate.blank.rows import Rows, Tokens, counted, row_axes, scaled, times
from initwell.propagate.blank.rules import RULES
from initwell.propagate.given.known import Known
from initwell.propagate.given.measured import SMALL
from initwell.propagate.moments.signal import Signal, replace
from initwell.trace.trace import Op, Trace, ValueRef

Found = Sequence[Signal | None]
_LARGEST = 20_000_000
_BEGUN = "aten.embedding"


class Blank:
    """Follows blank rows through a walk, and sets the moments right where they matter."""

    def __init__(self, trace: Trace, known: Mapping[int, Signal], values: Known) -> None:
        """Begin a walk.

        Args:
            trace: that is walked.
            known: signals so far, by value id.
            values: known numbers.
        """
        self.trace, self.signals, self.values = trace, known, values
        self.rows: dict[int, Rows] = {}
        self.any: bool = values.once("embeddings", lambda: any(op.functional == _BEGUN for op in trace.ops))
        for value in values.rows:
            self.any = self._given(value) or self.any
        """Whether there is anything whose rows may be blank."""

    @property
    def others(self) -> "_Others":
        """The signals so far as they are without blank rows."""
        return _Others(self)

    def amended(self, op: Op, found: Found, *, others: bool = False) -> Found:
        """Return the signals of an op's results, with blank rows counted as what they are.

        Args:
            op: any.
            found: its signals.
            others: whether those are already of the other rows alone.
        """
        if not found or found[0] is None or not op.outputs:
            return found
        rows: Rows | float | None
        if op.functional == _BEGUN:
            rows = self._begun(op, found[0])
        elif self.rows and any(i in self.rows for i in op.inputs) and op.functional in RULES:
            rows = RULES[op.functional](self, op, found[0])
            if others and isinstance(rows, Rows) and rows.rest > 0:
                rows = scaled(rows, found[0].q / rows.rest)
        else:
            return found
        if isinstance(rows, float):
            return (times(found[0], rows, ()), *found[1:])
        return found if rows is None else tuple(self._kept(op, i, s, rows) for i, s in enumerate(found))

    def _given(self, value: int) -> bool:
        """Begin with an input that has rows far smaller than the others; whether it can be."""
        sizes = self.values.rows[value]
        small = sizes < SMALL * sizes.mean()
        if not _fits(small) or value not in self.signals:
            return False
        tokens = _same(self.values, small)
        self.rows[value] = Rows(tokens, sizes[tokens.at], float(sizes[~small].mean()))
        return True

    def _begun(self, op: Op, shown: Signal) -> Rows | None:
        padding, index = int(op.arguments["padding_idx"]), op.arguments["indices"].id
        frozen = op.arguments["weight"].id in self.values.frozen
        if padding < 0 or index not in self.values or frozen or shown.q <= 0:
            return None
        first = self.values.folded.first[index]
        tokens = self.values.once(f"blank {first} {padding}", lambda: _tokens(self.values, index, padding))
        if tokens is None:
            return None
        return Rows(tokens, np.zeros(tokens.count), shown.q / (1 - tokens.share))

    def _kept(self, op: Op, place: int, signal: Signal | None, rows: Rows) -> Signal | None:
        """Remember the rows of a result, and return its signal with them."""
        if signal is None or (place and signal.shape != self.trace.values[op.outputs[0]].shape and not _cuts(op)):
            return signal
        if rows.weights and signal.swing:
            # How Σ p² varies from blank rows to others is in their sizes; among the others it is left out.
            signal = replace(signal, swing=0.0)
        if signal.lengths and not rows.even:
            # Nor how they vary in length: blank rows are what these sizes are about.
            signal = replace(signal, lengths=0.0)
        if rows.weights or not rows.even:
            self.rows[op.outputs[place]] = rows
        return signal if rows.level else counted(signal, rows)

    def settle(self, known: MutableMapping[int, Signal]) -> None:
        """Set averages of squares, and what is made of them, right in the end: rules take all rows as alike."""
        for value, rows in self.rows.items():
            if rows.level and value in known:
                known[value] = counted(known[value], rows)

    def of(self, op: Op, name: str) -> tuple[Rows | None, float]:
        """Return the rows of an operand, None if they are all alike, and its E[x²]; 0 where that is not known."""
        ref = op.arguments.get(name)
        if not isinstance(ref, ValueRef):
            return None, 0.0
        signal = self.signals.get(ref.id)
        return self.rows.get(ref.id), 0.0 if signal is None else signal.q

    def signal(self, op: Op, name: str) -> Signal | None:
        """Return an operand's signal, if it is known."""
        ref = op.arguments.get(name)
        return self.signals.get(ref.id) if isinstance(ref, ValueRef) else None


class _Others(Mapping[int, Signal]):
    """Value id → signal of the rows that are not blank."""

    def __init__(self, blank: Blank) -> None:
        self._blank = blank

    def __getitem__(self, value: int) -> Signal:
        signal, rows = self._blank.signals[value], self._blank.rows.get(value)
        if rows is None or rows.level or rows.average <= 0:
            return signal
        return times(signal, rows.rest / rows.average, row_axes(signal, rows))

    def __iter__(self) -> Iterator[int]:
        return iter(self._blank.signals)

    def __len__(self) -> int:
        return len(self._blank.signals)


def _tokens(values: Known, index: int, padding: int) -> Tokens | None:
    padded = (values[index] == padding).numpy()
    padded = padded.reshape(-1, padded.shape[-1]) if padded.ndim else padded.reshape(1, 1)
    return _same(values, padded) if _fits(padded) else None


def _same(values: Known, padded: NDArray[np.bool_]) -> Tokens:
    """Return one record for the same rows: words and their positions are blank together."""
    return values.once(f"blank rows {padded.shape} {hash(padded.tobytes())}", lambda: Tokens(padded))


def _fits(padded: NDArray[np.bool_]) -> bool:
    return bool(0 < padded.sum() < padded.size and int(padded.sum()) * padded.shape[1] <= _LARGEST)


def _cuts(op: Op) -> bool:
    return op.functional in ("aten.split", "aten.split_with_sizes")
