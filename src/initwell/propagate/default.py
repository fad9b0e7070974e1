"""The rules that initwell comes with, and the ops that need none."""

from functools import cache

from initwell.propagate.rules import (
    arithmetic,
    average,
    bilinear,
    contraction,
    cropping,
    deviation,
    distance,
    embedding,
    experts,
    extremes,
    fourier,
    gates,
    indexed,
    larger,
    loss,
    noise,
    norm,
    ordered,
    packed,
    parts,
    pointwise,
    pool,
    resample,
    scalar,
    shape,
    shut,
    softmax,
    taps,
    vector_norm,
    weight_norm,
    windows,
)
from initwell.propagate.table import RuleTable

_FAMILIES = (
    arithmetic,
    average,
    bilinear,
    contraction,
    cropping,
    deviation,
    distance,
    embedding,
    experts,
    extremes,
    fourier,
    indexed,
    gates,
    larger,
    loss,
    noise,
    norm,
    ordered,
    packed,
    parts,
    pointwise,
    pool,
    resample,
    scalar,
    shape,
    softmax,
    taps,
    vector_norm,
    weight_norm,
    windows,
)
_IGNORED = {
    **dict.fromkeys(
        ("aten.empty", "aten.empty_like", "aten.new_empty", "aten.new_empty_strided"), "memory without numbers"
    ),
}


@cache
def default_table() -> RuleTable:
    """Return the table of all rules.

    >>> "aten.addmm" in default_table().rules
    True
    """
    return RuleTable.build([shut.aware(family.RULES) for family in _FAMILIES], _IGNORED)
