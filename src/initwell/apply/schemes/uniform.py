"""U(−0.05, 0.05), whatever the fan."""

from initwell.apply.schemes.base import Entry
from initwell.apply.schemes.everywhere import Everywhere
from initwell.initializers.basic import uniform

ENTRIES = (Entry("uniform", lambda: Everywhere(uniform()), "U(-0.05, 0.05), whatever the fan"),)
