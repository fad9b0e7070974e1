"""The larger and the smaller of two values, entry by entry, and which of them it is.

max(a, b) = (s + |d|)/2 with s = a + b and d = a − b. Of independent Gaussians a and b these are Gaussian, and by
Stein's lemma, for two entries,

    E[s |d'|] = E[s] E|d'| + Cov(s, d') E[sgn d'],      Cov(s, d') = Cov(a, a') − Cov(b, b')

so that all moments of max(a, b) are exact. Its gradient goes to a where d > 0 and to b where d < 0: a function of d.
Assumption: a and b are independent; of other than Gaussian values the larger is not known.
"""

from collections.abc import Callable, Mapping

import numpy as np

from initwell.propagate.laws.functions import Function, combined, evaluated, line, shared_images
from initwell.propagate.moments.atoms import together
from initwell.propagate.moments.by_pairs import by_pattern, over_pairs
from initwell.propagate.moments.segments import Array
from initwell.propagate.moments.signal import Image, Signal, merged_fidelity
from initwell.propagate.rules.branch import added, fixed, scaled
from initwell.propagate.rules.pointwise import applied
from initwell.propagate.table import Call, Rule, UnknownSignalError

_ABS, _SIGN = Function(np.abs, (0.0,)), Function(np.sign, (0.0,))


def larger(a: Signal, b: Signal) -> Signal:
    """Return max(a, b) of two independent Gaussian signals of the same atoms.

    >>> from initwell.propagate.moments.signal import independent, replace
    >>> z = replace(independent((4,), 1.0), gaussian=True)
    >>> found = larger(z, z)
    >>> round(found.q, 6), round(found.mean, 6), round(float(found.moments[1]), 6)  # 1, 1/√π, 1/π
    (1.0, 0.56419, 0.31831)
    """
    s, d = added(a, b), added(a, b, 1.0, -1.0)
    size, sign = applied(_ABS, d), applied(_SIGN, d)
    atoms, means = a.atoms, size.means
    apart = a.moments - over_pairs(atoms, a.means) - b.moments + over_pairs(atoms, b.means)
    signs = by_pattern(atoms, sign.means) + by_pattern(atoms, sign.means, second=True)
    crossed = over_pairs(atoms, s.means, means) + over_pairs(atoms, means, s.means) + apart * signs
    moments = (s.moments + size.moments + crossed) / 4
    return merged_fidelity(a.changed(np.asarray(moments), (s.means + means) / 2), b)


def _gaussians(call: Call) -> tuple[Signal, Signal]:
    a, b = together(call.signal("self"), call.signal("other"), call.shape())
    if not (a.gaussian and b.gaussian):
        raise UnknownSignalError("the larger of two different values")
    return a, b


def which(call: Call, how: Callable[[Array, float], Array]) -> Signal:
    """Return 1 where a comparison of two different values holds, and 0 elsewhere: a function of their difference.

    Args:
        call: of the comparison.
        how: it, of the difference and 0.
    """
    a, b = _gaussians(call)
    return evaluated(Image(Function(lambda u: np.asarray(how(u, 0.0), float), (0.0,)), added(a, b, 1.0, -1.0)))


def _larger(sign: float) -> Rule:
    def rule(call: Call) -> list[Signal]:
        a, b = call.signal("self"), call.signal("other")
        how = np.maximum if sign > 0 else np.minimum
        for x, y in ((a, b), (b, a)):
            if fixed(y) and x.shape == call.shape():
                return [applied(combined(line(1.0), line(0.0, y.mean), how), x)]
        images = shared_images(a, b)
        if images is None or images[0].base is not None or images[1].base is not None:
            a, b = _gaussians(call)
            return [scaled(larger(scaled(a, sign), scaled(b, sign)), sign)]
        return [evaluated(Image(combined(images[0].phi, images[1].phi, how), images[0].pre))]

    return rule


RULES: Mapping[str, Rule] = {"aten.maximum": _larger(1.0), "aten.minimum": _larger(-1.0)}
