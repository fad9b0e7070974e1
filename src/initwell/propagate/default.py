"""The rules that initwell comes with, and the ops that need none."""

from functools import cache

from initwell.propagate.rules import (
    branch,
    contraction,
    embedding,
    loss,
    norm,
    parts,
    pointwise,
    pool,
    shape,
    softmax,
    taps,
)
from initwell.propagate.table import RuleTable

_FAMILIES = (branch, contraction, embedding, loss, norm, parts, pointwise, pool, shape, softmax, taps)
_IGNORED = {
    **dict.fromkeys(("aten.empty", "aten.empty_like", "aten.new_empty"), "memory without numbers"),
    **dict.fromkeys(("aten.arange", "aten.scalar_tensor"), "positions, not signal"),
}


@cache
def default_table() -> RuleTable:
    """Return the table of all rules.

    >>> "aten.addmm" in default_table().rules
    True
    """
    return RuleTable.build([family.RULES for family in _FAMILIES], _IGNORED)
