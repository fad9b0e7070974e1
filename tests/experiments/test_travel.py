"""Formula and measurement of signal and gradient meet, and the sentences follow from the numbers."""

import math

import pytest
import torch
from torch import nn

from initwell.errors import ArgumentError
from initwell.experiments.demo import SCHEMES, _sentence, demo
from initwell.experiments.travel import histogram_chart, magnitudes, measured, predicted, travel_chart
from initwell.experiments.zoo import build

SHAPE, CLASSES = (1, 4, 4), 8


def network() -> nn.Sequential:
    return build("mlp", SHAPE, CLASSES, depth=4, width=200)


def batch() -> torch.Tensor:
    return torch.randn(100, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scheme", ["xavier", "kaiming", "inverse_sqrt", "small_random", "pytorch"])
def test_theory_runs_through_the_measured_points(scheme: str) -> None:
    # Width 200: over 4 layers a draw scatters by about √(5·4/200) = 32 % (1 σ of the log), the mean of three seeds by
    # 18 %; a factor of 2 per layer (a lost ReLU, a wrong fan) would be a factor of 16 at the end.
    theory = predicted(network(), scheme, batch())
    seeds = [measured(network, scheme, batch(), seed) for seed in range(3)]
    for direction in ("forward", "backward"):
        for k, formula in enumerate(getattr(theory, direction)):
            found = sum(getattr(one, direction)[k] for one in seeds) / 3
            assert found == pytest.approx(formula, rel=0.6), (direction, k)
    assert theory.layers == ("hidden1", "hidden2", "hidden3", "hidden4", "output")
    assert len(theory.backward) == len(theory.layers) - 1


def test_zeros_leave_nothing() -> None:
    for travel in (predicted(network(), "zeros", batch()), measured(network, "zeros", batch(), 0)):
        assert travel.forward_factor == travel.backward_factor == 0.0


def test_a_single_layer_is_refused() -> None:
    with pytest.raises(ArgumentError, match="at least two"):
        predicted(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), "xavier", batch())


def test_magnitudes_are_those_that_autograd_gives_and_no_hook_stays() -> None:
    made: list[nn.Sequential] = []

    def kept() -> nn.Sequential:
        made.append(network())
        return made[-1]

    before = torch.random.get_rng_state()
    found = magnitudes(kept, "kaiming", batch(), ("hidden2", "output"), seed=0)
    assert torch.equal(before, torch.random.get_rng_state())
    (model,) = made
    assert not any(module._forward_hooks for module in model.modules())
    x = model[:4](batch())
    assert torch.equal(found["forward"]["hidden2"], x.abs().flatten())
    start = torch.randn(100, CLASSES, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found["backward"]["output"], start.abs().flatten())
    mask = [module(batch()) > 0 for module in (model[:8], model[:6])]
    output, hidden4, hidden3 = (model.get_parameter(f"{name}.weight") for name in ("output", "hidden4", "hidden3"))
    by_hand = ((start @ output * mask[0]) @ hidden4 * mask[1]) @ hidden3
    assert torch.allclose(found["backward"]["hidden2"], (by_hand * (x > 0)).abs().flatten(), rtol=1e-4, atol=1e-6)


def test_histograms_hold_every_value_and_say_what_is_left_out() -> None:
    chart = histogram_chart("h", "t", network, ("zeros", "kaiming"), batch(), ("hidden1", "hidden4"), "forward")
    assert [panel.title for panel in chart.panels] == ["kaiming"]
    assert "exactly zero: zeros" in chart.caption
    for series in chart.panels[0].series:
        assert sum(series.y) == pytest.approx(1.0)


def test_the_chart_has_a_line_and_points_for_every_scheme() -> None:
    runs = {"xavier": (predicted(network(), "xavier", batch()), [measured(network, "xavier", batch(), 0)])}
    chart = travel_chart("c", "t", runs, "A remark.")
    assert [[s.style for s in panel.series] for panel in chart.panels] == [["line", "points"]] * 2
    assert chart.caption.endswith("A remark.")


ROW = {"test_accuracy": 0.1, "low": 0.1, "high": 0.1, "diverged": 0, "seeds": 3, "overlap": 0.5}


@pytest.mark.parametrize(
    ("signal", "gradient", "overlap", "said"),
    [
        (0.0, 0.0, None, "dead at start, no signal"),
        (1e-23, 1e-22, 0.8, "dead at start, the signal shrinks 10²³-fold and the gradient shrinks 10²²-fold"),
        (0.001, 0.5, 0.8, "fading, the signal shrinks 1,000-fold and the gradient keeps its size (×0.5)"),
        (0.5, 2.0, 0.8, "healthy, signal and gradient keep their size (×0.5 and ×2)"),
        (0.5, 1e-8, 0.99999, "the input is forgotten, any two images come out more than 99.99 % alike"),
        (1e7, 1.0, 0.5, "fading, the signal grows 10⁷-fold"),
    ],
)
def test_the_sentence_follows_from_the_numbers(
    signal: float, gradient: float, overlap: float | None, said: str
) -> None:
    text = _sentence({"scheme": "s", "signal": signal, "gradient": gradient, **ROW, "overlap": overlap})
    assert said in text
    assert text.endswith("; 10 % of test images right after training.")


def test_the_sentence_gives_the_ends_of_an_interval_that_is_cut() -> None:
    row = {"scheme": "s", "signal": 0.5, "gradient": 0.5, **ROW, "test_accuracy": 0.8, "low": 0.55, "high": 1.0}
    assert "80 % of test images right after training (95 % interval 55 to 100 %)" in _sentence(row)
    assert "interval" not in _sentence({**row, "low": -math.inf, "high": math.inf, "seeds": 1})


@pytest.mark.slow
def test_the_quick_demo_shows_what_the_long_one_shows() -> None:
    heard: list[tuple[int, int]] = []
    found = demo(quick=True, seeds=1, workers=1, progress=lambda done, total, _: heard.append((done, total)))
    assert heard[-1][0] == heard[-1][1] == max(done for done, _ in heard)
    for result in found.results:
        rows = {row["scheme"]: row for row in result.rows}
        assert tuple(rows) == SCHEMES
        assert rows["zeros"]["signal"] == 0.0
        assert rows["small_random"]["gradient"] < 1e-3 * rows["kaiming"]["gradient"]
        assert all(math.isfinite(row["test_accuracy"]) for row in rows.values())
        names = [chart.name.removesuffix(f"-{result.net.name}") for chart in result.charts]
        assert names == ["travel", "histogram-forward", "histogram-backward", "curves"]
