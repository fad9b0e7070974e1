"""Which module is running: a stack kept by global forward hooks, removed on leaving."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook


class Place(NamedTuple):
    """A module in use: its dotted path, its type, and how often it had run before."""

    path: str
    module_type: str
    call: int


def type_name(module: object) -> str:
    """Return a type's full name.

    >>> type_name(nn.ReLU())
    'torch.nn.modules.activation.ReLU'
    """
    return f"{type(module).__module__}.{type(module).__qualname__}"


class Scope:
    """The stack of running modules."""

    def __init__(self, model: nn.Module) -> None:
        """Name every module of the model; one under two names goes by its first."""
        self.paths = {id(m): name for name, m in model.named_modules()}
        self.types = {name: type_name(m) for name, m in model.named_modules()}
        self._root = Place("", type_name(model), 0)
        self._stack: list[Place] = []
        self._calls: dict[str, int] = {}
        self._thread = threading.get_ident()

    @property
    def here(self) -> Place:
        """The innermost running module; the model itself when none is."""
        return self._stack[-1] if self._stack else self._root

    @property
    def inside(self) -> bool:
        """Whether any module is running."""
        return bool(self._stack)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow module calls of this thread while inside."""
        enter = register_module_forward_pre_hook(self._enter)
        leave = register_module_forward_hook(self._leave, always_call=True)
        try:
            yield
        finally:
            enter.remove()
            leave.remove()
            self._stack.clear()

    @contextmanager
    def loss(self) -> Iterator[None]:
        """Name what runs inside "(loss)"."""
        self._stack.append(Place("(loss)", "(loss)", 0))
        try:
            yield
        finally:
            self._stack.clear()

    def _enter(self, module: nn.Module, args: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        path = self.paths.get(id(module))
        if path is None:
            # Made during the forward, so it has no name: the nearest named module answers for it. Nor is it told from
            # others by where it lies in memory, where the next one may lie.
            path = f"{self.here.path}.<{type(module).__name__}>".lstrip(".")
        call = self._calls.get(path, 0)
        self._calls[path] = call + 1
        self._stack.append(Place(path, type_name(module), call))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == self._thread and self._stack:
            self._stack.pop()
