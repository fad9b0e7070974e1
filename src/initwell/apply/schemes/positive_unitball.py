"""Positive weights that sum to 1 for every output unit."""

from initwell.apply.schemes.base import Entry
from initwell.apply.schemes.everywhere import Everywhere
from initwell.initializers.structured import positive_unitball

ENTRIES = (
    Entry("positive_unitball", lambda: Everywhere(positive_unitball()), "positive weights that sum to 1 for each unit"),
)
