"""Caffe's fillers as schemes, with Caffe's own defaults; its biases start at 0 too."""

from collections.abc import Callable

from initwell.apply.schemes.base import Entry
from initwell.apply.schemes.everywhere import Everywhere
from initwell.initializers import caffe
from initwell.initializers.base import Initializer


def _entry(filler: Callable[[], Initializer], summary: str) -> Entry:
    return Entry(filler().name, lambda: Everywhere(filler()), summary)


ENTRIES = (
    _entry(caffe.Constant, "Caffe's constant filler: 0"),
    _entry(caffe.Uniform, "Caffe's uniform filler: U(0, 1), not centred"),
    _entry(caffe.Gaussian, "Caffe's gaussian filler: N(0, 1)"),
    _entry(caffe.PositiveUnitball, "Caffe's positive_unitball filler: each row sums to 1"),
    _entry(caffe.Xavier, "Caffe's xavier filler: variance 1/fan_in, LeCun's rule"),
    _entry(caffe.MSRA, "Caffe's msra filler: variance 2/fan_in"),
    _entry(caffe.Bilinear, "Caffe's bilinear filler; shapes that are not square kernels are refused"),
)
