"""Delta-orthogonal convolutions, orthogonal matrices elsewhere."""

from initwell.apply.schemes.base import Entry
from initwell.apply.schemes.by_kind import ByKind
from initwell.initializers.orthogonal import delta_orthogonal, orthogonal

ENTRIES = (
    Entry(
        "delta_orthogonal",
        lambda: ByKind(delta_orthogonal(), orthogonal()),
        "orthogonal at the centre tap of convolutions, orthogonal elsewhere",
    ),
)
