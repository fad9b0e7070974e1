"""Orthogonal matrices, one for each group and packed part."""

from initwell.apply.schemes.base import Entry
from initwell.apply.schemes.everywhere import Everywhere
from initwell.initializers.orthogonal import orthogonal

ENTRIES = (Entry("orthogonal", lambda: Everywhere(orthogonal()), "orthogonal matrices, one a group or packed part"),)
