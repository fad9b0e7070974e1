"""Orthogonal, delta-orthogonal, identity and dirac weights, with PyTorch's convolutions as witness."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from initwell.errors import ShapeError
from initwell.initializers.base import Initializer
from initwell.initializers.layout import Layout
from initwell.initializers.matrices import Orthogonal
from initwell.initializers.orthogonal import delta_orthogonal, orthogonal, scaled_uniform_orthogonal
from initwell.initializers.structured import dirac, identity
from initwell.sampling.fill import fill


def weight_of(initializer: Initializer, layout: Layout, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(fill(initializer.recipe(layout).distribution, layout.shape, seed=seed, name="weight"))


def gram_error(matrix: Any, scale: float = 1.0) -> float:
    matrix = np.asarray(matrix, dtype=np.float64)
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return float(np.abs(gram - scale**2 * np.eye(len(gram))).max())


@pytest.mark.parametrize("shape", [(40, 40), (64, 16), (16, 64), (1, 9), (9, 1)])
def test_rows_or_columns_are_orthonormal(shape: tuple[int, int]) -> None:
    assert gram_error(weight_of(orthogonal(1.5), Layout(shape)), 1.5) < 2e-6


def test_each_packed_part_and_each_group_is_orthogonal_by_itself() -> None:
    packed = weight_of(orthogonal(), Layout((36, 12), parts=3))
    assert all(gram_error(part) < 1e-6 for part in packed.chunk(3))
    columns = weight_of(orthogonal(), Layout((12, 36), "linear", 0, 1, parts=3))
    assert all(gram_error(part) < 1e-6 for part in columns.chunk(3, dim=1))
    grouped = weight_of(orthogonal(), Layout((16, 4, 3, 3), "conv", groups=2))
    assert all(gram_error(part.reshape(8, 36)) < 1e-6 for part in grouped.chunk(2))


def test_orthogonal_is_haar_distributed() -> None:
    # 4,000 matrices of O(6), seed 0: tr Q has mean 0 and variance 1, det is ±1 with equal chance. Five standard errors
    # are 0.08, 0.12 and 0.04; QR without the sign correction has a mean trace of about −1.3 and always the same det.
    count, n = 4000, 6
    layout = Layout((count * n, n, 1), "conv", groups=count)
    q = fill(Orthogonal(layout), layout.shape, seed=0, name="haar").reshape(count, n, n).astype(np.float64)
    traces = np.trace(q, axis1=1, axis2=2)
    assert abs(traces.mean()) < 0.08
    assert abs(traces.var() - 1) < 0.12
    assert abs((np.linalg.det(q) > 0).mean() - 0.5) < 0.04
    # Every entry is alike: E[q_ij²] = 1/6, standard error about 0.0035.
    assert np.abs((q**2).mean(axis=0) - 1 / n).max() < 0.02


@pytest.mark.parametrize(
    "layout",
    [
        Layout((8, 8, 3, 3), "conv"),
        Layout((12, 8, 3, 5), "conv"),
        Layout((8, 4, 3, 3), "conv", groups=2),
        Layout((6, 6, 4), "conv"),
    ],
    ids=str,
)
def test_delta_orthogonal_convolution_keeps_the_norm(layout: Layout) -> None:
    weight = weight_of(delta_orthogonal(), layout)
    dims = len(layout.kernel)
    x = torch.randn(2, layout.shape[1] * layout.groups, *[9] * dims, generator=torch.Generator().manual_seed(0))
    padding = [p for k in reversed(layout.kernel) for p in (k // 2, k - 1 - k // 2)]
    wrapped = functional.pad(x, padding, mode="circular")
    y = getattr(functional, f"conv{dims}d")(wrapped, weight, groups=layout.groups)
    assert y.shape[2:] == x.shape[2:]
    assert torch.allclose(y.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1), rtol=1e-5)


def test_delta_orthogonal_wants_a_convolution_with_enough_outputs() -> None:
    with pytest.raises(ShapeError, match="scaled_uniform_orthogonal"):
        delta_orthogonal().recipe(Layout((4, 8, 3, 3), "conv"))
    with pytest.raises(ShapeError, match="Use orthogonal"):
        delta_orthogonal().recipe(Layout((8, 8)))


@pytest.mark.parametrize("layout", [Layout((64, 16)), Layout((16, 64)), Layout((48, 16, 3), "conv")], ids=str)
def test_scaled_uniform_orthogonal_keeps_the_second_moment(layout: Layout) -> None:
    # E[y²] over outputs = E[x²] over inputs: the squares of the weights add up to the number of outputs.
    weight = weight_of(scaled_uniform_orthogonal(), layout).double()
    assert float(weight.square().sum()) == pytest.approx(layout.shape[0], rel=1e-6)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_dirac_convolution_is_the_identity(dims: int, groups: int) -> None:
    x = torch.randn(2, 8, *[6] * dims, generator=torch.Generator().manual_seed(0))
    layout = Layout((8, 8 // groups, *[3] * dims), "conv", groups=groups)
    y = getattr(functional, f"conv{dims}d")(x, weight_of(dirac(), layout), padding=1, groups=groups)
    assert torch.equal(x, y)
    backwards = Layout((8, 8 // groups, *[3] * dims), "conv_transpose", 0, 1, groups=groups)
    y = getattr(functional, f"conv_transpose{dims}d")(x, weight_of(dirac(), backwards), padding=1, groups=groups)
    assert torch.equal(x, y)


@pytest.mark.parametrize(("shape", "groups"), [((12, 4, 3, 3), 1), ((4, 12, 5, 3), 2), ((6, 2, 4), 3)])
def test_dirac_agrees_with_pytorch_where_channels_differ(shape: tuple[int, ...], groups: int) -> None:
    theirs = torch.nn.init.dirac_(torch.empty(shape), groups)
    recipe = dirac().recipe(Layout(shape, "conv", groups=groups))
    assert "are passed on" in recipe.note or shape[0] // groups == shape[1]
    assert torch.equal(weight_of(dirac(), Layout(shape, "conv", groups=groups)), theirs)


def test_dirac_with_wrong_channel_numbers_is_refused() -> None:
    with pytest.raises(ShapeError, match="groups: got 3 for 8 channels"):
        dirac().recipe(Layout((8, 4, 3, 3), "conv", groups=3))
    with pytest.raises(ShapeError, match="Use identity"):
        dirac().recipe(Layout((8, 8)))


def test_identity_agrees_with_pytorch_part_by_part() -> None:
    assert torch.equal(weight_of(identity(2.0), Layout((5, 7))), 2 * torch.nn.init.eye_(torch.empty(5, 7)))
    packed = weight_of(identity(), Layout((12, 4), "recurrent", parts=3))
    assert torch.equal(packed, torch.eye(4).repeat(3, 1))
    with pytest.raises(ShapeError, match="use dirac"):
        identity().recipe(Layout((4, 4, 3), "conv"))
