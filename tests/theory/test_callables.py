"""Any callable: kinks and jumps found, derivatives right, and what is no pointwise finite function refused."""

import math
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from initwell.errors import ArgumentError
from initwell.theory.activations import activation, activation_names
from initwell.theory.gain import gain
from initwell.theory.kinks import find_kinks


def kinks(fn: Callable[[np.ndarray], np.ndarray]) -> tuple[float, ...]:
    return find_kinks(fn, 2.2e-16).kinks


SMOOTH = [n for n in activation_names() if activation(n).gate is None and not activation(n).kinks]


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_callables_to_eight_digits(name: str) -> None:
    phi = activation(name)
    known, g = gain(name), gain(phi.fn)
    assert g.forward == pytest.approx(known.forward, rel=1e-8)
    assert g.backward == pytest.approx(known.backward, rel=1e-8)
    assert g.stability == pytest.approx(known.stability, rel=1e-8, abs=1e-8)
    assert g.error < 1e-8


@pytest.mark.parametrize("frequency", [20.0, 30.0, 200.0])
def test_a_fast_wave_is_not_taken_for_a_slow_one(frequency: float) -> None:
    # SIREN's sin(30x): E[φ²] = 1/2 and E[φ′²] = ω²/2, but for exp(−2ω²). A difference over a whole period would see 0.
    g = gain(lambda x: np.sin(frequency * x))
    assert g.forward == pytest.approx(math.sqrt(2), rel=1e-8)
    assert g.backward == pytest.approx(math.sqrt(2) / frequency, rel=1e-8)
    assert g.error < 1e-8


def test_a_narrow_bump_has_neither_kinks_nor_jumps() -> None:
    found = find_kinks(lambda x: np.exp(-1e6 * (x - 0.303) ** 2), 2.2e-16)
    assert (found.kinks, found.jumps) == ((), ())


def test_whole_numbers_and_truth_values_are_numbers() -> None:
    step = gain(lambda x: x > 0)
    assert step.forward == pytest.approx(math.sqrt(2))
    assert step.backward == math.inf
    assert gain(lambda x: np.sign(x).astype(np.int8)).forward == pytest.approx(1)


def test_of_many_jumps_the_nearest_are_named() -> None:
    (told,) = (note for note in gain(lambda x: np.round(3 * x)).notes if "jumps" in note)
    assert "-0.833333, -0.5, -0.166667, 0.166667, 0.5, 0.833333 and" in told
    assert len(told) < 250


def test_an_integral_that_does_not_settle_is_named() -> None:
    # The derivative goes as |x − 1/2|^(−2/3): its square has no integral.
    g = gain(lambda x: np.cbrt(x - 0.5))
    assert g.forward == pytest.approx(1.0736942209895, rel=1e-8)
    assert any("did not settle" in note for note in g.notes)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "hardtanh", "hardswish", "softshrink", "hardshrink", "elu"])
def test_kinked_callables_to_eight_digits(name: str) -> None:
    phi = activation(name)
    known, g = gain(name, q=0.6), gain(phi.fn, q=0.6)
    assert g.forward == pytest.approx(known.forward, rel=1e-8)
    assert g.backward == pytest.approx(known.backward, rel=1e-8)


def test_a_clamp_of_torch() -> None:
    g = gain(lambda x: torch.clamp(x, -0.3, 0.7))
    exact = gain("hardtanh", low=-0.3, high=0.7)
    assert activation(lambda x: torch.clamp(x, -0.3, 0.7)).kinks == (-0.3, 0.7)
    assert (g.forward, g.backward) == pytest.approx((exact.forward, exact.backward), rel=1e-10)


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (lambda x: np.abs(x - 1 / 3), (1 / 3,)),
        (lambda x: np.maximum(x, 0) + 1e-3 * np.abs(x - 2), (0.0, 2.0)),
        (lambda x: np.abs(np.abs(x - 0.5) - 0.001), (0.499, 0.5, 0.501)),
        (lambda x: np.where(np.abs(x) < 1e-3, 5.0, x), (-0.001, 0.001)),
        (lambda x: np.square(np.maximum(x, 0)), (0.0,)),
        (lambda x: np.maximum(x - 15.7, 0) + x, (15.7,)),
        (lambda x: 1e-8 * np.maximum(x, 0), (0.0,)),
        (lambda x: 1e8 * np.maximum(x, 0), (0.0,)),
        (np.tanh, ()),
        (lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), ()),
        (np.exp, ()),
        (lambda x: np.sin(20 * x), ()),
    ],
)
def test_kinks_are_found_and_none_invented(fn: Callable[..., Any], expected: tuple[float, ...]) -> None:
    np.testing.assert_allclose(kinks(fn), expected, atol=1e-7)


