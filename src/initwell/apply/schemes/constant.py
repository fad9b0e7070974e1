"""Every weight the same number; the caller's with ``constant(value)`` as a scheme."""

from initwell.apply.schemes.base import Entry
from initwell.apply.schemes.everywhere import Everywhere
from initwell.initializers.basic import constant

# As a bare name it needs some value; Caffe's ReLU networks took 0.1 for biases.
ENTRIES = (
    Entry(
        "constant", lambda: Everywhere(constant(0.1)), "every weight 0.1; another value: initializers.basic.constant"
    ),
)
