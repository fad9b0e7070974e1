"""Martens' sparse rule: fifteen inputs for each unit."""

from initwell.apply.schemes.base import Entry
from initwell.apply.schemes.everywhere import Everywhere
from initwell.initializers.structured import sparse

ENTRIES = (Entry("sparse", lambda: Everywhere(sparse()), "exactly 15 inputs for each unit"),)
