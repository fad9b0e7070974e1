"""Pairs of features turned by known angles, as complex numbers: rotary embeddings as ``view_as_complex(x) * f``.

With z = x₁ + i·x₂ and w = f·z, f known, the moments of complex values are E[z z'*], and

    E[w w'*] = E[z z'*] · Re(f f'*)        on average over the pairs that a pattern has

which of |f| = 1 is the average cosine of the angle between two places. f stays as it is in the backward, but for its
sign: a gradient is turned back. Assumption: the two of a pair are of one law and have nothing in common, so that turned
ones are of one size again, and E[z z'] = 0.
"""

from functools import partial

import torch
from torch import Tensor

from initwell.propagate.given.measured import measured
from initwell.propagate.moments.atoms import together
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.rules.branch import multiplied
from initwell.propagate.table import Call, UnknownSignalError
from initwell.trace.trace import Op, Trace, ValueRef

# Of known numbers whose moduli differ by less, what is turned keeps its length.
_ROUNDING = 1e-3
_ONLY_KNOWN = "complex numbers times others that are not known"


def is_complex(trace: Trace, value: int) -> bool:
    """Whether a value is of complex numbers."""
    return trace.values[value].dtype.startswith("complex")


def is_turn(trace: Trace, op: Op) -> bool:
    """Whether an op multiplies complex numbers by known ones."""
    known = [i in trace.folded.tensors for i in op.inputs]
    return op.functional == "aten.mul" and is_complex(trace, op.outputs[0]) and sorted(known) == [False, True]


def turned(call: Call) -> Signal | None:
    """Multiply complex numbers by known ones; None where that is not what happens.

    Args:
        call: of a product.

    Raises:
        UnknownSignalError: complex numbers times what is not known.
    """
    if not is_complex(call.trace, call.op.outputs[0]):
        return None
    for name, other in (("other", "self"), ("self", "other")):
        known, ref = call.value(name), call[name]
        if known is None or not isinstance(ref, ValueRef) or not call.has(other):
            continue
        work = partial(_turns, known, call.values.sample(ref.id))
        z, factor = together(call.signal(other), call.values.once(f"turns of {ref.id}", work), call.shape())
        return replace(multiplied(z, factor), gaussian=z.gaussian and _is_even(known))
    raise UnknownSignalError(_ONLY_KNOWN)


def _turns(known: Tensor, sample: int | None) -> Signal:
    """Return E[f f'*] of known complex numbers, and the mean of their real parts."""
    real, imaginary = (measured(part.contiguous(), sample=sample) for part in (known.real, known.imag))
    return real.changed(real.moments + imaginary.moments, real.means)


def _is_even(known: Tensor) -> bool:
    sizes = torch.abs(known)
    return bool(sizes.max() - sizes.min() <= _ROUNDING * sizes.max())
