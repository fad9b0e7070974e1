"""A normal cut at two standard deviations, std 0.02 after the cut."""

from initwell.apply.schemes.base import Entry
from initwell.apply.schemes.everywhere import Everywhere
from initwell.initializers.basic import truncated_normal

ENTRIES = (
    Entry(
        "truncated_normal", lambda: Everywhere(truncated_normal()), "normal cut at two sigma, std 0.02 after the cut"
    ),
)
