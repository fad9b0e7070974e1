"""Named rules against their papers' formulas and PyTorch's; bad options refused."""

import math
from collections.abc import Callable

import pytest
import torch

from initwell.errors import ArgumentError, ShapeError, UnknownNameError
from initwell.initializers.base import Initializer
from initwell.initializers.distributions import Normal, TruncatedNormal, Uniform
from initwell.initializers.layout import Layout
from initwell.initializers.scaling import VarianceScaling, combined_fan, inverse_sqrt, kaiming, lecun, spread, xavier

LAYER = Layout((300, 100))


def std(initializer: Initializer, layout: Layout = LAYER) -> float:
    return initializer.recipe(layout).distribution.std


def test_rules_give_the_papers_standard_deviations() -> None:
    assert std(lecun()) == pytest.approx(100**-0.5)
    assert std(inverse_sqrt()) == pytest.approx(100**-0.5)
    assert std(xavier()) == pytest.approx(math.sqrt(2 / 400))
    assert std(xavier(mode="geometric")) == pytest.approx((300 * 100) ** -0.25)
    assert std(xavier(gain=5 / 3)) == pytest.approx(5 / 3 * math.sqrt(2 / 400))
    assert std(kaiming()) == pytest.approx(math.sqrt(2 / 100))
    assert std(kaiming(mode="fan_out")) == pytest.approx(math.sqrt(2 / 300))
    assert std(kaiming(slope=0.25)) == pytest.approx(math.sqrt(2 / (1 + 0.0625) / 100))
    assert std(kaiming(gain=1.5)) == pytest.approx(1.5 / 10)


@pytest.mark.parametrize("distribution", ["uniform", "normal", "truncated_normal"])
@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "average", "geometric"])
def test_every_distribution_has_the_variance_asked_for(mode: str, distribution: str) -> None:
    recipe = VarianceScaling(3.0, mode, distribution).recipe(LAYER)
    assert recipe.fan == combined_fan(LAYER, mode)
    assert recipe.gain == pytest.approx(math.sqrt(3))
    assert recipe.fan is not None
    assert recipe.distribution.std**2 * recipe.fan == pytest.approx(3.0)
    assert recipe.distribution.kind == distribution


def test_bounds_agree_with_pytorch() -> None:
    weight = torch.empty(200, 50)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.nn.init.xavier_uniform_(weight, generator=generator)
    ours = xavier().recipe(Layout((200, 50))).distribution
    assert isinstance(ours, Uniform)
    assert float(drawn.abs().max()) == pytest.approx(ours.high, rel=1e-3)
    drawn = torch.nn.init.kaiming_uniform_(weight, a=0.3, generator=generator)
    ours = kaiming(slope=0.3, distribution="uniform").recipe(Layout((200, 50))).distribution
    assert isinstance(ours, Uniform)
    assert float(drawn.abs().max()) == pytest.approx(ours.high, rel=1e-3)


def test_spread_makes_the_three_kinds() -> None:
    assert spread(3.0, "uniform") == Uniform(-3.0, 3.0)
    assert spread(4.0, "normal") == Normal(0.0, 2.0)
    assert spread(4.0, "truncated_normal") == TruncatedNormal(0.0, 2.0)


@pytest.mark.parametrize(
    ("build", "argument"),
    [
        (lambda: VarianceScaling(0.0), "scale"),
        (lambda: VarianceScaling(-1.0), "scale"),
        (lambda: VarianceScaling(math.inf), "scale"),
        (lambda: xavier(gain=0.0), "gain"),
        (lambda: kaiming(gain=-2.0), "gain"),
        (lambda: kaiming(slope=0.1, gain=1.0), "gain"),
        (lambda: kaiming(slope=math.nan), "slope"),
        (lambda: xavier(gain="relu"), "gain"),  # type: ignore[arg-type]
        (lambda: kaiming(slope="0.2"), "slope"),  # type: ignore[arg-type]
    ],
)
def test_bad_numbers_are_refused_by_name(build: Callable[[], Initializer], argument: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        build()
    assert caught.value.argument == argument


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'fan_in'"):
        xavier(mode="fanin")
    with pytest.raises(UnknownNameError, match="'uniform'"):
        lecun(distribution="unifrom")
    with pytest.raises(UnknownNameError, match="'average'"):
        combined_fan(LAYER, "averge")


def test_a_vector_has_no_fan_to_scale_by() -> None:
    with pytest.raises(ShapeError, match=r"\(7,\)"):
        xavier().recipe(Layout.of((7,)))
