"""Upsampling filters for transposed convolutions; a model with other weights needs rules for them."""

from initwell.apply.schemes.base import Entry
from initwell.apply.schemes.everywhere import Everywhere
from initwell.initializers.structured import bilinear

ENTRIES = (Entry("bilinear", lambda: Everywhere(bilinear()), "upsampling filters; other shapes are refused"),)
