"""The activation that follows each layer: from the trace where there is one, from the modules where they tell."""

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from initwell.apply.beyond import alone, beyond
from initwell.apply.following import Found, activation_of, follow, inside
from initwell.apply.sites import Site, modules_of
from initwell.errors import ArgumentError, InitwellError
from initwell.theory.activation import Activation
from initwell.theory.activations import activation
from initwell.trace.failure import NeedsValuesError
from initwell.trace.follow import Following, followings
from initwell.trace.ops import ACTIVATIONS, ALONE, BENDING, VIEWS
from initwell.trace.recorder import record
from initwell.trace.trace import Trace

# An op's argument → the catalogue's parameter.
_ARGUMENTS: Mapping[str, Mapping[str, str]] = {
    "leaky_relu": {"negative_slope": "slope"},
    "rrelu": {"lower": "lower", "upper": "upper"},
    "celu": {"alpha": "alpha"},
    "hardtanh": {"min_val": "low", "max_val": "high"},
    "softplus": {"beta": "beta"},
    "softshrink": {"lambd": "threshold"},
    "hardshrink": {"lambd": "threshold"},
    "threshold": {"threshold": "threshold", "value": "value"},
}
_CLAMPS = frozenset({"aten.clamp", "aten.clamp_min", "aten.clamp_max"})
_NAMED_CLAMPS: Mapping[tuple[float, float], str] = {(0.0, math.inf): "relu", (0.0, 6.0): "relu6"}


class Finder:
    """Answers what follows each weight of one model, by the surest of the ways that are open."""

    def __init__(
        self, model: nn.Module, sites: tuple[Site, ...], *, example: Any = None, given: Activation | None = None
    ) -> None:
        """Look through a model.

        Args:
            model: the model; it is left as it was.
            sites: from ``sites_of``.
            example: a batch; with it the model's forward is traced on meta tensors, nothing is computed.
            given: what the caller says follows every layer; None to find out.
        """
        self._given = given
        self._modules = dict(model.named_modules())
        self._paths = {id(module): path for path, (*_, module) in modules_of(model)}
        self._trace: Trace | None = None
        self.notes: tuple[str, ...] = ()
        if example is not None and self._given is None:
            self._trace, self.notes = _record(model, example)
        self._names = {id(p): name for name, p in model.named_parameters(remove_duplicate=False)}
        self._default = self._sole(model)

    def __call__(self, site: Site) -> Found:
        """Return what follows one weight."""
        if self._given is not None:
            return Found(self._given, "given as activation=")
        if self._trace is not None:
            return inside(site) or self._traced(site, self._trace)
        return follow(site, self._paths) or self._default

    def _sole(self, model: nn.Module) -> Found:
        found = {str(a): a for a in map(activation_of, model.modules()) if a is not None and a.name != "identity"}
        if len(found) == 1:
            (only,) = found.values()
            return Found(only, "the only activation among the model's modules; give example= to have it followed")
        several = f"the model has {', '.join(found)}" if found else "the model has no activation module"
        return Found(activation("relu"), f"assumed: {several}; give example= to have it followed")

    def _traced(self, site: Site, trace: Trace) -> Found:
        found = followings(trace, self._names[id(site.tensor)])
        # A table that is also multiplied, as a tied head is, asks for what follows the product.
        found = tuple(f for f in found if "embedding" not in f.start) or found
        if not found:
            return Found(None, "not used in the forward of the example")
        name = self._names[id(site.tensor)]
        bent = [f for f in found if _bends(trace, name, f)]
        if not bent:
            return Found(None, self._without(found[0]))
        first = self._recognized(bent[0])
        if first is None:
            return Found(None, f"{self._op(bent[0])} follows, which initwell has no gain for")
        others = len({(f.kind, f.op_name, f.path) for f in found}) - 1
        several = f"; its other uses end in {others} other places" if others else ""
        more = beyond(trace, name, bent[0])
        uncounted = f"; {', '.join(more)} then makes more of it, which the gain does not count" if more else ""
        return Found(first, self._through(bent[0]) + several + uncounted)

    def _recognized(self, found: Following) -> Activation | None:
        module = self._modules.get(found.path)
        known = activation_of(module) if module is not None else None
        if known is not None:
            return known
        try:
            if found.op_name in ALONE:
                return activation(ALONE[found.op_name])
            if found.kind == "other":
                return _from_clamp(found.arguments)
            return _from_op(found) if found.op_name in ACTIVATIONS else activation(module)
        except InitwellError:
            return None

    def _op(self, found: Following) -> str:
        path = self._paths[id(self._modules[found.path])] if found.path in self._modules else found.path
        return f"{found.op_name.removeprefix('aten.')} {f'at {path}' if path else 'in the forward of the model itself'}"

    def _through(self, found: Following) -> str:
        passed = [op.removeprefix("aten.") for op in found.through if op not in VIEWS]
        return f"traced to {self._op(found)}" + (f", through {', '.join(passed)}" if passed else "")

    def _without(self, found: Following) -> str:
        if found.kind == "output":
            return "no activation follows: it is the output"
        if found.op_name in BENDING:
            return f"followed as far as {self._op(found)}, which may be part of an activation written by hand"
        return f"no activation follows before {self._op(found)}"


