"""Which activation follows a layer: every way in which models put one there."""

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from initwell.errors import UnknownNameError
from initwell.theory.activations import activation
from initwell.trace.follow import Following, activation_after, followings, uses
from initwell.trace.ops import ACTIVATIONS, BENDING, CONTRACTIONS, FROM_SHAPE, RECTIFIERS, TRANSPARENT
from initwell.trace.recorder import record


def after(model: nn.Module, batch: Tensor, parameter: str) -> Following | None:
    return activation_after(record(model, batch, backward=False), parameter)


class ByHand(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(0.79788456 * (x + 0.044715 * torch.pow(x, 3))))


class Scale(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0.5 + 1


class Block(nn.Module):
    """Two linear layers and whatever is done between them, written with functions."""

    def __init__(self, between: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.between = between
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.between(self.a(x), self.b(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("between", "op_name", "path", "through"),
    [
        ([nn.ReLU(inplace=True)], "aten.relu", "1", ()),
        ([nn.LayerNorm(4), nn.Dropout(0.5), nn.GELU()], "aten.gelu", "3", ("aten.native_layer_norm", "aten.mul")),
        ([nn.Identity(), nn.Sequential(nn.Unflatten(1, (2, 2)), nn.ELU())], "aten.elu", "2.1", ("aten.view",)),
        ([nn.Softsign()], "aten.abs", "1", ()),
        ([ByHand()], "aten.mul", "1", ()),
        ([Scale(), nn.Tanh()], "aten.tanh", "2", ("aten.mul", "aten.add")),
        ([nn.PReLU()], "aten._prelu_kernel", "1", ()),
    ],
    ids=["inplace", "norm-dropout", "nested", "composite", "by-hand", "scale", "prelu"],
)
def test_through_modules(between: list[nn.Module], op_name: str, path: str, through: tuple[str, ...]) -> None:
    model = nn.Sequential(nn.Linear(4, 4), *between)
    for name in ("0.weight", "0.bias"):
        found = after(model, torch.zeros(2, 4), name)
        assert found is not None
        assert (found.op_name, found.path, found.through) == (op_name, path, through)
        assert found.start == "aten.addmm"


@pytest.mark.parametrize(
    ("between", "a", "b"),
    [
        (lambda a, b: F.silu(a) * b, "aten.silu", None),
        (lambda a, b: a * torch.sigmoid(a) + b, "aten.silu", None),
        (lambda a, b: torch.relu(a + b), "aten.relu", "aten.relu"),
        (lambda a, b: F.hardtanh(torch.cat((a, b), 1), -2, 2)[:, :4], "aten.hardtanh", "aten.hardtanh"),
        (lambda a, b: torch.softmax(a @ b.t(), -1) @ b, None, None),
        (lambda a, b: a.cumsum(0) + b.relu(), None, "aten.relu"),
    ],
    ids=["swiglu", "self-gated", "residual", "cat", "attention", "unlisted"],
)
def test_through_functions(between: Callable[[Tensor, Tensor], Tensor], a: str | None, b: str | None) -> None:
    trace = record(Block(between), torch.zeros(2, 4), backward=False)
    found = [activation_after(trace, f"{name}.weight") for name in "abc"]
    assert [f and f.op_name for f in found] == [a, b, None]


def test_arguments_come_along_and_theory_knows_the_op() -> None:
    found = after(nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(0.3)), torch.zeros(2, 4), "0.weight")
    assert found is not None
    assert found.arguments == {"negative_slope": 0.3}
    assert activation(found.op_name).name == "leaky_relu"


def test_convolution_norm_pool_and_residual() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.pool = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.pool(self.norm(self.conv(x)) + x))

    found = after(Residual(), torch.zeros(1, 2, 4, 4), "conv.weight")
    assert found is not None
    assert found.through == ("aten.native_batch_norm", "aten.add", "aten.max_pool2d_with_indices")


@pytest.mark.parametrize("reparametrized", [weight_norm, spectral_norm])
def test_through_reparametrized_weights(reparametrized: Callable[[nn.Module], nn.Module]) -> None:
    trace = record(nn.Sequential(reparametrized(nn.Linear(4, 4)), nn.Tanh()), torch.zeros(2, 4), backward=False)
    for name in trace.parameters:
        found = activation_after(trace, name)
        assert found is not None
        assert found.op_name == "aten.tanh", name


def test_transformer_layer() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.TransformerEncoderLayer(4, 2, 8, activation="gelu", batch_first=True)
    trace = record(model, torch.zeros(2, 3, 4), backward=False)
    found = {n: f.op_name for n in trace.parameters if (f := activation_after(trace, n)) is not None}
    assert found == {"linear1.weight": "aten.gelu", "linear1.bias": "aten.gelu"}
    (end,) = followings(trace, "self_attn.out_proj.weight")
    assert (end.kind, end.op_name) == ("contraction", "aten.addmm")


def test_every_use_of_a_shared_layer_is_followed() -> None:
    shared = nn.Linear(4, 4)
    trace = record(nn.Sequential(shared, nn.Tanh(), shared, nn.ReLU(), shared), torch.zeros(2, 4), backward=False)
    assert [op.call for op in uses(trace, "0.weight")] == [0, 1, 2]
    assert [f.kind for f in followings(trace, "0.weight")] == ["module", "module", "output"]
    assert [f.op_name for f in followings(trace, "0.weight")] == ["aten.tanh", "aten.relu", ""]


def test_an_unknown_parameter_gets_the_nearest_names() -> None:
    trace = record(nn.Sequential(nn.Linear(4, 4)), torch.zeros(2, 4), backward=False)
    with pytest.raises(UnknownNameError, match=r"0\.weight"):
        activation_after(trace, "0.weigth")


def test_tables_agree_with_each_other_and_name_real_ops() -> None:
    tables = [set(ACTIVATIONS), set(CONTRACTIONS), set(TRANSPARENT), set(BENDING), set(FROM_SHAPE)]
    for i, one in enumerate(tables):
        for other in tables[i + 1 :]:
            assert one.isdisjoint(other)
    unknown = {name for table in tables for name in table if not hasattr(torch.ops.aten, name.removeprefix("aten."))}
    assert unknown == set()
    assert set(ACTIVATIONS.values()) >= RECTIFIERS
    assert all(TRANSPARENT.values())


def test_theory_knows_every_activation_op_by_that_name() -> None:
    assert {op: activation(op).name for op in ACTIVATIONS} == dict(ACTIVATIONS)
