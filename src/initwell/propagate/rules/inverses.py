"""1/x, 1/√x and log x of values that may come near 0, where these have no moments.

Assumption: what is at least two standard deviations away from 0 is so for the most part; its tail towards 0 is cut.
"""

import numpy as np

from initwell.propagate.laws.averages import is_average_of_squares, spanned
from initwell.propagate.laws.functions import Function, as_image, composed, evaluated, line
from initwell.propagate.laws.gaussian import variances
from initwell.propagate.moments.signal import Image, Pointwise, Signal, merged_fidelity
from initwell.propagate.table import UnknowableError, UnknownSignalError

# By how much the second moment may grow where the tail is cut at half the distance from 0.
_BY_TAIL = 1.5
_TAIL = "the tail towards 0 of what is divided by, cut at a twentieth of its size"


def inverted(x: Signal) -> Signal:
    """Return 1/x, where x keeps away from 0.

    Raises:
        UnknownSignalError: it does not, so that 1/x has no second moment.
    """
    return decreasing(Function(lambda u: 1 / u), x, "a division by what may be 0")


def decreasing(phi: Pointwise, x: Signal, why: str) -> Signal:
    """Apply 1/x, 1/√x or log x, which have no moments where x may be 0.

    An average of squares is positive, and taken under its gamma law. Of any other x that stays two standard deviations
    away from 0 the tail is cut at a twentieth of its mean, and that is said. Where the cut makes the second moment, as
    its growth from a cut at a tenth shows, nothing is known of it.

    Args:
        phi: the function.
        x: what it is applied to.
        why: what to say where x may be 0.

    Raises:
        UnknownSignalError: x may be 0.
        UnknowableError: it is near 0 so often that the second moment is made there.
    """
    image = as_image(x)
    if image.base is not None or image.pre.dims != x.dims:
        image = Image(line(1.0), x)
    if is_average_of_squares(image.pre) and (image.phi.fn(spanned(image.pre)) > 0).all():
        return merged_fidelity(evaluated(Image(composed(phi, image), image.pre)), x)
    spread, centre = np.sqrt(variances(image.pre)).reshape(-1, 1), image.pre.means.reshape(-1, 1)
    near, far, all_of_it = (image.phi.fn(centre + spread * np.linspace(-r, r, 241)) for r in (2.0, 5.0, 10.0))
    sign = 1.0 if near.mean() > 0 else -1.0
    # By segment, the least of them: where one is small throughout, so is what stands there.
    level = float(np.median(sign * near, axis=1).min())
    if (sign * near).min() <= 0.05 * level or level <= 0:
        raise UnknownSignalError(why)
    if (sign * all_of_it).min() > 0.05 * level:
        return merged_fidelity(evaluated(Image(composed(phi, image), image.pre)), x)
    found = merged_fidelity(_cut_at(phi, image, sign * 0.05 * level), x)
    if (sign * far).min() > 0.05 * level:
        return found
    if found.q > _BY_TAIL * _cut_at(phi, image, sign * 0.1 * level).q:
        raise UnknowableError(f"{why}, most of whose size would come from values near that")
    return found.approximate(_TAIL)


def _cut_at(phi: Pointwise, image: Image, floor: float) -> Signal:
    """Apply φ to a value that is kept beyond a number on its own side of 0."""
    keep = np.maximum if floor > 0 else np.minimum
    cut = composed(Function(lambda u: keep(u, floor)), image)
    return evaluated(Image(composed(phi, Image(cut, image.pre)), image.pre))
