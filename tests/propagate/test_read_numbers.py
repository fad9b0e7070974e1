"""Numbers that PyTorch, or a model, takes out of tensors and puts back where no op says so."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

import initwell as iw

STEPS = 16
X = torch.randn(STEPS, 32, generator=Generator().manual_seed(1))
Measured = Callable[..., np.ndarray]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))


def test_lengths_given_as_a_list(measured_rms: Measured) -> None:
    """The loss is divided by the length 3, which PyTorch puts in memory with no op: it counted as 1. 12 draws, ±1 %."""

    def loss(y: Tensor) -> Tensor:
        lengths: Any = [STEPS], [3]
        return F.ctc_loss(y[:, None].log_softmax(-1), torch.ones(1, 3, dtype=torch.long), *lengths)

    model = mlp()
    rows = iw.predict(model, X, plan=iw.plan(model, "pytorch"), loss=loss).rows
    for row, (forward, gradient) in zip(rows, measured_rms(model, X, "pytorch", 12, loss), strict=True):
        if row["path"] in ("2", "(loss)"):
            assert row["forward_rms"] == pytest.approx(forward, rel=0.05), row
            assert row["gradient_rms"] == pytest.approx(gradient, rel=0.05), row


def test_a_number_read_of_a_value_goes_with_it(measured_rms: Measured) -> None:
    """It was the constant that the one run had, 3 times too small here. 48 draws of one number, ±10 %."""

    def loss(y: Tensor) -> Tensor:
        return y.square().mean() * y.mean().item()

    model = mlp()
    found = iw.predict(model, X, plan=iw.plan(model, "pytorch"), loss=loss)
    rows = dict(zip([row["op"] for row in found.rows], found.rows, strict=True))
    measured = measured_rms(model, X, "pytorch", 48, loss)
    assert rows["aten.mul"]["forward_rms"] == pytest.approx(measured[-1][0], rel=0.4)
    assert rows["aten.mul"]["fidelity"] == "approximate"
    assert rows["aten.pow"]["gradient_rms"] == pytest.approx(measured[-4][1], rel=0.3)


def test_a_number_that_a_model_writes_down_is_a_constant() -> None:
    """0.5 is read of a value, too, and still no value of its own."""

    def loss(y: Tensor) -> Tensor:
        half = (y.detach() * 0 + 0.5).mean().item()
        assert half == 0.5
        return (y * 0.5).square().mean()

    model = mlp()
    found = iw.predict(model, X, plan=iw.plan(model, "pytorch"), loss=loss)
    products = [op for op in found.trace.forward_ops if op.functional == "aten.mul"]
    assert products[-1].arguments["other"] == 0.5
