"""True fans against counting taps by hand with autograd, and what does not fit."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from initwell.errors import ArgumentError, ShapeError, UnknownNameError
from initwell.initializers.layout import Layout


def counted_fans(layout: Layout, size: int = 24) -> tuple[float, float]:
    """Terms per output and per input's gradient, averaged over positions away from the border, with weights of 1."""
    weight = torch.ones(layout.shape, dtype=torch.float64)
    dims = len(layout.kernel)
    inputs = layout.shape[0] if layout.kind == "conv_transpose" else layout.shape[1] * layout.groups
    x = torch.ones(1, inputs, *[size] * dims, dtype=torch.float64, requires_grad=True)
    op = getattr(functional, f"{layout.kind}{dims}d")
    stride = layout.stride or (1,) * dims
    y = op(x, weight, stride=stride, groups=layout.groups)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    # A window whose length every stride divides, far from both ends.
    inner = slice(6, 12)
    window = (slice(None), slice(None), *[inner] * dims)
    return y[window].mean().item(), gradient[window].mean().item()


@pytest.mark.parametrize(
    "layout",
    [
        Layout((8, 3, 3, 3), "conv"),
        Layout((8, 2, 3, 3), "conv", groups=4),
        Layout((8, 4, 5, 3), "conv", groups=2, stride=(2, 3)),
        Layout((6, 4, 1, 1), "conv", stride=(2, 2)),
        Layout((6, 4, 5), "conv", stride=(3,)),
        Layout((8, 4, 3, 3), "conv_transpose", 0, 1),
        Layout((8, 4, 3, 3), "conv_transpose", 0, 1, groups=2, stride=(2, 2)),
        Layout((8, 4, 2, 4), "conv_transpose", 0, 1, groups=4, stride=(2, 1)),
    ],
    ids=str,
)
def test_fans_are_the_terms_that_autograd_counts(layout: Layout) -> None:
    assert counted_fans(layout) == pytest.approx((layout.fan_in, layout.fan_out), rel=1e-12)


def test_fans_of_the_other_kinds() -> None:
    assert (Layout((30, 10)).fan_in, Layout((30, 10)).fan_out) == (10.0, 30.0)
    packed = Layout((30, 10), parts=3)
    assert (packed.fan_in, packed.fan_out) == (10.0, 10.0)
    transposed = Layout((10, 30), "linear", 0, 1, parts=3)
    assert (transposed.fan_in, transposed.fan_out) == (10.0, 10.0)
    form = Layout((5, 3, 4), "bilinear")
    assert (form.fan_in, form.fan_out, Layout((5, 3, 4), "bilinear", in_axis=2).fan_out) == (12.0, 20.0, 15.0)
    table = Layout((1000, 16), "embedding", 0, 1)
    assert (table.fan_in, table.fan_out) == (1.0, 16.0)
    assert Layout((40, 10), "recurrent", parts=4).fan_out == 10.0


def test_of_takes_shapes_as_pytorch_does() -> None:
    assert Layout.of((4, 3)).kind == "linear"
    assert Layout.of((4, 3, 5, 5)).fan_in == 75.0
    assert Layout.of((7,)).kind == "vector"
    assert Layout.of(()).size == 1


@pytest.mark.parametrize("shape", [(7,), (), (0, 4), (4, 0)])
def test_a_shape_without_a_fan_is_refused_by_name(shape: tuple[int, ...]) -> None:
    for fan in ("fan_in", "fan_out"):
        with pytest.raises(ShapeError, match="no fan") as caught:
            getattr(Layout.of(shape), fan)
        assert str(shape) in str(caught.value)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="'conv'"):
        Layout((4, 3, 3), "conv2d")
    with pytest.raises(ShapeError, match="groups"):
        Layout((8, 2, 3, 3), "conv", groups=3)
    with pytest.raises(ShapeError, match="groups"):
        Layout((8, 2, 3, 3), "conv_transpose", 0, 1, groups=3)
    with pytest.raises(ShapeError, match="parts"):
        Layout((10, 4), parts=3)
    with pytest.raises(ShapeError, match="stride"):
        Layout((8, 2, 3, 3), "conv", stride=(2,))
    with pytest.raises(ShapeError, match="stride"):
        Layout((8, 2), stride=(1,))
    with pytest.raises(ArgumentError, match="stride"):
        Layout((8, 2, 3), "conv", stride=(0,))
    with pytest.raises(ArgumentError, match="use parts"):
        Layout((8, 2), groups=2)
    with pytest.raises(ShapeError, match="in_axis"):
        Layout((8, 2), in_axis=0, out_axis=0)
    with pytest.raises(ShapeError, match="in_axis"):
        Layout((8, 2), in_axis=2)
    with pytest.raises(ShapeError, match="vector"):
        Layout((8,), "linear")
    with pytest.raises(ShapeError, match="0 or more"):
        Layout((-1, 2))
    with pytest.raises(ArgumentError, match="groups, parts"):
        Layout((8, 2), parts=0)


def test_json_round_trip_is_strict() -> None:
    layout = Layout((8, 4, 5, 3), "conv", groups=2, stride=(2, 3))
    data = layout.to_dict()
    assert Layout.from_dict(data) == layout
    with pytest.raises(ArgumentError, match="exactly the keys"):
        Layout.from_dict({**data, "padding": 1})
    with pytest.raises(ArgumentError, match=r"layout\.groups"):
        Layout.from_dict({**data, "groups": "2"})
    with pytest.raises(ArgumentError, match=r"layout\.shape"):
        Layout.from_dict({**data, "shape": [8, 4.0, 5, 3]})


@pytest.mark.parametrize(
    "layout",
    [
        Layout((6, 4)),
        Layout((4, 6), "linear", 0, 1, parts=3),
        Layout((6, 2, 3), "conv", groups=2),
        Layout((6, 2, 3, 2), "conv_transpose", 0, 1, groups=3),
        Layout((6, 4, 2), "conv_transpose", 0, 1),
        Layout((5, 3, 4), "bilinear", in_axis=2),
        Layout((7,), "vector", 0, 0),
    ],
    ids=str,
)
def test_blocks_hold_every_entry_once(layout: Layout) -> None:
    entries = np.arange(layout.size, dtype=np.float64).reshape(layout.blocks)
    tensor = layout.from_blocks(entries)
    assert tensor.shape == layout.shape
    assert sorted(tensor.reshape(-1)) == list(range(layout.size))
    assert math.prod(layout.blocks) == layout.size


def test_blocks_are_what_the_layer_multiplies_by() -> None:
    # A transposed convolution with groups: block g maps the inputs of group g to its outputs.
    layout = Layout((6, 2, 1), "conv_transpose", 0, 1, groups=3)
    blocks = np.random.default_rng(0).normal(size=layout.blocks)
    x = np.random.default_rng(1).normal(size=(3, 2))
    weight = torch.from_numpy(layout.from_blocks(blocks))
    y = functional.conv_transpose1d(torch.from_numpy(x.reshape(1, 6, 1)), weight, groups=3)
    assert np.allclose(y.numpy().reshape(3, 2), np.einsum("goi,gi->go", blocks, x), atol=1e-12)


@pytest.mark.parametrize("shape", [(2.5, 3), "ab", 7, None])
def test_lengths_that_are_no_whole_numbers_are_refused(shape: object) -> None:
    with pytest.raises(ArgumentError, match=r"shape: got .*whole numbers"):
        Layout(shape)  # type: ignore[arg-type]


def test_numpy_s_whole_numbers_are_lengths() -> None:
    assert Layout(np.array([4, 3])).shape == (4, 3)  # type: ignore[arg-type]
