"""Learning rates by step against Caffe's formulas and PyTorch's schedulers."""

import math

import pytest
import torch

from initwell.experiments.policies import rate_at
from initwell.experiments.train import TrainConfig


def test_step_against_pytorch() -> None:
    config = TrainConfig(learning_rate=0.3, policy="step", gamma=0.5, step_size=7)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.5)
    for step in range(30):
        assert rate_at(config, step, 30) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_cosine_against_pytorch() -> None:
    config = TrainConfig(learning_rate=0.3, policy="cosine")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
    for step in range(40):
        assert rate_at(config, step, 40) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        scheduler.step()
    assert rate_at(config, 40, 40) == pytest.approx(0, abs=1e-12)


def test_inv_is_that_of_caffes_lenet_solver() -> None:
    # base_lr 0.01, gamma 0.0001, power 0.75: Caffe logs lr = 0.00596843 at iteration 9900 of LeNet's training.
    config = TrainConfig(learning_rate=0.01, policy="inv", gamma=0.0001, power=0.75)
    assert rate_at(config, 9900, 10000) == pytest.approx(0.00596843, rel=1e-5)
    assert rate_at(config, 0, 10000) == 0.01


def test_warm_up_rises_in_a_line_and_then_leaves_the_policy_alone() -> None:
    config = TrainConfig(learning_rate=0.8, warmup_steps=4)
    assert [rate_at(config, step, 9) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    cosine = TrainConfig(learning_rate=0.8, policy="cosine", warmup_steps=4)
    assert rate_at(cosine, 6, 12) == pytest.approx(0.8 * 0.5 * (1 + math.cos(math.pi / 2)))
