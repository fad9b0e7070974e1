"""What cannot be known of a model: an op is named, or where the unknown comes from; never a guess, never an error."""

import math
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initwell as iw
from initwell.propagate.moments.atoms import viewed
from initwell.propagate.moments.signal import Signal, replace
from initwell.propagate.table import Call


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Model(nn.Module):
    """One layer, put to use as a test says."""

    def __init__(self, forward: Callable[[Tensor, nn.Module], Tensor]) -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(8, 8), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.how(x, self.layer)


def divided(x: Tensor, layer: nn.Module) -> Tensor:
    y: Tensor = layer(x) / 0.0
    return y


def of_nothing(x: Tensor, layer: nn.Module) -> Tensor:
    return torch.sqrt(layer(x) * 0)


def raised(x: Tensor, layer: nn.Module) -> Tensor:
    y: Tensor = layer(x) + math.inf
    return y


@pytest.mark.parametrize(
    ("model", "op"),
    [
        (Model(divided), "aten.div"),
        (Model(of_nothing), "aten.div"),
        (Model(raised), "aten.add"),
        (nn.Sequential(nn.Linear(8, 8), nn.Softshrink(0.0)), "aten.softshrink"),
    ],
    ids=["by zero", "root of zero", "infinite", "limit of a function"],
)
def test_what_has_no_moments_is_unknown_and_the_op_is_named(model: nn.Module, op: str) -> None:
    found = iw.predict(model, normal(4, 8))
    assert any(note.startswith("Unknown: ") and f"{op} (" in note for note in found.notes)
    assert any(row["fidelity"] == "unknown" for row in found.rows)


class Unlisted(nn.Module):
    """Has a weight in a list, where PyTorch does not see it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.hidden = nn.Linear(8, 8), [nn.Parameter(normal(8, 8))]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x) @ self.hidden[0]
        return y


def test_weights_that_are_not_the_models_own_are_named() -> None:
    found = iw.predict(nn.Sequential(nn.Tanh(), Unlisted()), normal(4, 8))
    assert [row["forward_rms"] is None for row in found.rows] == [False, False, True]
    note = "Unknown, as neither the model's own nor of the batch (a weight that is not registered, or what another "
    assert any(said.startswith(note) and said.endswith("tensors at module '1'.") for said in found.notes)


def test_weights_of_a_loss_are_named() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, output: Tensor) -> Tensor:
            return (output * self.weight).square().mean()

    found = iw.predict(nn.Linear(8, 8), normal(4, 8), loss=Weighted())
    assert any("not registered" in note and "(loss)" in note for note in found.notes)


def test_what_another_thread_makes_is_named() -> None:
    def elsewhere(x: Tensor, layer: nn.Module) -> Tensor:
        with ThreadPoolExecutor(1) as pool:
            y: Tensor = pool.submit(layer, x).result()
            return y

    found = iw.predict(Model(elsewhere), normal(4, 8))
    assert any("another thread" in note and "output.0" in note for note in found.notes)


def test_gradients_of_parts_that_are_written_are_named() -> None:
    ring = nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")
    found = iw.predict(nn.Sequential(ring), normal(4, 3, 8, 8))
    assert any(note.startswith("Gradients of parts that are written into a tensor are not") for note in found.notes)


def test_squares_beyond_the_largest_number_are_no_warning() -> None:
    found = iw.predict(nn.Linear(8, 4).double(), normal(4, 8).double() * 1e200)
    assert any("input.0" in note for note in found.notes) and found.rows[0]["fidelity"] == "unknown"


def test_a_sparse_weight_is_unknown_where_its_op_is() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.eye(8).to_sparse())

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = torch.sparse.mm(self.weight, x)
            return y

    found = iw.predict(Sparse(), normal(8, 4))
    assert "aten._sparse_addmm" in found.unsupported
    assert found.parameters[0]["weight_rms"] == pytest.approx(math.sqrt(1 / 8))


def test_a_buffer_that_is_no_number_is_named() -> None:
    model = nn.Sequential(nn.BatchNorm1d(8)).eval()
    assert isinstance(model[0], nn.BatchNorm1d) and model[0].running_var is not None
    model[0].running_var[0] = math.nan
    found = iw.predict(model, normal(4, 8))
    assert "NaN or infinite entries, so what is made of them is unknown: 0.running_var." in found.notes


def test_buffers_that_are_sparse_or_quantized_come_back() -> None:
    model = nn.Sequential(nn.Linear(8, 4))
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    assert iw.predict(model, normal(4, 8)).rows[0]["forward_rms"] > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PyTorch's own: quantized tensors are going to change
        model.register_buffer("few", torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.quint8))
    found = iw.predict(model, normal(4, 8))
    assert found.rows[0]["forward_rms"] > 0
    assert any(
        "'few' cannot lie on the meta device" in note and "run on the given batch" in note for note in found.notes
    )


def test_known_numbers_without_a_size_name_their_op() -> None:
    class Far(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
            return self.layer(x), places.float().log()

    found = iw.predict(Far(), (normal(4, 8), torch.arange(8)))
    assert "Unknown: 1 of 2 values, through aten.log (1×)." in found.notes


def test_the_first_op_that_is_unknown_is_named_first() -> None:
    def many(x: Tensor, layer: nn.Module) -> Tensor:
        y: Tensor = layer(x).tanh() * 2
        return (y.abs().ceil() + 1).cos().exp().floor().erf().sigmoid().add(1).sqrt()

    found = iw.predict(Model(many), normal(4, 8), rules={"aten.tanh": lambda call: (None,)})
    said = next(note for note in found.notes if note.startswith("Unknown: "))
    assert "values, through aten.tanh (1×), aten.mul (" in said and " more" in said


def test_what_a_rule_makes_infinite_is_unknown_in_a_view_too() -> None:
    """A view shows known entries; a caller's rule of one, or a sum over more than floats hold, may not."""

    def broken(call: Call) -> list[Signal]:
        shown = viewed(call.signal("self"), call.shape())
        return [replace(shown, moments=np.full_like(shown.moments, np.nan))]

    model = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)), nn.Tanh())
    found = iw.predict(model, torch.ones(3, 4), rules={"aten.view": broken})
    assert [row["fidelity"] == "unknown" for row in found.rows if row["op"] == "aten.tanh"] == [True]


def test_gradients_of_gradients_that_a_forward_takes_are_unknown_and_no_error() -> None:
    """Forces as gradients of an energy: what comes back through a derivative has no rule of the forward function's."""

    class Forces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Softplus(), nn.Linear(8, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            (forces,) = torch.autograd.grad(self.layers(x).sum(), x, create_graph=True)
            return forces

    found = iw.predict(Forces(), normal(16, 8))
    assert found.rows[0]["forward_rms"] is not None
    assert found.rows[0]["gradient_rms"] is None
    assert any("aten.softplus_backward" in note for note in found.notes)


class Steps(nn.Module):
    """Very many steps of one pointwise function, with no layer between them."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.first, self.last, self.steps = nn.Linear(8, 8), nn.Linear(8, 8), steps

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for _ in range(self.steps):
            x = torch.relu(x) + 0.1
        found: Tensor = self.last(x)
        return found


def test_a_function_of_too_many_steps_is_unknown_and_no_crash() -> None:
    found = iw.predict(Steps(600), torch.randn(16, 8, generator=torch.Generator().manual_seed(0)))
    assert found.rows[-1]["forward_rms"] is None
    assert any("so many steps" in note for note in found.notes)
