"""The one contraction rule, behind linear layers, q·kᵀ, attention·v and every gradient and weight gradient of them.

Let y_{mn} = Σ_k a_{mk} b_{kn}, with a independent of b and k of length K. Then E[y y'] is a sum over pairs (k, k'):
K of them agree and K(K−1) differ, and on each a contributes its own moment and b its own, so

    moments(y) = K · a[k agrees] ⊗ b[k agrees] + K(K−1) · a[k differs] ⊗ b[k differs]

Free axes stay as they are (⊗), batched axes are shared by all three, and a contracted dimension of several atoms is
this rule once for each. Assumption: a and b are independent; the sum is Gaussian when K is not small.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from initwell.propagate.atoms import matched, permuted, together
from initwell.propagate.rules.branch import added
from initwell.propagate.signal import Signal, merged_fidelity
from initwell.propagate.table import Call, Rule


def contract(a: Signal, b: Signal, over: Sequence[tuple[int, int]], batch: Sequence[tuple[int, int]] = ()) -> Signal:
    """Contract two independent signals.

    Args:
        a: the first.
        b: the second.
        over: pairs of dimensions to sum over, (of a, of b).
        batch: pairs of dimensions that they share.

    Returns:
        Dimensions: the shared ones, the rest of a, the rest of b.

    >>> from initwell.propagate.signal import independent
    >>> contract(independent((4, 8), 1.0), independent((8, 5), 0.5), [(1, 0)]).q
    4.0
    """
    a, b = matched(a, b, [*over, *batch])
    names_a = list(range(len(a.atoms)))
    names_b = list(range(100, 100 + len(b.atoms)))
    for da, db in (*over, *batch):
        for i, j in zip(a.axes([da]), b.axes([db]), strict=True):
            names_b[j] = names_a[i]
    summed_a, summed_b = [d for d, _ in over], [d for _, d in over]
    shared = [d for d, _ in batch]
    free_a = [d for d in range(len(a.dims)) if d not in summed_a and d not in shared]
    free_b = [d for d in range(len(b.dims)) if d not in summed_b and d not in [d for _, d in batch]]
    out = [names_a[i] for i in (*a.axes(shared), *a.axes(free_a))] + [names_b[i] for i in b.axes(free_b)]
    operands: list[object] = [a.moments, names_a, b.moments, names_b]
    means: list[object] = [a.means, names_a, b.means, names_b]
    for i in a.axes(summed_a):
        counts = a.atoms[i].patterns
        operands += [counts.counts, [names_a[i]]]
        means += [np.array(counts.parts, float), [names_a[i]]]
    dims = tuple(a.dims[d] for d in (*shared, *free_a)) + tuple(b.dims[d] for d in free_b)
    found = a.changed(_einsum(operands, out), _einsum(means, out), dims=dims, gaussian=True)
    return merged_fidelity(found, b)


def _einsum(operands: Sequence[object], out: Sequence[int]) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    # NumPy wants labels below 52.
    labels = {label: i for i, label in enumerate(dict.fromkeys(x for o in operands[1::2] for x in o))}  # type: ignore[attr-defined]
    renamed: list[object] = []
    for array, names in zip(operands[::2], operands[1::2], strict=True):
        renamed += [array, [labels[n] for n in names]]  # type: ignore[attr-defined]
    return np.asarray(np.einsum(*renamed, [labels[n] for n in out]))  # type: ignore[call-overload]


def _mm(call: Call) -> Sequence[Signal]:
    return [contract(call.signal("self"), call.signal("mat2"), [(1, 0)])]


def _bmm(call: Call) -> Sequence[Signal]:
    return [contract(call.signal("self"), call.signal("mat2"), [(2, 1)], [(0, 0)])]


def _addmm(call: Call) -> Sequence[Signal]:
    product = contract(call.signal("mat1"), call.signal("mat2"), [(1, 0)])
    return [_plus(product, call)]


def _baddbmm(call: Call) -> Sequence[Signal]:
    product = contract(call.signal("batch1"), call.signal("batch2"), [(2, 1)], [(0, 0)])
    return [_plus(product, call)]


def _plus(product: Signal, call: Call) -> Signal:
    alpha, beta = float(call["alpha"]), float(call["beta"])
    if beta == 0:
        return added(product, product, alpha, 0.0)
    one, two = together(product, call.signal("self"), call.shape())
    return added(one, two, alpha, beta, gaussian=True)


def _linear(call: Call) -> Sequence[Signal]:
    x, w = call.signal("input"), call.signal("weight")
    y = contract(x, w, [(len(x.dims) - 1, 1)])
    if call["bias"] is None:
        return [y]
    return [added(*together(y, call.signal("bias"), call.shape()), gaussian=True)]


def _mv(call: Call) -> Sequence[Signal]:
    return [contract(call.signal("self"), call.signal("vec"), [(1, 0)])]


def transposed(signal: Signal) -> Signal:
    """Swap the last two dimensions."""
    order = list(range(len(signal.dims)))
    order[-2:] = order[:-3:-1]
    return permuted(signal, order)


RULES: Mapping[str, Rule] = {
    "aten.mm": _mm,
    "aten.bmm": _bmm,
    "aten.addmm": _addmm,
    "aten.baddbmm": _baddbmm,
    "aten.linear": _linear,
    "aten.mv": _mv,
}
