"""`measure` against plain PyTorch: the same numbers by another way."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from initwell.errors import ArgumentError, ModelError
from initwell.initializers.distributions import Normal
from initwell.measurement.measurement import Measurement
from initwell.measurement.probe import measure
from initwell.sampling.fill import fill


def rms(x: Tensor) -> float:
    return float(x.detach().double().square().mean().sqrt())


class Net(nn.Module):
    """A reused linear layer, an in-place ReLU, a residual add, a write into a view, functional ops."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)
        self.unused = nn.Linear(1, 1)

    def forward(self, x: Tensor, keep: list[Tensor] | None = None) -> Tensor:
        # With `keep`, the same arithmetic out of place, every intermediate kept: the witness.
        first = self.a(x)
        if keep is None:
            y = F.relu(first, inplace=True)
            z = self.a(y)
            z += y
            z[:, 0].mul_(0.5)
            return self.b(F.gelu(z))  # type: ignore[no-any-return]
        y = F.relu(first)
        second = self.a(y)
        added = second + y
        column = added[:, 0] * 0.5
        joined = torch.cat((column[:, None], added[:, 1:]), 1)
        activated = F.gelu(joined)
        keep += [first, y, second, added, column, activated, out := self.b(activated)]
        return out  # type: ignore[no-any-return]


def built(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return make()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_every_value_and_gradient_against_autograd() -> None:
    model, x = built(Net), drawn(5, 4)
    found = measure(model, x, seed=7)
    keep: list[Tensor] = []
    out = model(x, keep)
    start = torch.from_numpy(fill(Normal(0.0, 1.0), (5, 3), seed=7, name="output.0"))
    gradients = torch.autograd.grad(out, keep, start)
    rows = found.rows
    ops = ["aten.addmm", "aten.relu_", "aten.addmm", "aten.add_", "aten.mul_", "aten.gelu", "aten.addmm"]
    assert [row["op"] for row in rows] == ops
    assert [(row["path"], row["call"]) for row in rows if row["op"] == "aten.addmm"] == [("a", 0), ("a", 1), ("b", 0)]
    for row, value, gradient in zip(rows, keep, gradients, strict=True):
        assert row["shape"] == tuple(value.shape)
        assert row["forward_rms"] == pytest.approx(rms(value), rel=1e-6), row["op"]
        assert row["mean"] == pytest.approx(float(value.detach().mean()), rel=1e-5, abs=1e-7)
        assert row["std"] == pytest.approx(float(value.detach().std(unbiased=False)), rel=1e-5)
        assert row["abs_mean"] == pytest.approx(float(value.detach().abs().mean()), rel=1e-6)
        assert row["zeros"] == float((value == 0).double().mean())
        assert row["gradient_abs_mean"] == pytest.approx(float(gradient.abs().mean()), rel=1e-5), row["op"]
        assert row["gradient_rms"] == pytest.approx(rms(gradient), rel=1e-5), row["op"]
    (given,) = found.inputs
    assert given["forward_rms"] == pytest.approx(rms(x), rel=1e-6)


def test_parameters_against_autograd() -> None:
    model, x = built(Net), drawn(5, 4)
    found = measure(model, x, loss=lambda y: y.square().mean(), learning_rate=0.1)
    loss = model(x).square().mean()
    wanted = {n: p for n, p in model.named_parameters() if not n.startswith("unused")}
    gradients = dict(zip(wanted, torch.autograd.grad(loss, list(wanted.values())), strict=True))
    assert found.loss == pytest.approx(float(loss.detach()), rel=1e-6)
    assert [row["parameter"] for row in found.parameters] == [n for n, _ in model.named_parameters()]
    for row in found.parameters:
        weight = dict(model.named_parameters())[row["parameter"]]
        assert row["weight_rms"] == pytest.approx(rms(weight), rel=1e-6)
        assert row["weight_std"] == pytest.approx(float(weight.detach().std(unbiased=False)), rel=1e-5, abs=1e-9)
        if row["parameter"].startswith("unused"):
            assert (row["gradient_rms"], row["update_ratio"]) == (None, None)
        else:
            expected = rms(gradients[row["parameter"]])
            assert row["gradient_rms"] == pytest.approx(expected, rel=1e-5)
            assert row["update_ratio"] == pytest.approx(0.1 * expected / rms(weight), rel=1e-5)
    assert any("unused.weight" in note for note in found.notes)


def test_no_learning_rate_no_ratio() -> None:
    assert {row["update_ratio"] for row in measure(built(Net), drawn(5, 4)).parameters} == {None}


def test_dead_units_and_saturation() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.Tanh())
    with torch.no_grad():
        model[0].bias[:] = torch.tensor([-1e3, -1e3, -1e3, 10.0])  # type: ignore[operator]
        model[3].weight.zero_()  # type: ignore[operator]
        model[3].bias[:] = torch.tensor([9.0, -9.0, 0.0, 0.1, -0.1])  # type: ignore[operator]
    rows = {row["activation"]: row for row in measure(model, drawn(3, 1, 4, 4)).rows}
    assert rows["relu"]["dead_units"] == 0.75
    assert rows["relu"]["saturated"] is None
    assert rows["tanh"]["saturated"] == pytest.approx(0.4)
    assert rows["tanh"]["overlap"] == pytest.approx(1)
    assert rows["tanh"]["dead_units"] is None


