"""randn/√n, the calibrated rule of the tutorials."""

from initwell.apply.schemes.base import Entry
from initwell.apply.schemes.everywhere import Everywhere
from initwell.initializers.scaling import inverse_sqrt

ENTRIES = (Entry("inverse_sqrt", lambda: Everywhere(inverse_sqrt()), "randn / √fan_in"),)
