"""Counting rectifiers that speak: by hand on a tiny network, and leaving it as it was."""

import pytest
import torch
from torch import nn

from initwell.experiments.reproduce.activity import relu_activity


def tiny() -> nn.Sequential:
    first, last = nn.Linear(1, 3, bias=False), nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0], [-1.0], [0.0]]))
        last.weight.fill_(-1.0)
    return nn.Sequential(first, nn.ReLU(), last, nn.ReLU())


def test_shares_and_silent_units_by_hand() -> None:
    # Unit 1 speaks on the positive image, unit 2 on the negative one, unit 3 never; the last layer never.
    first, last = relu_activity(tiny(), torch.tensor([[2.0], [-1.0]]))
    assert first.path == "1" and first.active == pytest.approx(1 / 3)
    assert first.silent == (False, False, True) and first.dead == pytest.approx(1 / 3)
    assert last.active == 0 and last.silent == (True,)


def test_a_channel_is_silent_only_where_all_its_positions_are() -> None:
    model = nn.Sequential(nn.ReLU())
    images = torch.full((2, 2, 3, 3), -1.0)
    images[1, 0, 2, 2] = 1.0
    (found,) = relu_activity(model, images)
    assert found.silent == (False, True) and found.active == pytest.approx(1 / 36)


def test_mode_and_hooks_are_as_before_even_where_the_model_fails() -> None:
    model = tiny().train()
    relu_activity(model, torch.ones(1, 1))
    with pytest.raises(RuntimeError):
        relu_activity(model, torch.ones(1, 7))
    assert model.training and not any(m._forward_hooks for m in model.modules())
