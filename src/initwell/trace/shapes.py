"""The results' shapes of the commonest ops on meta tensors, where they are plain to see.

PyTorch finds the shapes of these ops by interpreting them in Python, 0.1 to 1.8 ms each, and imports its whole compiler
to do so, more than a second. Here stand only the plain cases: floating tensors of one dtype, most of them contiguous.
Every function returns None for anything else, and PyTorch's own answer is asked for.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

# Positional arguments → the results, or None where the case is not plain.
Shaper = Callable[..., Any]

_POINTWISE = """
    add.Tensor add.Scalar sub.Tensor sub.Scalar rsub.Scalar mul.Tensor mul.Scalar div.Tensor div.Scalar neg abs exp log
    sqrt rsqrt reciprocal pow.Tensor_Scalar erf sin cos tanh sigmoid relu gelu elu leaky_relu hardtanh hardswish
    hardsigmoid softplus mish threshold clamp clamp_min tanh_backward sigmoid_backward gelu_backward threshold_backward
    elu_backward leaky_relu_backward hardtanh_backward hardswish_backward hardsigmoid_backward softplus_backward
"""
_COMPARISONS = "eq ne ge gt le lt"


@cache
def shapers() -> Mapping[Any, Shaper]:
    """Return op overload → function of its positional arguments.

    >>> shapers()[torch.ops.aten.add.Tensor](torch.zeros(4, 1, device="meta"), torch.zeros(4, 3, device="meta")).shape
    torch.Size([4, 3])
    """
    aten = torch.ops.aten
    found: dict[Any, Shaper] = dict.fromkeys((_overload(name) for name in _POINTWISE.split()), _pointwise)
    for name in _COMPARISONS.split():
        packet = getattr(aten, name)
        found |= {packet.Tensor: _compared, packet.Scalar: _compared}
    return found | {
        aten.where.self: _where,
        aten._softmax.default: _softmax,
        aten._log_softmax.default: _softmax,
        aten._safe_softmax.default: _softmax,
        aten._softmax_backward_data.default: _softmax_backward,
        aten._log_softmax_backward_data.default: _softmax_backward,
        aten.native_layer_norm.default: _layer_norm,
        aten.native_layer_norm_backward.default: _layer_norm_backward,
        aten.native_group_norm.default: _group_norm,
        aten.native_group_norm_backward.default: _group_norm_backward,
        aten.native_batch_norm.default: _batch_norm,
        aten.native_batch_norm_backward.default: _batch_norm_backward,
        aten.addmm.default: _addmm,
        aten.mm.default: _product,
        aten.bmm.default: _product,
        aten._grouped_mm.default: _grouped_product,
        aten.convolution.default: _convolution,
        aten.convolution_backward.default: _convolution_backward,
        aten.mean.dim: _reduced,
        aten.sum.dim_IntList: _reduced,
        aten._unsafe_view.default: _unsafe_view,
        aten.cat.default: _cat,
        aten.stack.default: _stack,
    }


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _empty(like: Tensor, shape: Sequence[int]) -> Tensor:
    # Not new_empty or empty_like, which PyTorch interprets in Python on meta tensors.
    return torch.empty(shape, dtype=like.dtype, device=like.device)


def _within(dims: Sequence[int], rank: int) -> bool:
    return all(-rank <= d < rank for d in dims)


def _alike(*tensors: Tensor | None) -> bool:
    """Whether all are floating, of one dtype; None stands for an argument left out."""
    kinds = {t.dtype for t in tensors if t is not None}
    return len(kinds) == 1 and next(iter(kinds)).is_floating_point


def _plain(*tensors: Tensor | None) -> bool:
    """Whether they are, and contiguous."""
    return _alike(*tensors) and all(t is None or t.is_contiguous() for t in tensors)


def _whole(tensors: Sequence[Tensor]) -> Tensor | None:
    """Return the tensor that has the shape all broadcast to; None where none has it."""
    largest = tensors[0]
    for tensor in tensors[1:]:
        if tensor.ndim > largest.ndim or (tensor.ndim == largest.ndim and tensor.numel() > largest.numel()):
            largest = tensor
    shape = largest.shape
    for tensor in tensors:
        own = tensor.shape
        if own != shape and any(n not in (1, m) for n, m in zip(reversed(own), reversed(shape), strict=False)):
            return None
    return largest


def _pointwise(*args: Any) -> Tensor | None:
    """Results of what PyTorch's TensorIterator runs: as its operands lie where all lie alike, else in order."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    first = tensors[0]
    if any(isinstance(a, complex) for a in args) or not _alike(*tensors):
        return None
    whole = _whole(tensors)
    if whole is not None and all(_in_order(t) for t in tensors):
        return _empty(whole, whole.shape)
    alike = all(t.shape == first.shape and t.stride() == first.stride() for t in tensors)
    return _as_lies(first) if alike else None


