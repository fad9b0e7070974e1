"""Where the samples of a batch become alike: the depth from which on their overlap is next to 1."""

import math
from collections.abc import Sequence

from initwell.records import Row
from initwell.trace.ops import CONTRACTIONS
from initwell.trace.trace import Trace, functional

ALIKE = 0.99
"""The overlap from which on samples count as indistinguishable: their difference is at most 0.14 of their size."""


def overlap_depth(trace: Trace, rows: Sequence[Row]) -> int | None:
    """Return at which row, counted from 1, samples become alike for good.

    That is the first layer's output (a product with weights, or of two activations) whose overlap, and that of all
    later ones, is above ``ALIKE``: a gate or a softmax in passing may be alike for all samples and still the signal
    is not. Values that no input reaches are left out.

    Args:
        trace: of the model.
        rows: of its prediction.

    Returns:
        The row's number; None where samples stay apart, or where the last overlap is not known.
    """
    moving = trace.dependents(trace.inputs.values())
    found = None
    for number, row in enumerate(rows, 1):
        if row["value"] not in moving or row["path"] == "(loss)" or functional(row["op"]) not in CONTRACTIONS:
            continue
        if row["overlap"] is None or row["overlap"] < ALIKE:
            found = None
        elif found is None:
            found = number
    return found


def overlap_note(rows: Sequence[Row], depth: int | None) -> list[str]:
    """Say in words where samples become alike; nothing where they stay apart."""
    if depth is None:
        return []
    row = rows[depth - 1]
    place = f"{row['path'] or 'the model itself'} ({row['op']}, row {depth} of {len(rows)})"
    apart = math.sqrt(max(2 * (1 - row["overlap"]), 0.0))
    return [
        f"Samples become indistinguishable: from {place} on, the overlap between them is above {ALIKE}. "
        f"It is {row['overlap']:.6g} there: two samples differ by {apart:.2g} of their size."
    ]
