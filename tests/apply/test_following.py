"""The activation behind each layer: by adjacency, by type, by trace; and what is said when it is not known."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from initwell.apply.plan import plan
from initwell.errors import ArgumentError, UnknownNameError
from initwell.theory.gain import gain


def row(model: nn.Module, name: str, **options: object) -> tuple[float, str]:
    found = {r.parameter: r for r in plan(model, "kaiming", **options).rows}[name]  # type: ignore[arg-type]
    assert found.gain is not None
    return found.gain, found.reason


class Functional(nn.Module):
    def __init__(self, act: Callable[[Tensor], Tensor], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.act, self.norm = act, norm or nn.Identity()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.act(self.norm(self.a(x))), self.b.weight, self.b.bias)


@pytest.mark.parametrize(
    "module", [nn.Tanh(), nn.GELU(approximate="tanh"), nn.SiLU(), nn.LeakyReLU(0.3), nn.Softplus(2)]
)
def test_the_next_module_of_a_sequential(module: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), module, nn.Linear(8, 3))
    found, reason = row(model, "0.weight")
    assert found == pytest.approx(gain(module).forward)
    assert "through BatchNorm1d at 1" in reason
    assert row(model, "3.weight") == (1.0, "kaiming fan_in 8, gain 1 (no activation follows: it is the output)")


def test_nested_sequentials_and_a_shared_activation() -> None:
    act = nn.ReLU()
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model = nn.Sequential(block, act, nn.Sequential(nn.Conv2d(4, 4, 3), act), nn.Flatten(), nn.Linear(16, 2))
    assert row(model, "0.0.weight")[0] == pytest.approx(2**0.5)
    assert row(model, "2.0.weight")[0] == pytest.approx(2**0.5)
    assert row(model, "4.weight")[0] == 1


def test_two_layers_without_an_activation_between() -> None:
    found, reason = row(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3), nn.ReLU()), "0.weight")
    assert found == 1 and "before Linear at 1" in reason
    found, reason = row(nn.Sequential(nn.Linear(6, 8), nn.Softmax(1)), "0.weight")
    assert found == 1 and "Softmax at 1 follows, which is not pointwise" in reason


def test_without_an_example_the_sole_activation_stands_for_all_and_says_so() -> None:
    found, reason = row(Functional(nn.Tanh()), "a.weight")
    assert found == pytest.approx(gain("tanh").forward)
    assert "only activation" in reason and "example=" in reason


def test_without_any_activation_module_relu_is_assumed_and_says_so() -> None:
    found, reason = row(Functional(torch.tanh), "a.weight")
    assert found == pytest.approx(2**0.5) and "assumed" in reason and "no activation module" in reason
    both = nn.ModuleList([Functional(nn.Tanh()), Functional(nn.ReLU())])
    assert "assumed: the model has tanh, relu" in row(both, "0.a.weight")[1]


@pytest.mark.parametrize(
    ("act", "name"),
    [
        (torch.tanh, "tanh"),
        (F.gelu, "gelu"),
        (lambda x: F.gelu(x, approximate="tanh"), "gelu_tanh"),
        (lambda x: F.leaky_relu(x, 0.3), "leaky_relu(slope=0.3)"),
        (lambda x: F.elu(x, 0.5), "elu(alpha=0.5)"),
        (F.relu6, "relu6"),
        (F.selu, "selu"),
        (lambda x: F.celu(x, 0.5), "celu(alpha=0.5)"),
        (lambda x: x * torch.sigmoid(x), "silu"),
        (lambda x: F.relu(F.dropout(x, 0.1)), "relu"),
        (lambda x: F.hardtanh(x, -0.5, 2.0), "hardtanh(low=-0.5, high=2)"),
        (lambda x: x.clamp(min=0), "relu"),
        (lambda x: torch.clamp_min(x, 0.0), "relu"),
        (lambda x: x.clamp(0, 6), "relu6"),
        (lambda x: x.clamp(-0.5, 2.0), "hardtanh(low=-0.5, high=2)"),
        (torch.cos, "cos"),
        (torch.erf, "erf"),
        (torch.abs, "abs"),
        (torch.atan, "arctan"),
    ],
)
def test_functional_activations_are_followed_with_an_example(act: Callable[[Tensor], Tensor], name: str) -> None:
    model = Functional(act, nn.LayerNorm(8))
    found, reason = row(model, "a.weight", example=torch.zeros(4, 6))
    assert f"for {name} (" in reason and "native_layer_norm" in reason
    bare, _, options = name.partition("(")
    spec = dict(part.split("=") for part in options.rstrip(")").split(", ") if part)
    assert found == pytest.approx(gain(bare, **{k: float(v) for k, v in spec.items()}).forward)
    assert row(model, "b.weight", example=torch.zeros(4, 6))[0] == 1


def _squared(x: Tensor) -> Tensor:
    positive = F.relu(x)
    return positive * positive


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (lambda x: F.relu(x) ** 2, "relu in the forward of the model itself; pow then makes more of it"),
        (_squared, "mul then makes more of it"),
        (lambda x: F.relu(x).square(), "then makes more of it, which the gain does not count"),
        (lambda x: x * torch.sigmoid(1.702 * x), "mul then makes more of it"),
        (F.tanhshrink, "sub then makes more of it"),
        (lambda x: x.clamp(min=0).square(), "clamp in the forward of the model itself; pow then makes more of it"),
        # GELU in both forms, softsign and a rescaling by the largest entry: the op is part of more.
        (lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.045 * x**3))), "mul then makes more of it"),
        (lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)), "followed as far as erf"),
        (F.softsign, "followed as far as abs"),
        (lambda x: x / x.abs().amax(), "followed as far as abs"),
        (lambda x: x / (x.abs().mean() + 1), "followed as far as abs"),
        (torch.asinh, "followed as far as asinh"),
        (lambda x: torch.maximum(x, torch.zeros_like(x)), "followed as far as maximum"),
        (lambda x: torch.where(x > 0, x, 0.1 * x), "may be part of an activation written by hand"),
        (lambda x: x.clamp(min=-1), "clamp in the forward of the model itself follows, which initwell has no gain for"),
        (lambda x: F.prelu(x, torch.tensor(0.3)), "which initwell has no gain for"),
    ],
)
def test_what_a_forward_makes_of_it_by_hand_is_not_passed_over_in_silence(
    act: Callable[[Tensor], Tensor], told: str
) -> None:
    # One module down, so that the functions stand beside layers, as in a block of a larger model.
    _, reason = row(nn.Sequential(Functional(act)), "0.a.weight", example=torch.zeros(4, 6))
    assert told.replace("in the forward of the model itself", "at 0") in reason


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value, self.out = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.gate(x)) * self.value(x)
        return F.relu(self.out(F.dropout(h, 0.1)) + x) + x


def test_gates_residual_branches_and_dropout_are_no_activations_by_hand() -> None:
    rows = plan(Gated(), "kaiming", example=torch.zeros(4, 6)).rows
    assert all("then makes more" not in r.reason for r in rows)
    assert "for silu (traced to silu" in rows[0].reason


def test_an_example_may_be_a_dict_or_a_tuple_and_the_model_may_be_on_meta() -> None:
    for example in ({"x": torch.zeros(2, 6)}, (torch.zeros(2, 6),)):
        assert "for tanh" in row(Functional(torch.tanh), "a.weight", example=example)[1]
    with torch.device("meta"):
        model = Functional(torch.tanh)
    assert "for tanh" in row(model, "a.weight", example=torch.zeros(2, 6))[1]


class ByValue(Functional):
    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.a(x)
        return F.linear(torch.tanh(h) if float(h.sum()) > -1e9 else h, self.b.weight)


def test_a_forward_that_looks_at_numbers_is_run_once() -> None:
    made = plan(ByValue(F.relu), "kaiming", example=torch.zeros(2, 6))
    assert "for tanh" in made.rows[0].reason
    assert any("was run once" in note for note in made.notes)


def test_a_residual_branch_is_followed_to_its_own_activation() -> None:
    class Residual(Functional):
        def forward(self, x: Tensor) -> Tensor:
            return x + F.linear(F.silu(self.a(x)), self.b.weight)[:, :1]

    assert "for silu" in row(Residual(F.relu), "a.weight", example=torch.zeros(2, 6))[1]
    assert row(Residual(F.relu), "b.weight", example=torch.zeros(2, 6))[0] == 1


def test_layers_that_the_example_does_not_reach_are_named() -> None:
    model = Functional(F.relu)
    model.spare = nn.Linear(5, 5)
    assert "not used in the forward of the example" in row(model, "spare.weight", example=torch.zeros(2, 6))[1]


def test_prelu_counts_its_slopes_as_they_are() -> None:
    prelu = nn.PReLU(2)
    with torch.no_grad():
        prelu.weight.copy_(torch.tensor([0.1, 0.5]))
    model = nn.Sequential(nn.Linear(6, 2), prelu)
    # E[φ²] averages over the channels: (1 + mean a²)/2.
    expected = (2 / (1 + (0.01 + 0.25) / 2)) ** 0.5
    assert row(model, "0.weight")[0] == pytest.approx(expected)
    assert row(model, "0.weight", example=torch.zeros(3, 6))[0] == pytest.approx(expected)


def test_modules_that_hold_their_own_nonlinearity() -> None:
    assert row(nn.RNN(4, 5, nonlinearity="relu"), "weight_ih_l0")[0] == pytest.approx(2**0.5)
    assert "gates" in row(nn.LSTM(4, 5), "weight_ih_l0")[1]
    assert "attention" in row(nn.MultiheadAttention(8, 2), "out_proj.weight")[1]
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu")
    assert row(layer, "linear1.weight")[0] == pytest.approx(gain("gelu").forward)
    assert row(layer, "linear2.weight")[0] == 1


def test_activation_overrides_what_is_found() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    assert row(model, "2.weight", activation="tanh") == (
        gain("tanh").forward,
        "kaiming fan_in 8, gain 1.593 for tanh (given as activation=)",
    )
    assert row(model, "0.weight", activation="linear")[0] == 1
    notes = plan(model, "xavier", activation="tanh").notes
    assert any("activation= not looked at" in note for note in notes)
    with pytest.raises(UnknownNameError, match="'gelu'"):
        plan(model, "kaiming", activation="gellu")
    with pytest.raises(ArgumentError):
        plan(model, "kaiming", activation=3)


def test_the_model_is_left_as_it_was_by_tracing() -> None:
    model = Functional(torch.tanh, nn.BatchNorm1d(8)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    plan(model, "kaiming", example=torch.ones(4, 6))
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.7 * x)


def test_a_module_of_the_users_own_is_recognized_when_it_is_traced() -> None:
    model = nn.Sequential(nn.Linear(6, 8), Swish(), nn.Linear(8, 3))
    found, reason = row(model, "0.weight", example=torch.zeros(2, 6))
    assert found == pytest.approx(gain(lambda x: x * torch.sigmoid(1.7 * x)).forward)
    assert "for Swish" in reason and "at 1" in reason
    assert "assumed" in row(model, "0.weight")[1], "without an example it is not run, so not known"


def test_a_gate_counts_by_its_own_gain() -> None:
    found, reason = row(nn.Sequential(nn.Linear(6, 8), nn.GLU(), nn.Linear(4, 3)), "0.weight")
    assert found == pytest.approx(gain("glu").forward) and "for glu" in reason
