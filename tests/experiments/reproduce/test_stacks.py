"""Plain stacks: one draw for all rules, and second moments that the chain formula predicts."""

import numpy as np
import pytest
import torch

from initwell.experiments.reproduce.stacks import chain_of, draw_weights, rescaled, run_stack
from initwell.initializers.scaling import kaiming, lecun, xavier
from initwell.measurement.probe import measure

WIDTHS = (30, 200, 150, 200)


def images(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(50, WIDTHS[0])).astype(np.float32)


def test_rescaled_weights_are_those_the_other_rule_draws() -> None:
    base, wanted = lecun(distribution="normal"), xavier(distribution="normal")
    ours = rescaled(draw_weights(WIDTHS, base, 3), base, wanted)
    for a, b in zip(ours, draw_weights(WIDTHS, wanted, 3), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("phi", ["identity", "relu", "tanh"])
def test_moments_agree_with_the_chain_over_seeds(phi: str) -> None:
    # 20 seeds of 3 layers: E[y²] scatters by about √(3·5/150)/√20 = 7 % at most; 25 % would be more than three of it.
    rule = kaiming(distribution="normal")
    x = images()
    runs = [run_stack(draw_weights(WIDTHS, rule, s), phi, x, s) for s in range(20)]
    rows = chain_of(WIDTHS, rule, phi, float(np.mean(x**2))).rows
    for k, row in enumerate(rows):
        assert np.mean([r.forward[k] for r in runs]) == pytest.approx(row["forward_second_moment"], rel=0.25)
        assert np.mean([r.backward[k] for r in runs]) == pytest.approx(row["gradient_second_moment"], rel=0.25)


def test_a_stack_measures_what_a_module_measures() -> None:
    weights = draw_weights(WIDTHS, kaiming(distribution="normal"), 0)
    layers: list[torch.nn.Module] = []
    for w in weights:
        linear = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
        linear.weight.data = torch.tensor(w)
        layers += [linear, torch.nn.ReLU()]
    found = measure(torch.nn.Sequential(*layers[:-1]), torch.tensor(images()))
    outputs = [row["forward_rms"] ** 2 for row in found.rows if row["activation"] is None]
    assert outputs == pytest.approx(run_stack(weights, "relu", images(), 0).forward, rel=1e-5)


def test_spread_is_what_differs_between_images() -> None:
    same = np.repeat(images()[:1], 5, axis=0)
    moments = run_stack(draw_weights(WIDTHS, lecun(), 0), "tanh", same, 0)
    assert max(moments.spread) < 1e-10 < min(moments.forward)
