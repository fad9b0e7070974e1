"""Every weight 1."""

from initwell.apply.schemes.base import Entry
from initwell.apply.schemes.everywhere import Everywhere
from initwell.initializers.basic import ones

ENTRIES = (Entry("ones", lambda: Everywhere(ones()), "every weight 1; units never tell themselves apart"),)