@pytest.mark.parametrize("place", [0.0, 0.5, 1 / 64, -1 / 3, math.pi, 0.00237, -0.0007, 7.99, -15.9])
def test_a_kink_is_found_wherever_it_lies(place: float) -> None:
    np.testing.assert_allclose(kinks(lambda x: np.abs(x - place)), [place], atol=1e-9)


def test_all_the_steps_of_a_quantizer() -> None:
    found = activation(np.round)
    assert [k for k in found.jumps if abs(k) < 16] == [k + 0.5 for k in range(-16, 16)]
    g = gain(np.round)
    assert math.isinf(g.backward)
    assert g.chi == 0
    assert any("flat almost everywhere" in n for n in g.notes)


def test_jumps_are_told_from_kinks() -> None:
    found = find_kinks(lambda x: np.where(x > 0.3, x, 0.0) + np.abs(x + 1), 2.2e-16)
    assert found.jumps == (0.3,)
    assert found.kinks == (-1.0, 0.3)
    assert any("jumps at -0.5, 0.5" in n for n in gain("hardshrink").notes)


def test_a_sharp_smooth_step_is_integrated_right() -> None:
    # E[tanh²(kz)] → 1 − √(2/π)/k and E[tanh′²] → (4/3)k/√(2π) for large k.
    k = 1000.0
    g = gain(lambda x: np.tanh(k * x))
    assert g.forward**-2 == pytest.approx(1 - math.sqrt(2 / math.pi) / k, rel=1e-7)
    assert g.backward**-2 == pytest.approx(4 / 3 * k / math.sqrt(2 * math.pi), rel=1e-6)


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (lambda x: max(0.0, x), "relu"),
        (math.tanh, "tanh"),
        (lambda x: x * torch.sigmoid(x), "silu"),
        (lambda x: x.relu(), "relu"),
        (lambda x: x * (x > 0), "relu"),
        (lambda x: F.gelu(x, approximate="tanh"), "gelu_tanh"),
        (nn.Sequential(nn.ReLU(inplace=True), nn.Identity()), "relu"),
    ],
    ids=["numbers", "math", "torch", "method", "either", "keyword", "module"],
)
def test_numpy_torch_and_numbers(fn: Callable[..., Any], name: str) -> None:
    g = gain(fn)
    assert g.forward == pytest.approx(gain(name).forward, rel=1e-10)
    assert g.backward == pytest.approx(gain(name).backward, rel=1e-10)


def test_a_straight_through_gradient_counts_as_what_comes_back() -> None:
    class Round(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.round()

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
            return gradients[0]

    assert gain(Round.apply).backward == pytest.approx(1.0)


def test_half_precision_says_so() -> None:
    g = gain(lambda x: x.half().relu())
    assert g.forward == pytest.approx(math.sqrt(2), rel=1e-4)
    assert g.error > 1e-4
    assert any("relative precision" in n for n in g.notes)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: F.softmax(x, dim=-1), "mixes elements"),
        (lambda x: F.softmax(x, dim=0), "mixes elements"),
        (np.flip, "mixes elements"),
        (lambda x: x - x.mean(), "mixes elements"),
        (nn.BatchNorm1d(24), "mixes elements"),
        (np.sum, r"shape \(16, 24\) into \(\)"),
        (np.cumsum, "shape"),
        (F.dropout, "random"),
        (np.log, "nan"),
        (lambda x: x + 0j, "complex"),
        (lambda x: "text", "not an array"),
        (lambda x: None, "not an array"),
        (lambda x, y: x, "takes no array"),
        (nn.Linear(3, 3), "takes no array"),
        (nn.PReLU(device="meta").to_empty, "takes no array"),
        (lambda x: 0 * x, "0 for inputs"),
    ],
)
def test_what_is_refused(fn: Callable[..., Any], message: str) -> None:
    with warnings.catch_warnings(), pytest.raises(ArgumentError, match=message):
        warnings.simplefilter("error")
        gain(fn)


def test_a_custom_module_without_values_is_refused() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1, device="meta"))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.scale * x

    with pytest.raises(ArgumentError, match="Scaled, which cannot be copied"):
        gain(Scaled())


def test_the_failure_of_a_callable_is_its_cause() -> None:
    def broken(x: object) -> object:
        raise KeyError("mine")

    with pytest.raises(ArgumentError, match="KeyError: 'mine'") as caught:
        gain(broken)
    assert isinstance(caught.value.__cause__, KeyError)


def test_nothing_of_the_caller_s_is_touched() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            torch.rand(1), np.random.rand(1), random.random()  # noqa: NPY002
            return x.relu() * self.scale

    module = Counting()
    module.train()
    before = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].copy(), random.getstate()  # noqa: NPY002
    assert gain(module).forward == pytest.approx(math.sqrt(2) / 2)
    assert (module.calls, module.training, module.scale.grad, module.scale.dtype) == (0, True, None, torch.float32)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state(legacy=False)["state"]["key"])  # noqa: NPY002
    assert before[2] == random.getstate()
