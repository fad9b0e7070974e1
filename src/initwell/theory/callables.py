"""Any Python callable as an activation: over NumPy arrays, PyTorch tensors or single numbers."""

import copy
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from initwell.errors import ArgumentError
from initwell.theory.activation import Activation, Array, Function
from initwell.theory.kinks import DENSE, Kinks, find_kinks

_NOT_POINTWISE = "A gain is defined for a function that acts on every element by itself; pass the pointwise part of it."


@contextmanager
def _generators_kept() -> Iterator[None]:
    # A callable that draws random numbers is refused, and must not have moved anybody's generator.
    torch = sys.modules.get("torch")
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    state = torch.get_rng_state() if torch else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        if torch:
            torch.set_rng_state(state)


def _through_numpy(fn: Callable[..., Any]) -> Function:
    def evaluate(x: Array) -> Array:
        y = fn(x.copy())
        if not isinstance(y, (np.ndarray, np.generic)):
            raise TypeError(f"it returned a {type(y).__name__}, not an array")
        return np.asarray(y)

    return evaluate


def _through_torch(fn: Callable[..., Any]) -> Function:
    torch: Any = sys.modules["torch"]

    def evaluate(x: Array) -> Array:
        with torch.no_grad():
            y = fn(torch.from_numpy(np.array(x)))
        if not isinstance(y, torch.Tensor):
            raise TypeError(f"it returned a {type(y).__name__}, not a tensor")
        return np.asarray(y.detach().cpu().numpy())

    return evaluate


def _through_numbers(fn: Callable[..., Any]) -> Function:
    def evaluate(x: Array) -> Array:
        values = [fn(v) for v in np.ravel(x).tolist()]
        return np.array([float(v) for v in values]).reshape(np.shape(x))

    return evaluate


def _own_derivative(fn: Callable[..., Any]) -> Function:
    torch: Any = sys.modules["torch"]

    def derivative(x: Array) -> Array:
        with torch.enable_grad():
            leaf = torch.from_numpy(np.array(x)).requires_grad_(True)
            y = fn(leaf.clone())  # which an in-place function may overwrite
            if not y.requires_grad:
                return np.zeros_like(x)
            (slope,) = torch.autograd.grad(y.sum(), leaf, allow_unused=True)
        return np.zeros_like(x) if slope is None else np.asarray(slope.numpy())

    return derivative


# Weights of f(x + kh) − f(x − kh), k = 1 … 4, over h: orders four, six and eight.
_STENCILS = (
    np.array([2 / 3, -1 / 12, 0.0, 0.0]),
    np.array([3 / 4, -3 / 20, 1 / 60, 0.0]),
    np.array([4 / 5, -1 / 5, 4 / 105, -1 / 280]),
)
# Ascending: each step is held against the best before it.
_STEPS = (1e-6, 1e-5, 1e-4, 0.001, 0.003, 0.01, 0.03, 0.1)


def numerical_derivative(fn: Function, kinks: tuple[float, ...]) -> Function:
    """Return the derivative of ``fn`` by central differences that never reach across a kink.

    Args:
        fn: φ.
        kinks: where it is not smooth.

    Returns:
        φ′ to about 1e-12 of the local size of φ; of several steps the one whose sixth and eighth order agree best,
        among those that the shorter ones bear out.
    """
    places = np.array([-np.inf, *kinks, np.inf])

    def derivative(x: Array) -> Array:
        flat = np.ravel(x)
        index = np.searchsorted(places, flat, side="left")
        room = np.minimum(flat - places[index - 1], places[index] - flat) / 4.01
        room = np.maximum(room, 1e-13 * np.maximum(1.0, np.abs(flat)))
        best, best_error = np.zeros_like(flat), np.full_like(flat, np.inf)
        for step in _STEPS:
            h = np.minimum(step * np.maximum(1.0, np.abs(flat)), room)
            slope, error = _difference(fn, flat, h)
            # The orders may agree by chance where a step takes in a whole period of φ; shorter steps give that away.
            better = (error < best_error) & (np.abs(slope - best) <= 10 * (error + best_error))
            best, best_error = np.where(better, slope, best), np.where(better, error, best_error)
        return np.asarray(best.reshape(np.shape(x)))

    return derivative


def _difference(fn: Function, x: Array, h: Array) -> tuple[Array, Array]:
    # Slope by the eighth order, and its error as the lower orders and rounding tell it.
    offsets = h[:, None] * np.arange(1, 5)
    above = fn((x[:, None] + offsets).ravel()).reshape(offsets.shape)
    below = fn((x[:, None] - offsets).ravel()).reshape(offsets.shape)
    fourth, sixth, eighth = ((above - below) @ s / h for s in _STENCILS)
    error = np.abs(eighth - sixth) + 1e-3 * np.abs(sixth - fourth) + 1e-16 * np.max(np.abs(above), axis=1) / h
    return eighth, error


def _readers(fn: Callable[..., Any]) -> list[tuple[str, Function]]:
    readers = [("NumPy arrays", _through_numpy(fn)), ("numbers", _through_numbers(fn))]
    # First, for autograd knows the derivative exactly, and that is the one that training uses.
    return [("PyTorch tensors", _through_torch(fn)), *readers] if "torch" in sys.modules else readers


