"""Orthogonal matrices scaled for layers that are not square; convolutions at their centre tap."""

from initwell.apply.schemes.base import Entry
from initwell.apply.schemes.everywhere import Everywhere
from initwell.initializers.orthogonal import scaled_uniform_orthogonal

ENTRIES = (
    Entry(
        "scaled_uniform_orthogonal",
        lambda: Everywhere(scaled_uniform_orthogonal()),
        "orthogonal, scaled by max(1, √(out/in)); convolutions as deltas",
    ),
)
