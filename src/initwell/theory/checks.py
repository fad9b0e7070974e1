"""What every member of the catalogue must satisfy when it is built, so that a wrong constant cannot be used."""

import numpy as np

from initwell.theory.activation import Activation, Array
from initwell.theory.quadrature import expectation, standard_breaks

_POINTS = np.array([-7.3, -2.41, -1.13, -0.57, -0.211, 0.173, 0.617, 1.31, 2.29, 6.7])
_STEP = 1e-4


def _refuse(entry: Activation, what: str) -> None:
    raise ValueError(f"activation {entry}: {what}")


def _check_derivative(entry: Activation) -> None:
    distance = np.min(np.abs(_POINTS[:, None] - np.array([*entry.kinks, 1e9])), axis=1)
    x = _POINTS[distance > 2 * _STEP]
    slope = (entry.fn(x + _STEP) - entry.fn(x - _STEP)) / (2 * _STEP)
    if not np.allclose(entry.derivative(x), slope, rtol=1e-5, atol=1e-6):
        _refuse(entry, "its derivative is not that of its function")


def _check_closed_forms(entry: Activation) -> None:
    def integrand(z: Array) -> Array:
        phi, slope = entry.fn(z), entry.derivative(z)
        return np.stack([phi, phi * phi, slope * slope, phi * phi * (z * z - 1) / 2])

    values, _ = expectation(integrand, standard_breaks(entry.kinks, 1.0, 0.0))
    names = ("mean", "second_moment", "derivative_second_moment", "growth")
    for name, value in zip(names, values, strict=True):
        closed = entry.closed_forms.get(name)
        if closed and abs(closed(1.0) - value) > 1e-10 * max(1.0, abs(value)):
            _refuse(entry, f"closed form {name}(1) = {closed(1.0)!r}, quadrature {value!r}")
    for name, at_one in (("overlap", "second_moment"), ("derivative_overlap", "derivative_second_moment")):
        pair, single = entry.closed_forms.get(name), entry.closed_forms.get(at_one)
        if pair and single and abs(pair(1.0, 1.0) - single(1.0)) > 1e-10:
            _refuse(entry, f"closed form {name} at correlation 1 is not {at_one}")


def checked(entry: Activation) -> Activation:
    """Return ``entry`` if its derivative, symmetry and closed forms agree with its function.

    Args:
        entry: a pointwise activation or a gate; of a gate ψ was checked when it was built.

    Returns:
        The same record.

    Raises:
        ValueError: they contradict each other; names which and by how much.

    >>> from initwell.theory.catalogue_smooth import tanh
    >>> checked(tanh()).name
    'tanh'
    """
    if entry.gate is not None:
        checked(entry.gate)
        return entry
    if entry.odd and not np.array_equal(entry.fn(-_POINTS), -entry.fn(_POINTS)):
        _refuse(entry, "said to be odd and is not")
    _check_derivative(entry)
    if entry.closed_forms:
        _check_closed_forms(entry)
    return entry