class Transposed(nn.Module):
    """Weights first: the units of the product are its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.w @ x.t())


@pytest.mark.parametrize("samples", [1, 3])
def test_units_of_a_product_written_weights_first(samples: int) -> None:
    model = Transposed()
    with torch.no_grad():
        model.w[:2] = -1
    assert measure(model, torch.ones(samples, 4)).rows[-1]["dead_units"] == 0.4


def test_relu6_is_a_rectifier() -> None:
    model = nn.Sequential(nn.Linear(2, 5), nn.ReLU6())
    with torch.no_grad():
        model[0].weight.zero_()  # type: ignore[operator]
        model[0].bias[:] = torch.tensor([-1.0, -2.0, 3.0, 7.0, 8.0])  # type: ignore[operator]
    row = measure(model, torch.ones(3, 2)).rows[-1]
    assert (row["activation"], row["dead_units"], row["saturated"]) == ("relu6", 0.4, pytest.approx(0.4))


def test_overlap_is_between_samples_also_inside_a_sequence_model() -> None:
    model = built(lambda: nn.MultiheadAttention(4, 2, batch_first=True, bias=False))
    one = drawn(1, 6, 4)
    same = measure(model, (one.expand(3, 6, 4),) * 3)
    assert [row["overlap"] for row in same.rows] == pytest.approx([1.0] * len(same.rows))
    apart = measure(model, (torch.cat((one, drawn(1, 6, 4, seed=9))),) * 3)
    assert all(row["overlap"] < 0.99 for row in apart.rows if row["op"] == "aten.mm")


def test_rows_are_keyed_like_the_trace_and_what_is_left_out_is_listed() -> None:
    model = built(lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Flatten(), nn.BatchNorm1d(4)))
    found = measure(model, drawn(6, 4))
    produced = {row["value"]: found.trace.producer(row["value"]) for row in found.rows}
    assert all(op is not None and op.path == row["path"] for row, op in zip(found.rows, produced.values(), strict=True))
    # Views, dropout's mask and the count of batches have no row; together with the rows they are all the forward ops.
    assert [row["op"] for row in found.rows] == ["aten.addmm", "aten.mul", "aten.native_batch_norm"]
    assert {"aten.t", "aten.bernoulli_", "aten.add_"} <= set(found.skipped)
    assert sum(found.skipped.values()) + len(found.rows) == len(found.trace.forward_ops)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_taken_as_given(training: bool) -> None:
    model = built(lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8))).train(training)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = measure(model, drawn(64, 4) * 10)
    last = found.rows[-1]
    assert (abs(last["std"] - 1) < 0.01) is training
    assert any(row["op"] == "aten.mul" for row in found.rows) is training
    assert model.training is training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_the_seed_decides_masks_and_starting_gradient() -> None:
    model = built(lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5)))
    x = drawn(3, 4)
    torch.manual_seed(5)
    after = torch.rand(1)
    torch.manual_seed(5)
    one, same, other = (measure(model, x, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.rand(1), after)
    assert one.rows == same.rows
    assert one.rows[-1]["forward_rms"] != other.rows[-1]["forward_rms"]
    assert one.rows[-1]["gradient_rms"] != other.rows[-1]["gradient_rms"]


def test_without_a_loss_every_floating_output_gets_a_unit_gradient() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(50, 40))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"one": x * self.w, "two": x + self.w, "which": x.argmax(-1)}

    found = measure(Two(), torch.ones(50, 40))
    assert all(abs(row["gradient_rms"] - 1) < 0.1 for row in found.rows)
    # Independent: the input's gradient is the sum of both, of variance 2 (2,000 entries: ±0.05 is over two errors).
    assert abs(found.inputs[0]["gradient_rms"] - math.sqrt(2)) < 0.1
    assert any("output.2 (int64)" in note for note in found.notes)


def test_sparse_gradients_tied_weights_integer_and_keyword_inputs() -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 4, sparse=True), nn.Linear(4, 5, bias=False)
            self.last = nn.Linear(4, 5)
            self.last.weight = self.head.weight

        def forward(self, ids: Tensor) -> Tensor:
            h = self.embed(ids)
            return self.head(h) + self.last(h)  # type: ignore[no-any-return]

    found = measure(built(Language), {"ids": torch.tensor([[0, 1], [2, 3]])})
    assert found.inputs == ()
    assert all(row["gradient_rms"] for row in found.parameters)
    assert any("head.weight, last.weight" in note for note in found.notes)
    assert found.rows[0]["overlap"] is not None


def test_memory_an_activation_is_not_kept_for_its_statistics() -> None:
    alive: list[int] = []
    layers = [nn.Linear(64, 64) for _ in range(2)]
    model = nn.Sequential(*layers).requires_grad_(False)

    import weakref

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if refs:
                alive.append(sum(r() is not None for r in refs))
            y = x + 1
            refs.append(weakref.ref(y.untyped_storage()))
            return y.detach()

    refs: list[Any] = []
    measure(nn.Sequential(model, *(Watch() for _ in range(5))), drawn(2, 64))
    assert alive
    assert max(alive) <= 1


def test_it_prints_and_gives_its_numbers() -> None:
    found: Measurement = measure(built(Net), drawn(5, 4))
    text = str(found)
    assert "aten.gelu" in text
    assert "No row on purpose" in text
    data = json.loads(found.to_json())
    assert set(data) == {"rows", "inputs", "parameters", "loss", "skipped", "notes"}
    keys = {"path", "op", "call", "shape", "forward_rms", "gradient_rms", "mean", "std", "abs_mean", "overlap"}
    assert keys | {"gradient_abs_mean", "zeros", "saturated", "dead_units", "fidelity"} <= set(data["rows"][0])
    assert "<table>" in found._repr_html_()


def nan_like(x: Tensor) -> Tensor:
    return torch.full_like(x, math.nan)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x: measure(m, nan_like(x)), ArgumentError, r"batch: got 20 NaN or infinite entries of 20"),
        (lambda m, x: measure(m, x[:0]), ArgumentError, "at least one sample"),
        (lambda m, x: measure("m", x), ArgumentError, "model: got a str"),  # type: ignore[arg-type]
        (lambda m, x: measure(nn.ReLU(), x), ModelError, "has no parameters"),
        (lambda m, x: measure(m, x, learning_rate=-1.0), ArgumentError, "learning_rate: got -1.0"),
        (lambda m, x: measure(m, x, learning_rate=math.nan), ArgumentError, "positive"),
        (lambda m, x: measure(m, x[:, :3]), ModelError, "module 'a'"),
        (lambda m, x: measure(m.to("meta"), x), ModelError, "no numbers"),
    ],
)
def test_bad_input(call: Callable[[nn.Module, Tensor], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(built(Net), drawn(5, 4))


def test_an_op_that_writes_beside_what_it_returns_is_measured_by_what_it_returns() -> None:
    """RReLU in training writes down its slopes."""
    model = nn.Sequential(nn.Linear(8, 8), nn.RReLU(0.2, 0.3))
    (row,) = (r for r in measure(model, 10 * torch.randn(64, 8), seed=0).rows if r["path"] == "1")
    with torch.no_grad():
        y = model[0](10 * torch.randn(64, 8))
    assert row["forward_rms"] > 2 and y.square().mean().sqrt() > 2
    assert row["gradient_rms"] == pytest.approx(1.0, rel=0.2)
