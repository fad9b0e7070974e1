"""Convolutions that pass their input on; a model with other weights needs rules for them."""

from initwell.apply.schemes.base import Entry
from initwell.apply.schemes.everywhere import Everywhere
from initwell.initializers.structured import dirac

ENTRIES = (
    Entry("dirac", lambda: Everywhere(dirac()), "convolutions that pass their input on; other weights are refused"),
)
