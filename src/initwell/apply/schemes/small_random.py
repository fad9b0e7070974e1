"""0.01·randn, the small random numbers of the tutorials."""

from initwell.apply.schemes.base import Entry
from initwell.apply.schemes.everywhere import Everywhere
from initwell.initializers.basic import small_random

ENTRIES = (Entry("small_random", lambda: Everywhere(small_random()), "0.01 · randn; dies out with depth"),)
