"""N(0, 0.01²), whatever the fan."""

from initwell.apply.schemes.base import Entry
from initwell.apply.schemes.everywhere import Everywhere
from initwell.initializers.basic import normal

ENTRIES = (Entry("normal", lambda: Everywhere(normal()), "N(0, 0.01²), whatever the fan"),)