def _first_that_works(fn: Callable[..., Any], name: str, probe: Array) -> tuple[str, Function]:
    failures: list[tuple[str, Exception]] = []
    for kind, reader in _readers(fn):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the wrong kind of argument, which is what is being tried
                if kind == "PyTorch tensors":
                    # NumPy's functions take a tensor too, but not one that wants its gradient.
                    _own_derivative(fn)(probe)
                reader(probe)
        except Exception as failure:  # whatever a user's function may raise
            failures.append((kind, failure))
        else:
            return kind, reader
    told = "; ".join(f"with {kind}: {type(failure).__name__}: {failure}" for kind, failure in failures)
    raise ArgumentError("activation", name, f"It takes no array of numbers ({told}).") from failures[0][1]


def _check_pointwise(fn: Function, name: str, probe: Array) -> float:
    # Returns the relative precision of its values.
    y = fn(probe)
    if y.shape != probe.shape:
        raise ArgumentError("activation", f"{name}, which turns shape {probe.shape} into {y.shape}", _NOT_POINTWISE)
    if np.iscomplexobj(y):
        raise ArgumentError("activation", f"{name}, which returns complex numbers", "Return real numbers.")
    if not np.all(np.isfinite(y)):
        where = float(probe[~np.isfinite(y)][0])
        got = f"{name}, which gives {float(y[~np.isfinite(y)][0])} at {where:.4g}"
        raise ArgumentError("activation", got, f"It must be finite for every input within ±{DENSE:g}.")
    resolution = float(np.finfo(y.dtype).eps) if np.issubdtype(y.dtype, np.floating) else 2.3e-16
    if not np.array_equal(y, fn(probe)):
        cure = "It gives another value each time; pass it without its randomness (evaluation mode)."
        raise ArgumentError("activation", f"{name}, which is random", cure)
    slack = 64 * resolution * float(np.max(np.abs(y)))
    order = np.random.default_rng(0).permutation(probe.size)
    moved = fn(probe.ravel()[order].reshape(probe.shape)).ravel()
    y, moved = y.astype(np.float64), moved.astype(np.float64)  # of whole numbers and truth values there is no −
    changed = probe.copy()
    changed[3, 5] += 1.0
    same = np.delete(np.abs(fn(changed).astype(np.float64) - y).ravel(), 3 * probe.shape[1] + 5)
    if not np.allclose(moved, y.ravel()[order], rtol=0, atol=slack) or not np.allclose(same, 0, atol=slack):
        raise ArgumentError("activation", f"{name}, which mixes elements", _NOT_POINTWISE)
    return max(resolution, float(np.finfo(np.float64).eps))


def _copied(module: Any) -> Any:
    try:
        return copy.deepcopy(module).to("cpu").double()
    except Exception as failure:  # parameters on meta, or a module that refuses to be copied
        name = type(module).__name__
        cure = "Its parameters need values to be evaluated; pass the activation by name or as a function."
        raise ArgumentError("activation", f"{name}, which cannot be copied to the CPU ({failure})", cure) from failure


def _quiet(fn: Function) -> Function:
    def evaluate(x: Array) -> Array:
        with np.errstate(all="ignore"), _generators_kept():
            return np.asarray(fn(x), dtype=np.float64)

    return evaluate


def from_callable(fn: Callable[..., Any]) -> Activation:
    """Make an activation of any pointwise Python callable.

    It is tried with PyTorch tensors if PyTorch is loaded, then with NumPy arrays, then number by number, always in
    double precision. A module is copied first, so that calling it changes nothing.

    Args:
        fn: a function of one argument, or a module.

    Returns:
        The activation, its kinks and jumps located. Over PyTorch its derivative is autograd's, which is what training
        would use, straight-through estimators included; otherwise it is taken numerically.

    Raises:
        ArgumentError: it fails, is not pointwise, is random, or is not finite within ±16.

    >>> from_callable(lambda x: np.maximum(x, 0.25)).kinks
    (0.25,)
    """
    torch: Any = sys.modules.get("torch")
    if torch is not None and isinstance(fn, torch.nn.Module):
        fn = _copied(fn)
    name = getattr(fn, "__name__", type(fn).__name__)
    # No two alike and none at 0, in two axes so that a softmax over either is caught.
    probe = np.linspace(-DENSE, DENSE, 16 * 24).reshape(16, 24) + 0.0031
    with _generators_kept(), np.errstate(all="ignore"):
        kind, reader = _first_that_works(fn, name, probe)
        resolution = _check_pointwise(reader, name, probe)
    phi = _quiet(reader)
    found: Kinks = find_kinks(phi, resolution)
    over_torch = kind == "PyTorch tensors"
    slope = _quiet(_own_derivative(fn)) if over_torch else numerical_derivative(phi, found.kinks)
    notes = [f"a callable over {kind}, derivative by {'autograd' if over_torch else 'differences'}"]
    if resolution > 1e-15:
        notes.append(f"its values carry only a relative precision of {resolution:.1g}")
    return Activation(name, phi, slope, found.kinks, found.jumps, precision=resolution, notes=tuple(notes))