def _in_order(tensor: Tensor) -> bool:
    """Whether no dimension steps farther than one before it; those that repeat an entry, by steps of 0, count not."""
    if tensor.is_contiguous():
        return True
    steps = [step for n, step in zip(tensor.shape, tensor.stride(), strict=True) if n > 1 and step]
    return all(a > b for a, b in pairwise(steps))


def _as_lies(tensor: Tensor) -> Tensor | None:
    """Return a dense tensor whose dimensions lie in memory in the order of this one's; None where that is not plain."""
    steps = [step for n, step in zip(tensor.shape, tensor.stride(), strict=True) if n > 1]
    if 0 in steps or len(set(steps)) < len(steps):
        return None
    stride = tensor.stride()
    order = sorted(range(tensor.ndim), key=lambda d: -stride[d])
    return torch.empty_permuted(tensor.shape, order, dtype=tensor.dtype, device=tensor.device)


def _compared(a: Tensor, b: Any) -> Tensor | None:
    tensors = [t for t in (a, b) if isinstance(t, Tensor)]
    whole = _whole(tensors) if all(t.is_contiguous() for t in tensors) else None
    return None if whole is None else torch.empty(whole.shape, dtype=torch.bool, device=whole.device)


def _where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor | None:
    plain = _plain(a, b) and condition.is_contiguous()
    whole = _whole((condition, a, b)) if plain else None
    return None if whole is None else _empty(a, whole.shape)


def _softmax(x: Tensor, dim: int, other: Any = None) -> Tensor | None:
    return _empty(x, x.shape) if _plain(x) and _within((dim,), x.ndim) and not other else None


def _softmax_backward(g: Tensor, y: Tensor, dim: int, dtype: Any) -> Tensor | None:
    return _empty(y, y.shape) if _plain(g, y) and dtype is y.dtype else None


def _layer_norm(x: Tensor, shape: Sequence[int], *rest: Any) -> tuple[Tensor, ...] | None:
    shapes = [tuple(w.shape) for w in rest[:2] if w is not None]
    if not _alike(x, *rest[:2]) or any(s != tuple(shape) for s in (*shapes, x.shape[-len(shape) :])):
        return None
    statistics = _empty(x, [*x.shape[: x.ndim - len(shape)], *([1] * len(shape))])
    return _empty(x, x.shape), statistics, _empty(statistics, statistics.shape)


def _layer_norm_backward(
    g: Tensor, x: Tensor, shape: Sequence[int], mean: Tensor, rstd: Tensor, w: Any, b: Any, wanted: Sequence[bool]
) -> tuple[Tensor | None, ...] | None:
    # In order, however its operands lie.
    return _norm_backward(x, shape, wanted) if _alike(g, x, mean, rstd, w, b) else None


def _group_norm(
    x: Tensor, w: Any, b: Any, n: int, channels: int, area: int, groups: int, eps: float
) -> tuple[Tensor, ...] | None:
    return (_empty(x, x.shape), _empty(x, (n, groups)), _empty(x, (n, groups))) if _plain(x, w, b) else None


def _group_norm_backward(
    g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, w: Any, n: int, channels: int, *rest: Any
) -> tuple[Tensor | None, ...] | None:
    return _norm_backward(x, (channels,), rest[-1]) if _plain(g, x, mean, rstd, w) else None


def _batch_norm(x: Tensor, w: Any, b: Any, mean: Any, var: Any, training: bool, *rest: Any) -> Any:
    if not _plain(x, w, b, mean, var):
        return None
    # With running statistics there are none of the batch to be kept.
    kept = x.shape[1] if training else 0
    return _empty(x, x.shape), _empty(x, [kept]), _empty(x, [kept])


def _batch_norm_backward(g: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor | None, ...] | None:
    return _norm_backward(x, (x.shape[1],), rest[-1]) if _plain(g, x, *rest[:5]) else None


def _norm_backward(x: Tensor, shape: Sequence[int], wanted: Sequence[bool]) -> tuple[Tensor | None, ...]:
    made = (_empty(x, x.shape), _empty(x, shape), _empty(x, shape))
    return tuple(t if use else None for t, use in zip(made, wanted, strict=True))


def _product(a: Tensor, b: Tensor) -> Tensor | None:
    # The factors may lie transposed: the product does not.
    fits = a.dtype is b.dtype and a.ndim == b.ndim and a.shape[:-2] == b.shape[:-2] and a.shape[-1] == b.shape[-2]
    return _empty(a, (*a.shape[:-1], b.shape[-1])) if fits else None


