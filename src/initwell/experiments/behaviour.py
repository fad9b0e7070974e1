"""What a function, class or object of the caller's does, as text that is the same in every process.

A kept run must not be taken for that of another network, and what tells two networks apart may stand in code alone: a
factor in ``forward``, a number that a closure holds. Source text would not do: that of a lambda is the whole line it
stands in, and at a prompt there is none. So functions are told by their bytecode and by what they hold and name.
"""

import functools
import hashlib
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(...))
_DEPTH = 12
_Text = Callable[[Any], str]


def behaviour(value: object) -> str:
    """Return text that differs where two values do different things.

    Libraries count by name alone; so does what lies deeper than twelve levels.

    >>> behaviour(functools.partial(round, ndigits=1)) == behaviour(functools.partial(round, ndigits=2))
    False
    """
    return _text(value, ())


def model_behaviour(model: nn.Module) -> str:
    """Return what tells a model from another of the same layers: its own classes, and the plain values they hold."""
    own = [(name, module) for name, module in model.named_modules() if not _library(type(module).__module__)]
    kinds = {type(module).__qualname__: behaviour(type(module)) for _, module in own}
    held = {name: {k: v for k, v in vars(module).items() if _is_plain(v)} for name, module in own}
    return f"{kinds} {held}"


def _is_plain(value: object) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, (tuple, list)) else isinstance(value, _PLAIN)


def _text(value: Any, above: tuple[int, ...]) -> str:
    if isinstance(value, _PLAIN):
        return repr(value)
    if id(value) in above or len(above) > _DEPTH:
        return f"<{type(value).__qualname__}>"
    inner = functools.partial(_text, above=(*above, id(value)))
    for kind, described in _KINDS:
        if isinstance(value, kind):
            return described(value, inner)
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    return f"{name} {inner(type(value))} {inner(getattr(value, '__dict__', {}))}"


def _function(value: types.FunctionType, inner: _Text) -> str:
    cells = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
    if _library(value.__module__):
        return f"{value.__module__}.{value.__qualname__}{inner(cells)}"
    named = {n: value.__globals__[n] for n in sorted(_names(value.__code__)) if n in value.__globals__}
    used = {n: v for n, v in named.items() if isinstance(v, (*_PLAIN, types.FunctionType, type))}
    return f"{inner(value.__code__)}{inner((value.__defaults__, value.__kwdefaults__, cells, used))}"


def _names(code: types.CodeType) -> set[str]:
    inside = (_names(c) for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*inside)


def _class(value: type, inner: _Text) -> str:
    own = [c for c in value.__mro__ if not _library(c.__module__)]
    members = {f"{c.__qualname__}.{n}": m for c in own for n, m in vars(c).items() if n not in _BOOKKEEPING}
    return f"{value.__module__}.{value.__qualname__} {inner(members)}"


_BOOKKEEPING = ("__dict__", "__weakref__", "__module__", "__doc__", "__firstlineno__", "__static_attributes__")


def _tensor(value: Any, inner: _Text) -> str:
    array = value.detach().cpu().contiguous().view(-1).numpy(force=True) if isinstance(value, Tensor) else value
    return f"{array.dtype}{value.shape}{hashlib.blake2b(array.tobytes(), digest_size=8).hexdigest()}"


def _library(module: str) -> bool:
    root = module.partition(".")[0]
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    installed = "site-packages" in file or "dist-packages" in file
    return root in sys.stdlib_module_names or root in ("torch", "initwell") or installed


# The first that fits describes a value.
_KINDS: tuple[tuple[Any, Callable[[Any, _Text], str]], ...] = (
    (types.CodeType, lambda v, inner: f"{v.co_code.hex()}{v.co_names}{inner(v.co_consts)}"),
    (functools.partial, lambda v, inner: f"partial{inner((v.func, v.args, v.keywords))}"),
    (types.MethodType, lambda v, inner: f"method{inner((v.__func__, v.__self__))}"),
    (types.FunctionType, _function),
    (types.BuiltinFunctionType, lambda v, inner: str(v.__qualname__)),
    (type, _class),
    ((staticmethod, classmethod), lambda v, inner: inner(v.__func__)),
    (property, lambda v, inner: inner((v.fget, v.fset))),
    ((Tensor, np.ndarray), _tensor),
    (Mapping, lambda v, inner: "{" + ", ".join(f"{inner(k)}: {inner(x)}" for k, x in v.items()) + "}"),
    ((tuple, list), lambda v, inner: "(" + ", ".join(map(inner, v)) + ")"),
    ((set, frozenset), lambda v, inner: "{" + ", ".join(sorted(map(inner, v))) + "}"),
)
