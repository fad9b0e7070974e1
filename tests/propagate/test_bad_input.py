"""What bad input gets: an error that names it and the cure, or a note; never a number."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initwell as iw
from initwell.errors import ArgumentError, ModelError
from initwell.propagate.table import Call


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


class Model(nn.Module):
    """One layer, put to use as a test says."""

    def __init__(self, forward: Callable[..., Any], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.layer, self.how = layer or nn.Linear(8, 8), forward

    def forward(self, x: Tensor) -> Any:
        return self.how(x, self.layer)


def broken(x: Tensor, layer: nn.Module) -> Tensor:
    raise KeyError("mask")


def test_a_model_that_fails_names_its_module_and_keeps_its_own_error() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.ReLU(), Model(broken)))
    with pytest.raises(ModelError, match=r"module '1\.1' \(.*test_bad_input.py:\d+\): KeyError: 'mask'") as caught:
        iw.predict(model, normal(2, 8))
    assert isinstance(caught.value.__cause__, KeyError)


def test_shapes_that_do_not_fit_are_told_in_pytorchs_words() -> None:
    with pytest.raises(ModelError, match=r"module '0': .*shapes cannot be multiplied \(2x9 and 8x16\)"):
        iw.predict(net(), normal(2, 9))
    with pytest.raises(ModelError, match=r"module '0': .* Check that the batch is what this model's forward takes"):
        iw.predict(net(), {"tokens": normal(2, 8)})


WHOLE: dict[str, tuple[nn.Module, Tensor, str]] = {
    "linear": (nn.Linear(8, 4), torch.ones(2, 8, dtype=torch.int64), r"aten.addmm.default at the model itself"),
    "linear, 3 axes": (nn.Linear(8, 4), torch.ones(2, 3, 8, dtype=torch.int32), r"aten.addmm.default"),
    "mask": (nn.Linear(8, 4), torch.ones(2, 8, dtype=torch.bool), r"bool numbers"),
    "softmax": (nn.Softmax(-1), torch.ones(2, 8, dtype=torch.int64), r"aten._softmax.default at the model itself"),
    "double": (nn.Linear(8, 4), torch.ones(2, 8, dtype=torch.float64), r"float64 numbers.*takes float32"),
    "double, layer norm": (nn.LayerNorm(8), torch.ones(2, 8, dtype=torch.float64), r"native_layer_norm"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_inputs_of_the_wrong_number_type_are_refused_as_pytorch_would(name: str) -> None:
    model, batch, text = WHOLE[name]
    with pytest.raises((RuntimeError, NotImplementedError)):
        model(batch)
    with pytest.raises(ArgumentError, match=text) as caught:
        iw.predict(model, batch)
    assert caught.value.argument == "input.0" and ".to(torch.float32)" in caught.value.cure


@pytest.mark.parametrize(
    ("layer", "shape", "text"),
    [
        (nn.Linear(8, 4, bias=False), (2, 8), r"module '0': RuntimeError: expected m1 and m2 to have the same dtype"),
        (nn.Conv2d(3, 4, 3), (2, 3, 8, 8), r"module '0': RuntimeError: Input type .* should be the same"),
        (nn.Conv2d(3, 4, 3, bias=False), (2, 3, 8, 8), r"module '0': RuntimeError: expected scalar type Long"),
        (nn.Embedding(8, 4), (2, 8), r"module '0': RuntimeError: Expected tensor for argument #1 'indices'"),
    ],
    ids=["no bias", "convolution", "convolution without bias", "embedding"],
)
def test_where_the_forward_itself_fails_on_them_its_words_are_kept(layer: nn.Module, shape: Any, text: str) -> None:
    batch = normal(*shape) if isinstance(layer, nn.Embedding) else torch.ones(shape, dtype=torch.int64)
    with pytest.raises(ModelError, match=text):
        iw.predict(nn.Sequential(layer), batch)


def picked(how: str) -> Callable[[Tensor, Tensor, nn.Module], Tensor]:
    """Return a use of whole numbers: 8 features of each sample, and 8 classes."""

    def forward(x: Tensor, index: Tensor, layer: nn.Module) -> Tensor:
        y: Tensor = layer(x)
        found: Tensor = {
            "index": lambda: y[:, index],
            "mask and index": lambda: y[torch.tensor([True, False, True, False], device=y.device), index[:2]],
            "index_select": lambda: y.index_select(1, index),
            "gather": lambda: y.gather(1, index.expand(4, -1)),
            "scatter": lambda: y.scatter(1, index.expand(4, -1), 0.0),
            "one_hot": lambda: y + torch.nn.functional.one_hot(index, 8),
            "cross-entropy": lambda: torch.nn.functional.cross_entropy(y, index),
        }[how]()
        return found

    return forward


class Picks(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(8, 8), picked(how)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return self.how(x, index, self.layer)


@pytest.mark.parametrize(
    "how", ["index", "mask and index", "index_select", "gather", "scatter", "one_hot", "cross-entropy"]
)
def test_whole_numbers_out_of_range_are_refused_as_the_model_would(how: str) -> None:
    model, x = Picks(how), normal(4, 8)
    for fits in ([0, 7, 3, 3], [-1, -8, 3, 3] if "index" in how.split() else [-100, 7, 3, 3]):
        if min(fits) < 0 and how not in ("index", "mask and index", "cross-entropy"):
            continue
        model(x, torch.tensor(fits))
        assert iw.predict(model, (x, torch.tensor(fits))).rows
    for wrong in (8, -9):
        index = torch.tensor([wrong, 0, 2, 1])
        with pytest.raises((IndexError, RuntimeError)):
            model(x, index)
        with pytest.raises(ArgumentError, match=rf"input\.1: .* {min(wrong, 0)} to (0|2|8).*from 0 to 7"):
            iw.predict(model, (x, index))


def test_targets_of_a_loss_that_are_no_class_are_refused() -> None:
    target = torch.tensor([0, 4])
    with pytest.raises(ArgumentError, match=r"loss: got targets from 0 to 4\. The output has 4 classes: .* 0 to 3"):
        iw.predict(net(), normal(2, 8), loss=lambda out: torch.nn.functional.cross_entropy(out, target))


def test_the_same_within_the_model_names_its_module() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Model(lambda x, layer: layer(x.sum(1, keepdim=True).double().expand(-1, 8))))
    with pytest.raises(RuntimeError):
        model(normal(2, 8))
    with pytest.raises(ModelError, match=r"aten.addmm.default at module '1.layer' takes float32 numbers, and got"):
        iw.predict(model, normal(2, 8))


def test_number_types_that_pytorch_takes_are_taken() -> None:
    normed = nn.LayerNorm(8)  # float32 weights beside a bfloat16 input, as in mixed precision
    assert iw.predict(normed, normal(4, 8).bfloat16()).rows
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert iw.predict(net(), normal(4, 8)).rows[-1]["forward_rms"] > 0
    counts = Model(lambda x, layer: layer(x.float() / 2))
    assert iw.predict(counts, torch.arange(16).reshape(2, 8)).rows


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (None, r"batch: got a NoneType\. Give a tensor"),
        ("images", r"batch: got a str"),
        (3.0, r"batch: got a float"),
        ([1.0, 2.0], r"batch: got a list"),
        (np.zeros((2, 8), np.float32), r"batch: got a ndarray\. Give a tensor: torch\.from_numpy\(batch\)"),
        (torch.utils.data.DataLoader([1, 2]), r"batch: got a DataLoader\. Give one batch of it"),  # type: ignore[arg-type]
        (torch.zeros(0, 8), "batch: got an empty tensor"),
        ((torch.zeros(2, 8), torch.zeros(0, 3)), "batch.1: got an empty tensor"),
        (torch.full((2, 8), math.nan), "batch: got 16 NaN or infinite entries of 16"),
        (torch.full((2, 8), math.inf), "NaN or infinite"),
        (torch.eye(8).to_sparse(), r"batch: got a tensor of layout sparse_coo\. Give it dense: tensor\.to_dense\(\)"),
        (torch.zeros(2, 8, device="meta"), "meta device"),
    ],
    ids=["none", "text", "number", "list", "numpy", "loader", "empty", "empty 1", "nan", "infinite", "sparse", "meta"],
)
def test_a_batch_of_the_wrong_kind_is_refused(batch: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        iw.predict(net(), batch)


def test_weights_that_are_no_numbers_are_named() -> None:
    model = net()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name == "2.weight":
                p[0, 0] = math.nan
    found = iw.predict(model, normal(4, 8))
    assert "NaN or infinite entries, so what is made of them is unknown: 2.weight." in found.notes
    assert [row["forward_rms"] is None for row in found.rows] == [False, False, True]
    assert {row["parameter"]: row["weight_rms"] for row in found.parameters}["2.weight"] is None


def test_a_model_without_an_argument_is_predicted() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(normal(8, 8))

        def forward(self) -> Tensor:
            return torch.tanh(self.weight)

    assert iw.predict(Table(), ()).rows[0]["op"] == "aten.tanh"


def test_a_plan_of_another_model_is_refused() -> None:
    plan = iw.plan(net(), "kaiming")
    with pytest.raises(ArgumentError, match=r"plan: got rows for 2.bias, 2.weight. The model has no such parameters"):
        iw.predict(nn.Sequential(nn.Linear(8, 16)), normal(2, 8), plan=plan)
    wider = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    with pytest.raises(ArgumentError, match=r"shape \(16, 8\) for 0.weight, which has \(32, 8\)\. Make the plan"):
        iw.predict(wider, normal(2, 8), plan=plan)
    with pytest.raises(ArgumentError, match=r"plan: got 'kaiming'\. Give a Plan: iw\.plan\(model, 'kaiming'\)"):
        iw.predict(net(), normal(2, 8), plan="kaiming")  # type: ignore[arg-type]


def test_what_a_plan_leaves_out_is_named() -> None:
    longer = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4), nn.Linear(4, 4))
    found = iw.predict(longer, normal(2, 8), plan=iw.plan(net(), "kaiming"))
    assert "Not drawn, for want of a row, so they count as they are: 3.weight, 3.bias." in found.notes
    assert not any("want of a row" in n for n in iw.predict(net(), normal(2, 8), plan=iw.plan(net(), "kaiming")).notes)


def nothing(call: Call) -> Any:
    return None


def words(call: Call) -> Any:
    return ("large",)


def other_shape(call: Call) -> Any:
    return (iw.signal((3, 3)),)


def fails(call: Call) -> Any:
    raise ZeroDivisionError("by nothing")


@pytest.mark.parametrize("rule", [nothing, words, other_shape, fails])
def test_a_rule_that_returns_garbage_is_named_with_its_op_and_module(rule: Callable[[Call], Any]) -> None:
    with pytest.raises(ModelError, match=r"The rule of aten.relu.default failed at 1 \(forward\)") as caught:
        iw.predict(net(), normal(2, 8), rules={"aten.relu": rule})
    assert caught.value.__cause__ is not None


def test_a_rule_may_say_that_it_does_not_know() -> None:
    found = iw.predict(net(), normal(2, 8), rules={"aten.relu": lambda call: (None,)})
    assert [row["forward_rms"] is None for row in found.rows] == [False, True, True]
    assert [row["fidelity"] for row in found.rows[1:]] == ["unknown", "unknown"]


@pytest.mark.parametrize("rate", [0.0, -0.1, math.nan, math.inf, "0.1", True, 1j, [0.1]])
def test_a_learning_rate_is_a_positive_number(rate: Any) -> None:
    with pytest.raises(ArgumentError, match="learning_rate"):
        iw.predict(net(), normal(2, 8), learning_rate=rate)


def test_a_model_without_trainable_parameters_has_activations_all_the_same() -> None:
    bare = iw.predict(nn.Sequential(nn.Tanh(), nn.ReLU()), normal(64, 32))
    assert bare.parameters == () and bare.rows[-1]["forward_rms"] > 0
    assert bare.inputs[0]["gradient_rms"] > 0
    frozen = net().requires_grad_(False)
    found = iw.predict(frozen, normal(4, 8))
    assert {row["gradient_rms"] for row in found.parameters} == {None}
    assert found.rows[0]["gradient_rms"] > 0
    assert any(note.startswith("Frozen, so without a gradient: 0.weight") for note in found.notes)


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (lambda out: out, r"loss: got a function that returns \(2, 4\) torch.float32. Return a differentiable scalar"),
        (lambda out: out.detach().sum(), "differentiable scalar"),
        (lambda out: 3.0, "a function that returns float"),
        (lambda out: None, "a function that returns NoneType"),
    ],
    ids=["no scalar", "not differentiable", "number", "nothing"],
)
def test_a_loss_that_is_none_is_refused(loss: Any, text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        iw.predict(net(), normal(2, 8), loss=loss)


def test_a_loss_that_fails_says_so() -> None:
    with pytest.raises(ModelError, match=r"The loss failed on the model's output: AttributeError"):
        iw.predict(net(), normal(2, 8), loss=lambda out: out.logits.sum())
    with pytest.raises(ModelError, match=r"'target'\. A loss takes the model's output alone, such as lambda output: "):
        iw.predict(net(), normal(2, 8), loss=nn.MSELoss())
    with pytest.raises(ArgumentError, match=r"loss: got a str\. Give a function from the output to a scalar tensor"):
        iw.predict(net(), normal(2, 8), loss="cross-entropy")  # type: ignore[arg-type]


def spectrum(x: Tensor, layer: nn.Module) -> Tensor:
    y: Tensor = torch.fft.rfft(layer(x), dim=-1).real
    return y


def test_complex_numbers_are_named_and_what_follows_them_is_unknown() -> None:
    found = iw.predict(nn.Sequential(nn.Linear(8, 8), Model(spectrum)), normal(4, 8))
    assert found.rows[0]["forward_rms"] > 0
    assert any("Complex numbers have no rows" in note and "module '1'" in note for note in found.notes)
    # What is made real again has a row, and is unknown.
    assert all(row["fidelity"] == "unknown" for row in found.rows)


def test_a_complex_model_gets_a_note_and_no_silence() -> None:
    model = nn.Linear(8, 4, dtype=torch.complex64)
    found = iw.predict(model, torch.ones(2, 8, dtype=torch.complex64))
    assert found.rows == ()
    assert any(note.startswith("Complex numbers have no rows") for note in found.notes)


def test_batches_of_ragged_rows_or_of_quantized_numbers_are_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PyTorch's own: both are going to change
        ragged = torch.nested.nested_tensor([normal(2, 8), normal(3, 8)])
        coarse = torch.quantize_per_tensor(normal(2, 8), 0.1, 0, torch.quint8)
    with pytest.raises(ArgumentError, match=r"batch: got a nested tensor\. Give it padded"):
        iw.predict(net(), ragged)
    with pytest.raises(ArgumentError, match=r"batch: got a quantized tensor\. Give it dequantized"):
        iw.predict(net(), coarse)


def test_a_batch_of_8_bits_is_refused_by_the_model() -> None:
    with pytest.raises((ArgumentError, ModelError), match="float8"):
        iw.predict(net(), normal(2, 8).to(torch.float8_e4m3fn))


def test_one_sample_of_one_feature_is_a_number_without_axes() -> None:
    """Nothing is summed over, and the moments of one number are one number."""
    model, batch = nn.Linear(1, 1), torch.full((1, 1), 0.7)
    (row,), (seen,) = iw.predict(model, batch).rows, iw.measure(model, batch).rows
    assert row["forward_rms"] == pytest.approx(seen["forward_rms"], rel=1e-5)
    assert row["gradient_rms"] == 1.0
    assert "unknown" not in {row["fidelity"] for row in iw.predict(nn.LSTM(1, 1), torch.full((2, 1, 1), 0.7)).rows}
