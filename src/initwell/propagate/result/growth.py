"""Growth by block: how much larger signal and gradient leave a repeated module than they entered it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from initwell.propagate.moments.signal import Signal
from initwell.propagate.result.blocks import Passage, chains
from initwell.records import Row, TableRecord
from initwell.trace.trace import Trace

# A depth scale is fitted to at least so many overlaps, and given where 1 − overlap falls as a straight line on a log
# axis: as good as this, as the share of its variance that the line explains.
_POINTS, _STRAIGHT = 6, 0.99


@dataclass(frozen=True)
class Growth(TableRecord):
    """Sizes from block to block along one chain of repeated modules, such as layers.0, layers.1, ….

    A block reaches from what enters it to what enters the next one, so that whatever stands between them belongs to
    the first; the last reaches to what leaves it or, where that is added outside to what entered it, to the sum.

    Attributes:
        module_type: of the blocks.
        rows: one mapping for each block: ``block`` (its path), ``forward_rms``, ``gradient_rms`` and ``overlap`` of
            what enters it, ``forward_growth`` and ``backward_growth``. Forward is the rms that leaves over the rms
            that enters; backward the gradient's rms at the entry over that at the exit; None where one is unknown.
        forward_total: growth over all blocks together; None where it is unknown.
        backward_total: the same of the gradient.
        depth_scale: in how many blocks the distance 1 − overlap between samples falls by a factor e; None where it
            does not fall so, or where that is not known.
    """

    module_type: str
    rows: tuple[Row, ...]
    forward_total: float | None
    backward_total: float | None
    depth_scale: float | None

    @property
    def forward(self) -> float | None:
        """The geometric mean of the forward growth a block."""
        return _root(self.forward_total, len(self.rows))

    @property
    def backward(self) -> float | None:
        """The geometric mean of the backward growth a block."""
        return _root(self.backward_total, len(self.rows))

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain data, the means included."""
        return super().to_dict() | {"forward": self.forward, "backward": self.backward}

    def table_title(self) -> str:
        """Say which blocks."""
        return f"Growth by block: {len(self.rows)} × {self.module_type.rpartition('.')[2]}"

    def table_columns(self) -> Sequence[str]:
        """Name the columns."""
        return ("block", "forward_growth", "backward_growth", "forward_rms", "gradient_rms", "overlap")

    def table_rows(self) -> Sequence[Row]:
        """Return one row a block."""
        return self.rows

    def table_notes(self) -> Sequence[str]:
        """Return the sentence."""
        return (self.said(),) if self.said() else ()

    def said(self) -> str:
        """Say in words how both directions fare; "" where neither is known."""
        if self.forward is None and self.backward is None:
            return ""
        first, last = self.rows[0]["block"], self.rows[-1]["block"]
        forward, backward = _times(self.forward, self.forward_total), _times(self.backward, self.backward_total)
        text = f"A block from {first} to {last} multiplies the signal by {forward} and the gradient by {backward}."
        if self.depth_scale is not None:
            text += f" The distance between samples falls by e in {self.depth_scale:.3g} blocks."
        return text


def _root(total: float | None, blocks: int) -> float | None:
    return None if total is None else total ** (1 / blocks)


def _times(mean: float | None, total: float | None) -> str:
    if mean is None or total is None:
        return "an unknown factor"
    return f"{mean:.4g} ({total:.3g} over these blocks)"


def growths(trace: Trace, signals: Mapping[int, Signal]) -> tuple[Growth, ...]:
    """Find the chains of blocks in a model, and how sizes grow along them.

    Args:
        trace: of the model.
        signals: value id → signal, of the walk over that trace.

    Returns:
        One Growth for each chain of at least two blocks, longest first; none for a model without repeated modules.
    """
    return tuple(_growth(trace, signals, chain) for chain in chains(trace))


def _growth(trace: Trace, signals: Mapping[int, Signal], chain: Sequence[Passage]) -> Growth:
    borders = [*(block.enters for block in chain), chain[-1].leaves]
    states = [_state(trace, signals, value) for value in borders]
    rows = [
        {
            "block": block.path,
            "forward_growth": _ratio(after["forward_rms"], before["forward_rms"]),
            "backward_growth": _ratio(before["gradient_rms"], after["gradient_rms"]),
            **before,
        }
        for block, (before, after) in zip(chain, pairwise(states), strict=True)
    ]
    return Growth(
        module_type=trace.modules[chain[0].path],
        rows=tuple(rows),
        forward_total=_ratio(states[-1]["forward_rms"], states[0]["forward_rms"]),
        backward_total=_ratio(states[0]["gradient_rms"], states[-1]["gradient_rms"]),
        depth_scale=_depth_scale([state["overlap"] for state in states]),
    )


def _state(trace: Trace, signals: Mapping[int, Signal], value: int) -> dict[str, float | None]:
    signal, gradient = signals.get(value), signals.get(trace.gradients.get(value, -1))
    return {
        "forward_rms": None if signal is None else signal.rms,
        "gradient_rms": None if gradient is None else gradient.rms,
        "overlap": None if signal is None else signal.overlap,
    }


def _ratio(after: float | None, before: float | None) -> float | None:
    return None if after is None or not before else after / before


def _depth_scale(overlaps: Sequence[float | None]) -> float | None:
    # Exponential near 1: far from it the approach is not yet exponential, at 1e-7 it is rounding.
    points = [(i, math.log(1 - c)) for i, c in enumerate(overlaps) if c is not None and 1e-7 < 1 - c < 0.3]
    if len(points) < _POINTS:
        return None
    x, y = np.array(points).T
    slope, offset = np.polyfit(x, y, 1)
    straight = 1 - float(np.sum((y - slope * x - offset) ** 2)) / max(float(np.sum((y - y.mean()) ** 2)), 1e-300)
    return -1 / float(slope) if slope < 0 and straight >= _STRAIGHT else None
