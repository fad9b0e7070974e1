"""Shapes, dtypes and layouts that the walk finds by itself, against what PyTorch makes of real tensors."""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from initwell.trace.shapes import shapers

aten = torch.ops.aten


def whole(*shape: int) -> Tensor:
    return torch.rand(shape) + 0.5


def transposed(*shape: int) -> Tensor:
    return whole(*shape).transpose(0, -1).contiguous().transpose(0, -1)


def swapped(*shape: int) -> Tensor:
    return whole(*shape).movedim(1, -1).contiguous().movedim(-1, 1) if len(shape) > 2 else transposed(*shape)


def repeated(*shape: int) -> Tensor:
    return whole(1, *shape[1:]).expand(shape)


def part(*shape: int) -> Tensor:
    return whole(*shape[:-1], shape[-1] + 2)[..., : shape[-1]]


LAYOUTS: tuple[Callable[..., Tensor], ...] = (whole, transposed, swapped, repeated, part)
UNARY = """
    neg abs exp log sqrt rsqrt reciprocal erf sin cos tanh sigmoid relu gelu elu leaky_relu hardtanh hardswish
    hardsigmoid softplus mish clamp_min:0.1 threshold:0.1,0 clamp:-1,1 pow.Tensor_Scalar:2.5 rsub.Scalar:1
    mul.Scalar:2 div.Scalar:2 add.Scalar:1 sub.Scalar:1 eq.Scalar:1 ne.Scalar:1 ge.Scalar:1 gt.Scalar:1 le.Scalar:1
    lt.Scalar:1 mul.Tensor:2.0 add.Tensor:1.0 sub.Tensor:1.0 div.Tensor:2.0

"""
BACKWARDS = """
    tanh_backward sigmoid_backward gelu_backward threshold_backward:0 leaky_relu_backward:0.1,False
    hardtanh_backward:-1,1 hardswish_backward hardsigmoid_backward softplus_backward:1,20
"""
BINARY = "add.Tensor sub.Tensor mul.Tensor div.Tensor eq.Tensor ne.Tensor ge.Tensor gt.Tensor le.Tensor lt.Tensor"


def named(text: str) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    for item in text.split():
        name, _, rest = item.partition(":")
        packet, _, overload = name.partition(".")
        numbers = tuple(v == "True" if v in ("True", "False") else float(v) for v in rest.split(",") if v)
        yield getattr(getattr(aten, packet), overload or "default"), numbers


def pointwise() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    for lay in LAYOUTS:
        for op, numbers in named(UNARY):
            yield op, (lay(4, 5, 3), *numbers)
        for other in LAYOUTS:
            for op, numbers in named(BACKWARDS):
                yield op, (lay(4, 5, 3), other(4, 5, 3), *numbers)
            for (op, _), shape in product(named(BINARY), ((4, 5, 3), (5, 3), (4, 1, 3), (1, 5, 1), (1, 1, 1))):
                yield op, (lay(4, 5, 3), other(*shape))
                yield op, (other(*shape), lay(4, 5, 3))
            yield aten.elu_backward.default, (lay(4, 5, 3), 1.0, 1.0, 1.0, False, other(4, 5, 3))
            yield aten.where.self, (lay(4, 5, 3) > 1, other(4, 5, 3), other(1, 5, 3))


def normalizing() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    w, b = whole(6), whole(6)
    for lay, other in product(LAYOUTS, LAYOUTS):
        x, g = lay(4, 5, 6), other(4, 5, 6)
        _, mean, rstd = aten.native_layer_norm(x, [6], w, b, 1e-5)
        yield aten.native_layer_norm.default, (x, [6], w, b, 1e-5)
        yield aten.native_layer_norm.default, (x, [5, 6], None, None, 1e-5)
        for wanted in ([True, True, True], [True, False, False]):
            yield aten.native_layer_norm_backward.default, (g, x, [6], mean, rstd, w, b, wanted)
        x, g = lay(4, 6, 5, 3), other(4, 6, 5, 3)
        for training in (True, False):
            state = (torch.zeros(6), torch.ones(6))
            yield aten.native_batch_norm.default, (x, w, b, *state, training, 0.1, 1e-5)
            _, mean, rstd = aten.native_batch_norm(x, w, b, *state, training, 0.1, 1e-5)
            given = (g, x, w, *state, mean, rstd, training, 1e-5, [True, True, True])
            yield aten.native_batch_norm_backward.default, given
        for op in (aten._softmax.default, aten._log_softmax.default):
            yield op, (x, 1, False)
        yield aten._safe_softmax.default, (x, -1)
        y = torch.softmax(x, 1)
        for op in (aten._softmax_backward_data.default, aten._log_softmax_backward_data.default):
            yield op, (g, y, 1, torch.float32)
    x = whole(4, 6, 5, 3)
    _, mean, rstd = aten.native_group_norm(x, w, b, 4, 6, 15, 2, 1e-5)
    yield aten.native_group_norm.default, (x, w, b, 4, 6, 15, 2, 1e-5)
    yield aten.native_group_norm_backward.default, (whole(*x.shape), x, mean, rstd, w, 4, 6, 15, 2, [True, True, True])


