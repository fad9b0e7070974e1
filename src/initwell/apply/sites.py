"""Every parameter of a model, once: what it is, who owns it, what it is tied to."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from initwell.apply.layouts import Role, Slot, slot_for, slot_of
from initwell.errors import ArgumentError
from initwell.initializers.layout import Layout
from initwell.records import Record
from initwell.theory.activation import Activation
from initwell.trace.wrappers import is_wrapped


@dataclass(frozen=True)
class Site(Record):
    """One parameter in its place.

    Attributes:
        parameter: its dotted name, without the segments that torch.compile, DDP and their like put in.
        path: the dotted path of the module that owns it.
        name: its name in that module.
        module_type: that module's type.
        shape: its shape.
        role: how schemes treat it.
        layout: which axis is which; None where that is not known.
        note: what is out of the ordinary about it.
        tied_to: the other names it goes by.
        frozen: whether it takes no gradient.
        key: the name its random stream is made from.
        zero_row: the padding row of an embedding, which stays 0.
        norm_of: for the magnitude of a weight normalization, the name of the direction it is the norm of.
        norm_axis: the axis that this norm keeps; -1 for the norm of the whole.
        activation: what follows, where a scheme has asked for it.
        activation_from: how that is known.
    """

    parameter: str
    path: str
    name: str
    module_type: str
    shape: tuple[int, ...]
    role: Role
    layout: Layout | None
    note: str = ""
    tied_to: tuple[str, ...] = ()
    frozen: bool = False
    key: str = ""
    zero_row: int | None = None
    norm_of: str = ""
    norm_axis: int = -1
    activation: Activation | None = None
    activation_from: str = ""
    _chain: tuple[nn.Module, ...] = field(default=(), repr=False, compare=False)
    _tensor: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def module(self) -> nn.Module:
        """The module that owns the parameter."""
        return self._chain[-1]

    @property
    def chain(self) -> tuple[nn.Module, ...]:
        """The modules from the model itself down to the owner."""
        return self._chain

    @property
    def tensor(self) -> Tensor:
        """The parameter itself."""
        assert self._tensor is not None
        return self._tensor


def sites_of(model: nn.Module) -> tuple[Site, ...]:
    """List the parameters of a model in the order it registers them, tied ones once.

    Args:
        model: the model; real or meta.

    Returns:
        One site for each tensor. A tied one goes by the name under which it is multiplied with activations rather
        than looked up, then by the alphabetically first, so that the order of modules does not matter.

    Raises:
        ArgumentError: not a module, a scripted one, without parameters, or with lazy ones that have no shape yet.

    >>> [site.parameter for site in sites_of(nn.Sequential(nn.Linear(3, 4), nn.ReLU()))]
    ['0.weight', '0.bias']
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError("model", f"{type(model).__name__}", "Hand in a torch.nn.Module.")
    groups: dict[Any, list[Site]] = {}
    for path, chain in modules_of(model):
        if isinstance(chain[-1], ScriptModule):
            # All modules of a script are of one class, which does not say what they do.
            got = f"a scripted {chain[-1].original_name}" + (f" at {path!r}" if path else "")
            cure = "Hand in the model that it was scripted or traced from, and script that again afterwards."
            raise ArgumentError("model", got, cure)
        for site in _own(path, chain):
            groups.setdefault(_identity(site.tensor), []).append(site)
    if not groups:
        kind = type(model).__name__
        raise ArgumentError("model", f"{kind} with no parameters", "Hand in a model that has something to initialize.")
    return tuple(_united(group) for group in groups.values())


def modules_of(
    module: nn.Module, path: str = "", above: tuple[nn.Module, ...] = ()
) -> Iterator[tuple[str, tuple[nn.Module, ...]]]:
    """Yield every module with its path, leaving out the segments that wrappers put in.

    Args:
        module: where to begin.
        path: the path of that.
        above: the modules around that, outermost first.

    Yields:
        The path, and the modules from the outermost down to the one at that path.
    """
    chain = (*above, module)
    yield path, chain
    for name, child in module._modules.items():
        if child is None or any(child is m for m in chain):
            continue
        yield from modules_of(child, path if is_wrapped(module, name) else _join(path, name), chain)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _identity(tensor: Tensor) -> Any:
    # Two parameters over the same memory are tied, whether or not they are one object.
    if type(tensor.data) is not Tensor or tensor.numel() == 0:
        return id(tensor)
    memory = tensor.untyped_storage()._cdata
    return (memory, tensor.storage_offset(), tuple(tensor.shape), tensor.stride())


