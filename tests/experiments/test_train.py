"""The training loop against a loop written out by hand, its promises, and what it says to bad input."""

import json
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from initwell.errors import ArgumentError, ModelError, UnknownNameError
from initwell.experiments.data import from_arrays
from initwell.experiments.preparation import Prepared, prepared
from initwell.experiments.train import Epoch, Step, TrainConfig, TrainResult, evaluate, train
from initwell.experiments.zoo import mlp


def blobs(count: int = 50, seed: int = 0, scale: float = 1.0) -> Prepared:
    """Three well separated clouds in the plane."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % 3
    x = scale * (np.array([[3, 0], [-3, 3], [0, -3]])[y] + rng.standard_normal((count, 2)))
    return prepared(from_arrays((x, y), (x[:31], y[:31])), "raw")


def net(**options: object) -> nn.Sequential:
    return mlp((2,), 3, depth=1, width=5, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_the_loop_is_the_one_written_by_hand(optimizer: str) -> None:
    data, config = blobs(), TrainConfig(epochs=3, batch_size=8, optimizer=optimizer, learning_rate=0.05, seed=4)
    model, twin = net(), net()
    result = train(model, data, config)
    parameters = list(twin.parameters())
    state = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
    order, losses, step = torch.Generator().manual_seed(4), [], 0
    for _ in range(3):
        for index in torch.randperm(50, generator=order).split(8):  # type: ignore[no-untyped-call]
            loss = F.cross_entropy(twin(data.train_x[index]), data.train_y[index])
            grads = torch.autograd.grad(loss, parameters)
            losses.append(loss.item())
            step += 1
            with torch.no_grad():
                for p, g, (m, v) in zip(parameters, grads, state, strict=True):
                    if optimizer == "adam":  # Kingma and Ba, algorithm 1
                        m.mul_(0.9).add_(0.1 * g)
                        v.mul_(0.999).add_(0.001 * g * g)
                        p.sub_(0.05 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8))
                    else:
                        m.mul_(0.9 if optimizer == "momentum" else 0.0).add_(g)
                        p.sub_(0.05 * m)
    assert result.loss_curve == pytest.approx(losses, rel=1e-4)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(model.parameters(), parameters, strict=True))
    assert result.train_loss[0] == pytest.approx(np.mean(losses[:7]), rel=1e-5)
    expected = evaluate(twin, data.test_x, data.test_y)
    assert (result.test_loss[-1], result.test_accuracy[-1]) == pytest.approx(expected, rel=1e-4)


def test_it_learns_and_tells_so() -> None:
    result = train(net(), blobs(150), TrainConfig(epochs=8, batch_size=10, learning_rate=0.1))
    assert result.status == "done"
    assert result.steps == 120 == len(result.loss_curve)
    assert result.test_accuracy[-1] > 0.9 > 0.5 > result.train_loss[-1]


def test_the_same_seed_is_the_same_run_and_no_generator_moves() -> None:
    data, config = blobs(), TrainConfig(epochs=2, batch_size=8, seed=1)
    dropout = [nn.Sequential(*net(), nn.Dropout(0.3)) for _ in range(2)]
    before = torch.random.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    first = train(dropout[0], data, config)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1:] == (random.getstate(), str(np.random.get_state()))  # noqa: NPY002
    torch.rand(5)
    assert train(dropout[1], data, config).loss_curve == first.loss_curve
    other = train(net(), data, TrainConfig(epochs=2, batch_size=8, seed=2))
    assert other.loss_curve != train(net(), data, config).loss_curve


def test_the_mode_of_every_module_comes_back() -> None:
    model = net(norm="batch").train()
    model[1].eval()
    before = [m.training for m in model.modules()]
    train(model, blobs(), TrainConfig(epochs=1))
    assert [m.training for m in model.modules()] == before


@pytest.mark.parametrize("rate", [1e4, 1e30])
def test_divergence_is_a_result(rate: float) -> None:
    result = train(net(), blobs(scale=100.0), TrainConfig(epochs=9, batch_size=8, learning_rate=rate))
    assert result.status == "diverged"
    assert "step" in result.reason
    assert result.steps < 63
    assert not result.loss_curve[-1] <= 1e6  # NaN, infinite or above the bound


def test_a_bound_of_ones_own() -> None:
    result = train(net(), blobs(), TrainConfig(diverges_above=1e-9))
    assert (result.status, result.steps) == ("diverged", 1)
    assert "above 1e-09, at step 0" in result.reason
    assert result.test_accuracy == ()


def test_a_parameter_that_overflows_in_the_last_step_is_seen() -> None:
    class Jump(nn.Linear):
        """Its gradient is harmless until the loss has been read."""

    model = Jump(2, 3)
    model.weight.register_hook(lambda grad: grad * float("inf"))  # type: ignore[no-untyped-call]
    result = train(model, blobs(), TrainConfig(epochs=1, batch_size=50))
    assert result.status == "diverged"
    assert result.steps == 1


def test_a_result_survives_json_with_nan() -> None:
    result = train(net(), blobs(scale=100.0), TrainConfig(epochs=9, batch_size=8, learning_rate=1e30))
    again = TrainResult.from_dict(json.loads(result.to_json()))
    assert str(again) == str(result)
    assert str(TrainResult.from_dict(result.to_dict())) == str(result)


def test_callbacks_see_every_step_with_its_gradient_and_every_epoch() -> None:
    steps: list[Step] = []
    epochs: list[Epoch] = []
    grads = []

    def watch(step: Step) -> None:
        steps.append(step)
        grads.append([p.grad is not None and p.grad.abs().sum().item() > 0 for p in step.model.parameters()])

    config = TrainConfig(epochs=2, batch_size=20, policy="step", gamma=0.5, step_size=2, max_steps=5)
    result = train(net(), blobs(), config, on_step=watch, on_epoch=epochs.append)
    assert [s.step for s in steps] == [0, 1, 2, 3, 4]
    assert [s.epoch for s in steps] == [1, 1, 1, 2, 2]
    assert [s.learning_rate for s in steps] == [0.1, 0.1, 0.05, 0.05, 0.025]
    assert [s.loss for s in steps] == list(result.loss_curve)
    assert [len(s.inputs) for s in steps] == [20, 20, 10, 20, 20]
    assert all(any(g) for g in grads)
    assert [(e.epoch, e.step) for e in epochs] == [(1, 3), (2, 5)]
    assert [e.test_accuracy for e in epochs] == list(result.test_accuracy)


def test_a_single_left_over_sample_is_left_out() -> None:
    # 49 = 6·8 + 1: batch normalization has no variance of one sample and would raise.
    result = train(net(norm="batch"), blobs(49), TrainConfig(epochs=1, batch_size=8))
    assert (result.status, result.steps) == ("done", 6)
    whole = train(net(), blobs(50), TrainConfig(epochs=1, batch_size=1000))
    assert whole.steps == 1


def test_frozen_parameters_stay() -> None:
    model = net()
    frozen = model.get_parameter("hidden1.weight").requires_grad_(False)
    before = frozen.clone()
    train(model, blobs(), TrainConfig(epochs=1))
    assert torch.equal(frozen, before)


@pytest.mark.parametrize("rate", [0.0, -0.1, float("nan"), float("inf")])
def test_learning_rates_that_cannot_be(rate: float) -> None:
    with pytest.raises(ArgumentError, match=r"learning_rate: got .* finite number above 0"):
        TrainConfig(learning_rate=rate)


@pytest.mark.parametrize("name", ["epochs", "batch_size", "max_steps", "step_size"])
def test_counts_that_cannot_be(name: str) -> None:
    with pytest.raises(ArgumentError, match=f"{name}: got 0"):
        TrainConfig(**{name: 0})  # type: ignore[arg-type]


def test_unknown_names_have_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'adam'"):
        TrainConfig(optimizer="adamw")
    with pytest.raises(UnknownNameError, match="Did you mean 'cosine'"):
        TrainConfig(policy="cosin")
    with pytest.raises(ArgumentError, match="momentum"):
        TrainConfig(momentum=float("nan"))
    with pytest.raises(ArgumentError, match="diverges_above"):
        TrainConfig(diverges_above=0.0)


def test_models_that_cannot_be_trained() -> None:
    with pytest.raises(ModelError, match="no parameters to train"):
        train(nn.Sequential(nn.Flatten(), nn.ReLU()), blobs(), TrainConfig())
    with pytest.raises(ModelError, match=r"its forward failed on samples of shape \(50, 2\)") as caught:
        train(nn.Linear(7, 3), blobs(), TrainConfig())
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(ModelError, match=r"give \(batch, 3\) logits"):
        train(nn.Linear(2, 2), blobs(), TrainConfig())
