"""Find the activation that a name, a module, a function or a callable stands for."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from initwell.errors import ArgumentError, UnknownNameError
from initwell.theory import catalogue_gates, catalogue_piecewise, catalogue_smooth
from initwell.theory.activation import Activation
from initwell.theory.callables import from_callable
from initwell.theory.checks import checked
from initwell.theory.spellings import SPELLINGS, Spelling

__all__ = ["Activation", "activation", "activation_names"]


@cache
def _builders() -> Mapping[str, Callable[..., Activation]]:
    parts = (catalogue_piecewise.ENTRIES, catalogue_smooth.ENTRIES, catalogue_gates.ENTRIES)
    builders = {name: build for part in parts for name, build in part.items()}
    strange = {s.name for s in SPELLINGS} - set(builders)
    if len(builders) != sum(map(len, parts)) or strange:
        raise ValueError(f"the catalogue has a name twice, or spellings.py one it lacks: {sorted(strange)}")
    return builders


def _folded(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")


@cache
def _names() -> Mapping[str, str]:
    # Everything a user may write -> canonical name.
    table = {_folded(name): name for name in _builders()}
    for spelling in SPELLINGS:
        for written in spelling.aliases:
            if table.setdefault(_folded(written), spelling.name) != spelling.name:
                raise ValueError(f"spellings.py: {written!r} stands for two activations")
    return table


@cache
def _functions() -> Mapping[str, str]:
    return {f: s.name for s in SPELLINGS for f in s.functions}


def activation_names() -> tuple[str, ...]:
    """List the canonical names of the catalogue.

    >>> len(activation_names()) >= 40, "gelu" in activation_names()
    (True, True)
    """
    return tuple(_builders())


@cache
def _build(name: str, parameters: tuple[tuple[str, float], ...]) -> Activation:
    spelled = tuple(t for s in SPELLINGS if s.name == name for t in s.all())
    return checked(replace(_builders()[name](**dict(parameters)), torch=spelled))


def _named(name: str, parameters: Mapping[str, Any]) -> Activation:
    builder = _builders()[name]
    known = inspect.signature(builder).parameters
    for key, value in parameters.items():
        if key not in known:
            if not known:
                raise ArgumentError("parameters", repr(key), f"The activation {name!r} has no parameters.")
            raise UnknownNameError.among(f"parameter of {name}", key, known)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ArgumentError(f"{name} {key}", value, "Give a finite number.")
    values = {key: float(parameters.get(key, known[key].default)) for key in known}
    return _build(name, tuple(sorted(values.items())))


def _scalar(value: Any) -> float | None:
    # A parameter that is a tensor, such as PReLU's, counts by its root mean square: that gives E[φ²] and E[φ′²]
    # their exact averages over its channels.
    if isinstance(value, (int, float)):
        return float(value)
    if hasattr(value, "detach") and not getattr(value, "is_meta", False):
        slopes = value.detach().double()
        rms = math.sqrt(float((slopes * slopes).mean()))
        return math.copysign(rms, float(slopes.mean()))
    return None


def _module_spelling(kind: type, instance: Any) -> Spelling | None:
    for ancestor in kind.__mro__:
        spelled = f"{ancestor.__module__}.{ancestor.__qualname__}"
        for spelling in SPELLINGS:
            if spelled not in spelling.modules:
                continue
            if spelling.when and getattr(instance, spelling.when[0], None) != spelling.when[1]:
                continue
            # A subclass with a forward of its own may compute anything.
            same = getattr(kind, "forward", None) is getattr(ancestor, "forward", None)
            return spelling if same else None
    return None


def _from_function(spec: Any) -> str | None:
    # str() of an overload or its packet is 'aten.relu.default' or 'aten.relu'.
    if type(spec).__module__ == "torch._ops":
        return _from_text(str(spec))
    owner = getattr(spec, "__module__", None) or getattr(getattr(spec, "__objclass__", None), "__module__", None)
    if not isinstance(owner, str) or owner.split(".")[0] != "torch":
        return None
    return _functions().get(getattr(spec, "__name__", "").rstrip("_").removeprefix("special_"))


def _from_text(text: str) -> str | None:
    if text.startswith("aten."):
        return _functions().get(text.split(".")[1].rstrip("_"))
    return _names().get(_folded(text))


def _from_module(spec: Any, parameters: Mapping[str, Any]) -> Activation | None:
    kind = spec if isinstance(spec, type) else type(spec)
    instance = None if isinstance(spec, type) else spec
    spelling = _module_spelling(kind, instance)
    if spelling is None:
        return None
    known = {}
    for attribute, parameter in spelling.attributes:
        value = _scalar(getattr(instance, attribute, None))
        if value is not None:
            known[parameter] = value
    return _named(spelling.name, known | dict(parameters))


def activation(spec: Any, **parameters: float) -> Activation:
    """Find or make the activation that ``spec`` stands for.

    Args:
        spec: a name ("gelu", "LeakyReLU", "linear" or "aten.relu.default"), an ``Activation``, an ``nn.Module``
            instance or class, a function of PyTorch, or any pointwise callable over NumPy arrays, PyTorch tensors or
            numbers.
        **parameters: parameters by the catalogue's names, such as ``slope=0.2``; they override a module's own.

    Returns:
        The record of its function, derivative, kinks and closed forms.

    Raises:
        UnknownNameError: no activation or parameter of that name; lists the nearest.
        ArgumentError: a parameter out of range, or a callable that is not pointwise, not finite, random or failing.

    >>> str(activation("LeakyReLU", slope=0.2))
    'leaky_relu(slope=0.2)'
    """
    if isinstance(spec, str):
        name = _from_text(spec)
        if name is None:
            raise UnknownNameError.among("activation", spec, activation_names())
        return _named(name, parameters)
    found = spec if isinstance(spec, Activation) else _from_module(spec, parameters)
    if found is None:
        function = _from_function(spec)
        found = _named(function, parameters) if function else None
    if found is not None and not (parameters and found is spec):
        return found
    if parameters:
        cure = "Parameters go with a name or a module; bind a callable's own with functools.partial."
        raise ArgumentError("parameters", ", ".join(parameters), cure)
    if spec is None or not callable(spec) or isinstance(spec, type):
        cure = "Pass a name (see activation_names()), an nn.Module, a PyTorch function or a pointwise callable."
        raise ArgumentError("activation", spec, cure)
    return from_callable(spec)