def _own(path: str, chain: tuple[nn.Module, ...]) -> Iterator[Site]:
    module = chain[-1]
    if isinstance(module, parametrize.ParametrizationList):
        yield from _parametrized(path, chain)
        return
    hooks = _weight_norms(module)
    behind = any(isinstance(m, parametrize.ParametrizationList) for m in chain)
    for name, value in module._parameters.items():
        if value is None:
            continue
        stem, _, ending = name.rpartition("_")
        if ending in ("g", "v") and stem in hooks:
            yield _weight_norm(path, chain, name, value, (stem, ending, f"{stem}_v", hooks[stem]))
        elif ending == "orig" and _spectral_norms(module, stem):
            yield _site(path, chain, name, value, _left(f"behind spectral_norm of {stem}"))
        elif ending == "orig" and _is_pruned(module, stem):
            slot = slot_for(module, stem, value)
            yield _site(path, chain, name, value, replace(slot, note=_and(slot.note, f"{stem} under a pruning mask")))
        elif behind:
            yield _site(path, chain, name, value, _left("a parametrization's own"))
        else:
            yield _site(path, chain, name, value, slot_of(module, name))


def _left(why: str) -> Slot:
    return Slot("other", None, why)


def _site(path: str, chain: tuple[nn.Module, ...], name: str, value: Tensor, slot: Slot) -> Site:
    parameter = _join(path, name)
    if not value.is_floating_point():
        slot = _left(f"{value.dtype} is not a floating-point type")
    kind = parametrize.type_before_parametrizations(chain[-1])
    return Site(
        parameter=parameter,
        path=path,
        name=name,
        module_type=f"{kind.__module__}.{kind.__qualname__}",
        shape=tuple(value.shape),
        role=slot.role,
        layout=slot.layout,
        note=slot.note,
        frozen=not value.requires_grad,
        key=parameter,
        zero_row=getattr(chain[-1], "padding_idx", None) if slot.role == "embedding" else None,
        _chain=chain,
        _tensor=value,
    )


def _parametrized(path: str, chain: tuple[nn.Module, ...]) -> Iterator[Site]:
    # chain ends in: the owner, its ModuleDict "parametrizations", the list for one tensor.
    *above, _, listed = chain
    owner_path, _, tensor = path.rpartition(".")
    owner_path = owner_path.rpartition(".")[0]
    steps = list(listed.children())
    normalized = len(steps) == 1 and isinstance(steps[0], _WeightNorm)
    for name, value in listed._parameters.items():
        if value is None:
            continue
        if normalized:
            ending = "g" if name == "original0" else "v"
            prefix = f"parametrizations.{tensor}."
            how = (tensor, ending, f"{prefix}original1", steps[0].dim)
            yield _weight_norm(owner_path, tuple(above), f"{prefix}{name}", value, how)
        else:
            kinds = ", ".join(type(step).__name__ for step in steps)
            yield _site(path, chain, name, value, _left(f"behind the parametrization {kinds} of {tensor}"))


def _weight_norm(
    path: str, chain: tuple[nn.Module, ...], name: str, value: Tensor, how: tuple[str, str, str, Any]
) -> Site:
    stem, ending, direction, axis = how
    if ending == "g":
        slot = _left(f"the norm of {direction}, so that the effective {stem} is what was drawn")
        site = _site(path, chain, name, value, slot)
        return replace(site, key="", norm_of=_join(path, direction), norm_axis=-1 if axis is None else axis)
    slot = slot_for(chain[-1], stem, value)
    site = _site(path, chain, name, value, replace(slot, note=_and(slot.note, f"{stem} under weight_norm")))
    return replace(site, key=_join(path, stem))


def _and(first: str, second: str) -> str:
    return f"{first}; {second}" if first else second


def _weight_norms(module: nn.Module) -> dict[str, int | None]:
    hooks = module._forward_pre_hooks.values()
    return {hook.name: hook.dim for hook in hooks if isinstance(hook, WeightNorm)}


def _spectral_norms(module: nn.Module, name: str) -> bool:
    hooks = module._forward_pre_hooks.values()
    return any(isinstance(hook, SpectralNorm) and hook.name == name for hook in hooks)


def _is_pruned(module: nn.Module, name: str) -> bool:
    hooks = module._forward_pre_hooks.values()
    return any(isinstance(hook, BasePruningMethod) and hook._tensor_name == name for hook in hooks)


def _united(group: list[Site]) -> Site:
    ranked = sorted(group, key=lambda s: (s.role != "weight", s.role != "embedding", s.parameter))
    owner, others = ranked[0], tuple(sorted({s.parameter for s in ranked[1:]} - {ranked[0].parameter}))
    if not others:
        return owner
    padding = next((s.zero_row for s in ranked if s.zero_row is not None), None)
    return replace(
        owner, tied_to=others, zero_row=padding, note=_and(owner.note, f"tied to {', '.join(others)}, written once")
    )
