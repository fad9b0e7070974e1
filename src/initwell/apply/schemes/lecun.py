"""LeCun: variance 1/fan_in, which keeps the signal of a linear layer."""

from initwell.apply.schemes.base import Entry
from initwell.apply.schemes.everywhere import Everywhere
from initwell.initializers.scaling import lecun

ENTRIES = (Entry("lecun", lambda: Everywhere(lecun()), "variance 1/fan_in, normal"),)
