"""What an op's schema says: its arguments by name, which of them it writes, which outputs are views."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Signature:
    """The parts of a schema that SSA needs.

    Args:
        names: the arguments' names, in order.
        defaults: name → default, for those that have one.
        written: names of the arguments that the op writes into.
        sources: for each output, the name of the argument whose memory it shows, or None.
    """

    names: tuple[str, ...]
    defaults: Mapping[str, Any]
    written: tuple[str, ...]
    sources: tuple[str | None, ...]

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return every argument by name, defaults filled in."""
        if not kwargs and len(args) == len(self.names):
            return dict(zip(self.names, args, strict=True))
        given = dict(zip(self.names, args, strict=False))
        extra = {f"argument_{i}": v for i, v in enumerate(args[len(self.names) :], len(self.names))}
        rest = {n: kwargs.get(n, self.defaults.get(n)) for n in self.names[len(args) :]}
        return given | extra | rest | {k: v for k, v in kwargs.items() if k not in rest}


def signature(func: Any) -> Signature:
    """Read an op's schema; a higher-order operator has none, and its arguments go by their position.

    >>> import torch
    >>> signature(torch.ops.aten.relu_.default).written
    ('self',)
    >>> signature(torch.ops.aten.t.default).sources
    ('self',)
    """
    schema = getattr(func, "_schema", None)
    if schema is None:
        return Signature((), {}, (), ())
    arguments = schema.arguments
    names = tuple(a.name for a in arguments)
    defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}
    written = tuple(a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write)
    return Signature(names, defaults, written, tuple(_source(r.alias_info, arguments) for r in schema.returns))


def _source(alias: Any, arguments: Sequence[Any]) -> str | None:
    if alias is None:
        return None
    aliased = [a for a in arguments if a.alias_info is not None]
    shared: list[str | None] = [a.name for a in aliased if a.alias_info.before_set & alias.before_set]
    # A list of views is annotated `Tensor(a -> *)` on the argument and `Tensor(a)[]` on the return.
    others: list[str | None] = [a.name for a in aliased]
    return next(iter(shared or others), None)
