"""Every weight 0: the mistake that breaks no symmetry, for comparison."""

from initwell.apply.schemes.base import Entry
from initwell.apply.schemes.everywhere import Everywhere
from initwell.initializers.basic import zeros

ENTRIES = (Entry("zeros", lambda: Everywhere(zeros()), "every weight 0; units never tell themselves apart"),)