def _bends(trace: Trace, parameter: str, found: Following) -> bool:
    if found.kind == "other":
        return found.op_name in _CLAMPS or (found.op_name in ALONE and alone(trace, parameter, found))
    return found.kind in ("activation", "module")


def _record(model: nn.Module, example: Any) -> tuple[Trace, tuple[str, ...]]:
    try:
        return record(model, example, backward=False), ()
    except NeedsValuesError:
        # The route depends on the numbers: run them, unless there are none.
        if any(p.is_meta for p in model.parameters()):
            raise
        note = "The forward looks at numbers, so it was run once on the example to see what follows each layer."
        return record(model, example, backward=False, device="real"), (note,)


def _from_op(found: Following) -> Activation:
    name = ACTIVATIONS[found.op_name]
    if name == "prelu":
        # As a module it was recognized by its parameter; the slopes of a functional one are not among the arguments.
        raise ArgumentError("activation", "prelu called as a function", "Give activation= what it is.")
    if name == "gelu" and found.arguments.get("approximate") == "tanh":
        return activation("gelu_tanh")
    if name == "elu":
        return _from_elu(found.arguments)
    renamed = _ARGUMENTS.get(name, {})
    options = {renamed[k]: float(v) for k, v in found.arguments.items() if k in renamed}
    if name == "hardtanh" and options == {"low": 0.0, "high": 6.0}:
        return activation("relu6")
    return activation(name, **options)


def _from_clamp(arguments: Mapping[str, Any]) -> Activation:
    """Read ``x.clamp(min=0)`` and its like as the activation that they write out."""
    low, high = (float(arguments.get(k, default)) for k, default in (("min", -math.inf), ("max", math.inf)))
    if (low, high) in _NAMED_CLAMPS:
        return activation(_NAMED_CLAMPS[low, high])
    return activation("hardtanh", low=low, high=high)


def _from_elu(arguments: Mapping[str, Any]) -> Activation:
    """Tell apart what ATen writes as elu: scale·(x above 0, alpha·(exp(input_scale·x) − 1) below)."""
    alpha, scale, rate = (float(arguments.get(k, 1.0)) for k in ("alpha", "scale", "input_scale"))
    if scale == rate == 1:
        return activation("elu", alpha=alpha)
    if scale == 1 and math.isclose(alpha * rate, 1):
        return activation("celu", alpha=alpha)
    if rate == 1 and math.isclose(alpha, 1.6732632423543772) and math.isclose(scale, 1.0507009873554805):
        return activation("selu")
    raise ArgumentError("activation", f"elu with {dict(arguments)}", "Give activation= what it is.")
