"""Names without the segments that torch.compile, DDP, FSDP and their like put in."""

from torch import nn

# Wrappers keep the model as a child of this name; the same parameter has the same name with or without them.
_WRAPPED_AS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def is_wrapped(module: nn.Module, name: str) -> bool:
    """Whether a module's child of this name is the model that the module is a wrapper of."""
    return name in _WRAPPED_AS or (name == "module" and isinstance(module, _WRAPPERS))


def unwrapped_names(model: nn.Module) -> dict[str, str]:
    """Return the name of every parameter without wrappers' segments → the name that the model has for it.

    >>> unwrapped_names(nn.Sequential(nn.DataParallel(nn.Linear(3, 2, bias=False))))
    {'0.weight': '0.module.weight'}
    """
    return {_unwrapped(model, name): name for name, _ in model.named_parameters(remove_duplicate=False)}


def _unwrapped(model: nn.Module, name: str) -> str:
    *path, last = name.split(".")
    kept, module = [], model
    for part in path:
        if not is_wrapped(module, part):
            kept.append(part)
        module = getattr(module, part)  # get_submodule does not do for scripted modules
    return ".".join([*kept, last])
