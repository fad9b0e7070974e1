"""The catalogue: each member against PyTorch's own, every spelling resolved, and wrong members refused."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from initwell.errors import ArgumentError, InitwellError, ShapeError, UnknownNameError
from initwell.theory.activation import Activation
from initwell.theory.activations import activation, activation_names
from initwell.theory.checks import checked
from initwell.theory.piecewise import piecewise

# Every one PyTorch has, with its module and what it is called here.
TORCH: list[tuple[str, nn.Module]] = [
    ("identity", nn.Identity()),
    ("relu", nn.ReLU()),
    ("leaky_relu", nn.LeakyReLU(0.3)),
    ("prelu", nn.PReLU(init=0.1)),
    ("relu6", nn.ReLU6()),
    ("threshold", nn.Threshold(0.2, -3.0)),
    ("hardtanh", nn.Hardtanh(-0.5, 2.0)),
    ("hardsigmoid", nn.Hardsigmoid()),
    ("hardswish", nn.Hardswish()),
    ("softshrink", nn.Softshrink(0.8)),
    ("hardshrink", nn.Hardshrink(0.8)),
    ("elu", nn.ELU(1.7)),
    ("selu", nn.SELU()),
    ("celu", nn.CELU(0.6)),
    ("gelu", nn.GELU()),
    ("gelu_tanh", nn.GELU("tanh")),
    ("silu", nn.SiLU()),
    ("mish", nn.Mish()),
    ("softplus", nn.Softplus(beta=2.0)),
    ("softsign", nn.Softsign()),
    ("tanh", nn.Tanh()),
    ("sigmoid", nn.Sigmoid()),
    ("logsigmoid", nn.LogSigmoid()),
    ("tanhshrink", nn.Tanhshrink()),
    ("glu", nn.GLU()),
]


@pytest.mark.parametrize(("name", "module"), TORCH, ids=[n for n, _ in TORCH])
def test_function_and_derivative_are_pytorch_s(name: str, module: nn.Module) -> None:
    phi = activation(module)
    assert phi.name == name
    x = torch.linspace(-9, 9, 1002, dtype=torch.float64).reshape(3, 334) + 0.0013
    x.requires_grad_(True)
    y = module.double()(x)
    np.testing.assert_allclose(phi.fn(x.detach().numpy()), y.detach().numpy(), rtol=1e-8, atol=1e-8)
    if phi.gate is None:
        y.sum().backward()
        assert x.grad is not None
        # PyTorch's CELU divides by an alpha that went through single precision.
        np.testing.assert_allclose(phi.derivative(x.detach().numpy()), x.grad.numpy(), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (F.relu, "relu"),
        (torch.relu_, "relu"),
        (torch.Tensor.relu, "relu"),
        (torch.ops.aten.relu.default, "relu"),
        (torch.ops.aten.relu, "relu"),
        ("aten.hardtanh_.default", "hardtanh"),
        (F.gelu, "gelu"),
        (F.silu, "silu"),
        (F.logsigmoid, "logsigmoid"),
        (F.softplus, "softplus"),
        (F.hardshrink, "hardshrink"),
        (F.threshold, "threshold"),
        (F.glu, "glu"),
        (torch.special.expit, "sigmoid"),
        (torch.sin, "sin"),
        (torch.special.erf, "erf"),
        (nn.ReLU, "relu"),
        (nn.LeakyReLU, "leaky_relu"),
        ("LeakyReLU", "leaky_relu"),
        ("linear", "identity"),
        ("swish", "silu"),
        ("relu²", "relu2"),
        ("gelu_new", "gelu_tanh"),
        ("star_relu", "star_relu"),
    ],
    ids=lambda v: v if isinstance(v, str) else getattr(v, "__qualname__", type(v).__name__),
)
def test_spellings(spec: Any, name: str) -> None:
    assert activation(spec).name == name


def test_every_spelled_module_type_of_pytorch_exists() -> None:
    spelled = {t for n in activation_names() for t in activation(n).torch if t.startswith("torch.nn.modules.")}
    assert len(spelled) >= 25
    for name in spelled:
        kind = getattr(nn, name.rpartition(".")[2])
        assert f"{kind.__module__}.{kind.__qualname__}" == name


def test_every_spelled_function_of_pytorch_exists() -> None:
    places = (torch, F, torch.Tensor, torch.ops.aten, torch.special, torch._C._nn)
    functions = {t for n in activation_names() for t in activation(n).torch if "." not in t}
    missing = {f for f in functions if not any(hasattr(p, f.removeprefix("special_")) for p in places)}
    assert missing == set()


def test_parameters_of_a_module_can_be_overridden() -> None:
    assert activation(nn.LeakyReLU(0.3), slope=0.5).parameters == {"slope": 0.5}


def test_slopes_per_channel_count_by_their_root_mean_square() -> None:
    module = nn.PReLU(2)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([0.1, 0.7]))
    assert activation(module).parameters["slope"] == pytest.approx(0.5)


def test_a_prelu_on_meta_has_the_slope_it_will_start_from() -> None:
    assert activation(nn.PReLU(init=0.4, device="meta")).parameters["slope"] == pytest.approx(0.4)


def test_a_subclass_with_its_own_forward_is_another_function() -> None:
    class Doubled(nn.ReLU):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    class Renamed(nn.ReLU):
        pass

    assert activation(Renamed()).name == "relu"
    phi = activation(Doubled())
    assert phi.name == "Doubled"
    assert phi.kinks == (0.0,)
    assert float(phi.fn(np.array([3.0]))[0]) == 6.0


def test_the_same_request_gives_the_same_record() -> None:
    assert activation("gelu") is activation(nn.GELU())
    assert hash(activation("leaky_relu")) == hash(activation("leaky_relu"))
    assert activation("relu") != activation("gelu")


def test_records_are_plain_data() -> None:
    data = activation("hardtanh", low=-2.0).to_dict()
    assert data["kinks"] == [-2.0, 1.0]
    assert data["parameters"] == {"low": -2.0, "high": 1.0}
    assert "0x" not in str(data)


@pytest.mark.parametrize("name", activation_names())
def test_every_member_says_what_it_is(name: str) -> None:
    phi = activation(name)
    assert phi.name == name
    assert phi.citation or name == "identity"
    assert all(np.isfinite(phi.fn(np.array([-1e4, 1e4, -40.0, 40.0]))))
    if phi.bounded:
        assert np.max(np.abs(phi.fn(np.linspace(-1e3, 1e3, 1000)))) < 10


@pytest.mark.parametrize("name", [n for n in activation_names() if activation(n).gate is None])
def test_stated_kinks_are_all_the_kinks_there_are(name: str) -> None:
    phi = activation(name)
    found = activation(phi.fn)
    np.testing.assert_allclose(found.kinks, phi.kinks, atol=1e-5)
    np.testing.assert_allclose(found.jumps, phi.jumps, atol=1e-9)


def test_unknown_names_list_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'gelu'"):
        activation("gelo")
    with pytest.raises(UnknownNameError, match="'slope'"):
        activation("leaky_relu", slop=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: activation("gelu", slope=1.0), "has no parameters"),
        (lambda: activation("leaky_relu", slope=float("nan")), "leaky_relu slope"),
        (lambda: activation("softplus", beta=0.0), "above 0"),
        (lambda: activation("celu", alpha=-1.0), "above 0"),
        (lambda: activation("squareplus", b=0.0), "above 0"),
        (lambda: activation("hardtanh", low=2.0), "below high"),
        (lambda: activation("softshrink", threshold=-1.0), "above 0"),
        (lambda: activation("hardshrink", threshold=0.0), "above 0"),
        (lambda: activation(np.tanh, slope=1.0), "functools.partial"),
        (lambda: activation(activation("relu"), slope=1.0), "functools.partial"),
        (lambda: activation(None), "activation: got None"),
        (lambda: activation(3.0), "nn.Module"),
        (lambda: activation(dict), "nn.Module"),
    ],
)
def test_bad_requests(call: Callable[[], Activation], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        call()


def test_an_odd_axis_cannot_be_halved() -> None:
    with pytest.raises(ShapeError, match="even"):
        activation("glu").fn(np.zeros((2, 3)))


def test_a_member_that_contradicts_itself_is_refused() -> None:
    tanh, relu, gelu = activation("tanh"), activation("relu"), activation("gelu")
    wrong = [
        (replace(tanh, derivative=np.cos), "derivative"),
        (replace(activation("silu"), odd=True), "odd"),
        (replace(gelu, closed_forms={"second_moment": lambda q: 0.4253}), "second_moment"),
        (replace(relu, closed_forms={"growth": lambda q, mu=0.0: 0.4}), "growth"),
        (
            replace(gelu, closed_forms=dict(gelu.closed_forms) | {"overlap": lambda q, c: 0.4}),
            "overlap at correlation 1",
        ),
    ]
    for entry, message in wrong:
        with pytest.raises(ValueError, match=message):
            checked(entry)


def test_a_record_with_strange_fields_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown closed forms"):
        Activation("x", np.tanh, np.cos, closed_forms={"variance": lambda q: q})
    with pytest.raises(ValueError, match="include the jumps"):
        Activation("x", np.tanh, np.cos, jumps=(1.0,))
    with pytest.raises(ValueError, match="ascend"):
        Activation("x", np.tanh, np.cos, kinks=(1.0, 0.0))


def test_a_builder_of_one_s_own() -> None:
    clipped = piecewise("clipped", (-0.3, 0.7), ((-0.3,), (0, 1), (0.7,)), citation="here")
    assert activation(clipped) is clipped
    assert clipped.bounded
    assert not clipped.odd
    assert activation(functools.partial(np.clip, a_min=-0.3, a_max=0.7)).kinks == clipped.kinks


def test_every_refusal_is_an_initwell_error() -> None:
    with pytest.raises(InitwellError):
        activation("no such thing at all")