def _grouped_product(a: Tensor, b: Tensor, ends: Tensor | None = None, *rest: Any) -> Tensor | None:
    """Products group by group: of rows with one matrix each, or, for the gradient of these, of columns with rows."""
    if a.dtype is not b.dtype or ends is None or a.shape[-1] != b.shape[-2] or any(r is not None for r in rest):
        return None
    if (a.ndim, b.ndim) == (2, 3):
        return _empty(a, (a.shape[0], b.shape[2]))
    return _empty(a, (ends.shape[0], a.shape[0], b.shape[1])) if (a.ndim, b.ndim) == (2, 2) else None


def _addmm(bias: Tensor, a: Tensor, b: Tensor) -> Tensor | None:
    found = _product(a, b)
    fits = found is not None and bias.dtype is a.dtype and bias.shape in (found.shape[1:], found.shape)
    return found if fits else None


def _convolution(x: Tensor, w: Tensor, bias: Any, *geometry: Any) -> Tensor | None:
    stride, padding, dilation, transposed, extra, groups = geometry
    out, inner = (w.shape[1] * groups, w.shape[0]) if transposed else (w.shape[0], w.shape[1] * groups)
    spatial = x.ndim - 2
    fits = (
        w.ndim == x.ndim and x.shape[1] == inner and all(len(g) == spatial for g in (stride, padding, dilation, extra))
    )
    single = all(t is None or t.dtype is torch.float32 for t in (x, w, bias))
    if not fits or not single or (spatial == 1 and not w.is_contiguous()):
        return None
    lengths = []
    for n, k, s, p, d, e in zip(x.shape[2:], w.shape[2:], stride, padding, dilation, extra, strict=True):
        reach = d * (k - 1) + 1
        lengths.append((n - 1) * s - 2 * p + reach + e if transposed else (n + 2 * p - reach) // s + 1)
    if any(n <= 0 for n in lengths):
        return None
    last = {2: torch.channels_last, 3: torch.channels_last_3d}.get(spatial)
    layout = last if last is not None and (_channels_last(x) or _channels_last(w)) else torch.contiguous_format
    return torch.empty((x.shape[0], out, *lengths), dtype=x.dtype, device=x.device, memory_format=layout)


def _channels_last(tensor: Tensor) -> bool:
    """Whether PyTorch takes it to lie with its channels last: by its steps, whole or not; in doubt, it does not."""
    shape, step = tensor.shape, tensor.stride()
    if step[1] == 0:
        return False
    least = 0
    for d in (1, *range(tensor.ndim - 1, 1, -1), 0):
        if shape[d] == 0 or step[d] < least or (d == 0 and least == step[1]):
            return False
        least = step[d] * max(shape[d], 1)
    return True


def _convolution_backward(g: Tensor, x: Tensor, w: Tensor, bias_sizes: Any, *rest: Any) -> Any:
    if not _plain(g, x, w):
        return None
    wanted = rest[-1]
    made = (x, w, _empty(x, bias_sizes)) if wanted[2] else (x, w, None)
    return tuple(_empty(t, t.shape) if use and t is not None else None for t, use in zip(made, wanted, strict=True))


def _reduced(x: Tensor, dim: Any, keepdim: bool = False) -> Tensor | None:
    if not dim or not _within(dim, x.ndim) or not _plain(x):
        return None
    gone = {d % x.ndim for d in dim}
    return _empty(x, [1 if i in gone else n for i, n in enumerate(x.shape) if keepdim or i not in gone])


def _unsafe_view(x: Tensor, shape: Sequence[int]) -> Tensor:
    return x.view(shape)


def _cat(parts: Sequence[Tensor], dim: int = 0) -> Tensor | None:
    shape = list(parts[0].shape)
    if not _within((dim,), len(shape)) or not _plain(*parts):
        return None
    dim %= len(shape)
    others = [[n for i, n in enumerate(p.shape) if i != dim] for p in parts]
    if any(p.ndim != len(shape) for p in parts) or any(o != others[0] for o in others):
        return None
    shape[dim] = sum(p.shape[dim] for p in parts)
    return _empty(parts[0], shape) if math.prod(shape) else None


def _stack(parts: Sequence[Tensor], dim: int = 0) -> Tensor | None:
    shape = list(parts[0].shape)
    if not _within((dim,), len(shape) + 1) or not _plain(*parts) or any(p.shape != parts[0].shape for p in parts):
        return None
    shape.insert(dim % (len(shape) + 1), len(parts))
    return _empty(parts[0], shape)