def joining() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    for lay, other in product(LAYOUTS, LAYOUTS):
        a, b = lay(4, 5), other(5, 6)
        yield aten.mm.default, (a, b)
        yield aten.addmm.default, (whole(6), a, b)
        yield aten.bmm.default, (lay(3, 4, 5), other(3, 5, 6))
        for dim in (0, 1, -1):
            yield aten.stack.default, ([lay(4, 5, 3), other(4, 5, 3)], dim)
            yield aten.cat.default, ([lay(4, 5, 3), other(4, 5, 3)], dim)
        for dims, keep in product(([0], [1, 2], [-1]), (True, False)):
            for op in (aten.mean.dim, aten.sum.dim_IntList):
                yield op, (lay(4, 5, 3), dims, keep)
    yield aten._unsafe_view.default, (whole(4, 6), [2, 12])
    ends = torch.tensor([3, 8], dtype=torch.int32)
    yield aten._grouped_mm.default, (whole(8, 16), whole(2, 16, 8), ends)
    yield aten._grouped_mm.default, (transposed(16, 8), whole(8, 4), ends)


def convolving() -> Iterator[tuple[Any, tuple[Any, ...]]]:
    sides = (6, 7, 5)
    for lay, spatial, turned, groups in product(LAYOUTS, (1, 2, 3), (False, True), (1, 2, 4)):
        x = lay(2, 4, *sides[:spatial])
        w = (lay if lay in (whole, swapped) else whole)(4, 8 // groups if turned else 4 // groups, *[3] * spatial)
        for stride, padding in ((1, 0), (2, 1)):
            geometry = ([stride] * spatial, [padding] * spatial, [1] * spatial, turned, [0] * spatial, groups)
            y = aten.convolution(x, w, None, *geometry)
            yield aten.convolution.default, (x, w, None, *geometry)
            yield aten.convolution_backward.default, (y, x, w, [y.shape[1]], *geometry, [True, True, True])


FAMILIES = (pointwise, normalizing, joining, convolving)


def on_meta(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return torch.empty_strided(argument.shape, argument.stride(), dtype=argument.dtype, device="meta")
    return [on_meta(a) for a in argument] if isinstance(argument, list) else argument


def layout(found: Any) -> list[Any]:
    """Shape, dtype and steps of each tensor; a dimension of length 1 has no step that matters."""
    tensors: Sequence[Tensor | None] = found if isinstance(found, tuple) else (found,)
    return [
        None
        if t is None or t.numel() == 0
        else (tuple(t.shape), t.dtype, [s for n, s in zip(t.shape, t.stride(), strict=True) if n > 1])
        for t in tensors
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_results_are_those_of_real_tensors(family: Callable[[], Iterator[tuple[Any, tuple[Any, ...]]]]) -> None:
    answered = set()
    for op, args in family():
        found = shapers()[op](*(on_meta(a) for a in args))
        if found is not None:
            answered.add(op)
            lies = [tuple(a.stride()) for a in args if isinstance(a, Tensor)]
            assert layout(found) == layout(op(*args)), (str(op), lies)
    assert answered == {op for op, _ in family()}


def test_every_op_of_the_table_is_met_here() -> None:
    assert {op for family in FAMILIES for op, _ in family()} == set(shapers())


@pytest.mark.parametrize(
    ("op", "args"),
    [
        (aten.add.Tensor, (whole(2, 3), whole(4))),
        (aten.add.Tensor, (whole(2, 3), torch.ones(3, dtype=torch.int64))),
        (aten.mul.Tensor, (whole(2), 1j)),
        (aten.mm.default, (whole(2, 3), whole(4, 2))),
        (aten.addmm.default, (whole(3), whole(2, 3), whole(3, 2))),
        (aten.cat.default, ([whole(2, 3), whole(2, 4)], 0)),
        (aten.cat.default, ([whole(2, 3)], 2)),
        (aten.stack.default, ([whole(2), whole(3)], 0)),
        (aten.sum.dim_IntList, (whole(2, 3), [2])),
        (aten._softmax.default, (whole(2, 3), 2, False)),
        (aten.native_layer_norm.default, (whole(2, 3), [4], None, None, 1e-5)),
        (aten.convolution.default, (whole(1, 3, 4), whole(2, 2, 3), None, [1], [0], [1], False, [0], 1)),
        (aten.convolution.default, (whole(1, 2, 2), whole(2, 2, 3), None, [1], [0], [1], False, [0], 1)),
    ],
)
def test_what_is_not_plain_is_left_to_pytorch(op: Any, args: tuple[Any, ...]) -> None:
    assert shapers()[op](*(on_meta(a) for a in args)) is None
