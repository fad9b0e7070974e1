"""Products of three operands, summed over some dimensions: bilinear layers and their gradients.

y_no = Σ_ij a_ni W_oij b_nj, and its gradients, are one op with other dimensions. Of independent operands the moments
multiply, and the sum over two dimensions is that over two contracted axes.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from initwell.propagate.moments.atoms import together
from initwell.propagate.moments.signal import Signal
from initwell.propagate.rules.branch import multiplied
from initwell.propagate.rules.shape import summed
from initwell.propagate.table import Call, Rule


def opened(x: Signal, dims: Sequence[int]) -> Signal:
    """Put dimensions of length 1 at these places of the result."""
    for dim in sorted(dims):
        x = x.regrouped((*x.dims[:dim], (), *x.dims[dim:]), x.moments, x.means)
    return x


def _trilinear(call: Call) -> Sequence[Signal]:
    a, b, c = (opened(call.signal(f"i{i}"), call[f"expand{i}"]) for i in (1, 2, 3))
    shape = np.broadcast_shapes(a.shape, b.shape, c.shape)
    product = multiplied(*together(multiplied(*together(a, b, shape)), c, shape))
    return [summed(product, call["sumdim"], keep=False, mean=False)]


RULES: Mapping[str, Rule] = {"aten._trilinear": _trilinear}
