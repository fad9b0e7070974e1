"""Whether a model's parameters can be written, all of them, before the first one is."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from initwell.apply.sites import Site
from initwell.errors import ArgumentError


def check_memory(sites: Sequence[Site]) -> None:
    """Refuse parameters that could not be written, or whose writing would overwrite another.

    Args:
        sites: those that are to be written.

    Raises:
        ArgumentError: on meta, sharded, made in inference mode, one entry at several places, or two parameters that
            share a part of their memory; names them and the cure.
    """
    _refuse(
        [s.parameter for s in sites if s.tensor.is_meta],
        "parameters on the meta device, without memory",
        "Give it memory first, model.to_empty(device='cpu'), and set its buffers; then initialize.",
    )
    _refuse([s.parameter for s in sites if hasattr(s.tensor, "placements")], "sharded parameters", "Initialize first.")
    if not torch.is_inference_mode_enabled():
        _refuse(
            [s.parameter for s in sites if s.tensor.is_inference()],
            "parameters made in inference mode, which nothing may write",
            "Build the model outside torch.inference_mode(), or initialize it inside.",
        )
    dense = [s for s in sites if type(s.tensor.data) is Tensor and s.tensor.layout is torch.strided]
    _refuse(
        [s.parameter for s in dense if _repeats(s.tensor)],
        "parameters that show one entry at several places",
        "Give them memory of their own with clone(), or leave them alone with rules={NAME: None}.",
    )
    _refuse(
        _shared(dense),
        "parameters that share a part of their memory",
        "Written one after the other, the later would overwrite the earlier: leave all but one alone with "
        "rules={NAME: None}.",
    )


def _refuse(names: Sequence[str], what: str, cure: str) -> None:
    if names:
        shown = ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
        raise ArgumentError("model", f"{what}: {shown}", cure)


def _repeats(tensor: Tensor) -> bool:
    return any(step == 0 and length > 1 for step, length in zip(tensor.stride(), tensor.shape, strict=True))


def _shared(sites: Sequence[Site]) -> list[str]:
    """Name the parameters of which an entry lies where another's does."""
    by_storage: dict[int, list[Site]] = {}
    for site in sites:
        if site.tensor.numel():
            by_storage.setdefault(site.tensor.untyped_storage()._cdata, []).append(site)
    found = []
    for group in by_storage.values():
        if not _apart(group):
            found += _meeting(group)
    return found


def _span(tensor: Tensor) -> tuple[int, int]:
    # Bytes, for two views of one storage may have different types.
    reach = sum(int(step) * (length - 1) for step, length in zip(tensor.stride(), tensor.shape, strict=True))
    start = int(tensor.storage_offset()) * tensor.element_size()
    return start, start + (reach + 1) * tensor.element_size()


def _apart(group: Sequence[Site]) -> bool:
    spans = sorted(_span(site.tensor) for site in group)
    return all(end <= start for (_, end), (start, _) in pairwise(spans))


def _meeting(group: Sequence[Site]) -> list[str]:
    # Spans may be interlaced, as columns of one matrix are, and still have no entry in common: count the bytes.
    tensors = [site.tensor for site in group]
    taken = torch.zeros(max(_span(t)[1] for t in tensors), dtype=torch.uint8)
    places = []
    for tensor in tensors:
        width = tensor.element_size()
        strides = (*(step * width for step in tensor.stride()), 1)
        places.append(taken.as_strided((*tensor.shape, width), strides, tensor.storage_offset() * width))
        places[-1].add_(1)
    return [site.parameter for site, place in zip(group, places, strict=True) if bool((place > 1).any())]
