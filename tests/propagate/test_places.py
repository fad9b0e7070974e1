"""How positions differ, against enumeration, whole covariance matrices, and convolutions of many draws."""

import numpy as np
import pytest
import torch
from torch import nn

import initwell as iw
from initwell.propagate.default import default_table
from initwell.propagate.engine import walk
from initwell.propagate.given import start
from initwell.propagate.given.known import known_values
from initwell.propagate.moments.axes import Atom
from initwell.propagate.moments.incidence import carried, spatial_axis
from initwell.propagate.moments.places import (
    LONGEST,
    Remembered,
    bent,
    by_axis,
    even,
    mixed,
    of_sizes,
    off_average,
    parted,
    settled,
    sizes,
    times,
)
from initwell.propagate.moments.signal import Signal
from initwell.propagate.rules.pointwise import pulled_back
from initwell.theory.activations import activation
from initwell.trace.recorder import record

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def any_places(n: int) -> Array:
    rng = np.random.default_rng(3)
    root, own = rng.uniform(0.5, 1.5, (n, 2)), rng.normal(size=(n, 2 * n))
    own = np.corrcoef(own) * np.outer(*[np.sqrt((root**2).sum(axis=1))] * 2)
    return settled(np.stack([root @ root.T, own]))


def whole_covariance(places: Array, own: float, other: float) -> Array:
    """Σ of positions with these moments and tables, written out from what the tables mean."""
    level, rest = parted(places) @ np.array([own, other])
    return np.asarray(level * places[0] + rest * places[1])


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 1, 1), (1, 0, 2)])
@pytest.mark.parametrize("back", [False, True])
def test_two_positions_have_what_they_read_through_the_same_tap(
    stride: int, padding: int, dilation: int, back: bool
) -> None:
    inputs = 7
    outputs = (inputs + 2 * padding - 2 * dilation - 1) // stride + 1
    axis = spatial_axis(inputs, outputs, 3, stride, padding, dilation)
    places = any_places(outputs if back else inputs)
    brute = np.zeros((2, inputs, inputs) if back else (2, outputs, outputs))
    for k in range(3):
        hits = [(p, p * stride - padding + k * dilation) for p in range(outputs)]
        for p, x in hits:
            for q, y in hits:
                if 0 <= x < inputs and 0 <= y < inputs:
                    one, two, three, four = (p, q, x, y) if back else (x, y, p, q)
                    brute[:, three, four] += places[:, one, two]
    np.testing.assert_allclose(carried(places, axis, back=back), brute)
    # Of a long axis, the sizes alone.
    alone = carried(sizes(places), axis, back=back)
    np.testing.assert_allclose(alone, brute[0].diagonal())


def test_the_two_moments_of_an_axis_are_the_averages_of_its_covariance() -> None:
    places = any_places(6)
    whole = whole_covariance(places, 2.0, 0.7)
    assert whole.trace() / 6 == pytest.approx(2.0, rel=1e-12)
    assert off_average(whole) == pytest.approx(0.7, rel=1e-12)


def test_a_known_matrix_on_a_covariance() -> None:
    places, own, other = any_places(6), 2.0, 0.7
    weights = np.random.default_rng(1).normal(size=(4, 6))
    true = weights @ whole_covariance(places, own, other) @ weights.T
    matrix, table = mixed(places, weights, own, other)
    moments = matrix @ [own, other]
    np.testing.assert_allclose(moments, [true.trace() / 4, off_average(true)])
    np.testing.assert_allclose(whole_covariance(table, *moments), true)


def test_positions_of_a_product_of_independent_values() -> None:
    one, two = (any_places(6), 2.0, 0.7), (any_places(6)[:, ::-1, ::-1], 1.5, -0.2)
    true = whole_covariance(*one) * whole_covariance(*two)
    factors, table = times(one, two)
    moments = factors * np.array([one[1] * two[1], one[2] * two[2]])
    np.testing.assert_allclose(moments, [true.trace() / 6, off_average(true)])
    np.testing.assert_allclose(whole_covariance(table, *moments), true)
    np.testing.assert_allclose(sizes(times((sizes(one[0]), 2.0, 0.7), two)[1]), sizes(table))


def test_a_long_axis_has_sizes_and_pairs_that_are_their_product() -> None:
    n = LONGEST + 4
    size = np.linspace(0.5, 1.5, n)
    weights = np.kron(np.eye(n // 2), np.array([[0.5, 0.5]]))
    root = np.sqrt(size)
    tables = settled(np.stack([np.outer(root, root), np.diag(size)]))
    long, short = mixed(size, weights, 1.0, 0.4), mixed(tables, weights, 1.0, 0.4)
    np.testing.assert_allclose(long[0], short[0], rtol=1e-9)
    np.testing.assert_allclose(sizes(long[1]), sizes(short[1]), rtol=1e-9)


def test_a_function_keeps_sizes_and_bends_correlations() -> None:
    places = any_places(5)
    np.testing.assert_allclose(bent(places, 1.0, lambda c: c), places)
    level = bent(places, 0.0, None)
    np.testing.assert_allclose(level[0], of_sizes(sizes(places))[0], atol=1e-12)
    np.testing.assert_allclose(sizes(bent(places, 2.0, np.square)), sizes(places))
    assert even(3).tolist() == [[[1.0] * 3] * 3, np.eye(3).tolist()]


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.MaxPool2d(2), nn.AvgPool2d(3, 2, 1)])
def test_neighbours_behind_padded_convolutions_are_more_alike_than_distant_places(pool: nn.Module) -> None:
    # Without a norm, positions of a channel share a mean, each border its own: by averages over all pairs of places
    # the averages come out 3.7 and 6.6 % too small here, and the maximum 4.4 % too large.
    def layers(width: int) -> list[nn.Module]:
        return [nn.Conv2d(width, 48, 3, padding=1), nn.ReLU()]

    stack = [*layers(3), *(layer for _ in range(6) for layer in layers(48))]
    model = nn.Sequential(*stack, pool)
    batch = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    rows = iw.predict(model, batch, plan=iw.plan(model, "kaiming")).rows
    squares = np.zeros(2)
    for seed in range(40):
        iw.init_(model, "kaiming", seed=seed)
        with torch.no_grad():
            before = nn.Sequential(*stack)(batch)
            squares += [float(before.square().mean()), float(pool(before).square().mean())]
    predicted = rows[-1]["forward_rms"] / rows[-2]["forward_rms"]
    # A ratio of the same draws: its standard error over 40 of them is below 0.5 %.
    assert predicted == pytest.approx(np.sqrt(squares[1] / squares[0]), rel=0.03)


def smooth_images(count: int, width: int, size: int) -> torch.Tensor:
    """Gaussian noise whose neighbours are alike, as an image's: a separable random field, correlated over some 8."""
    noise = torch.randn(count, width, size + 8, size + 8, generator=torch.Generator().manual_seed(1))
    blurred = nn.functional.avg_pool2d(nn.functional.avg_pool2d(noise, 5, 1), 5, 1)
    return blurred / blurred.square().mean().sqrt()


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(3, 2, 1)])
def test_a_batch_of_smooth_images_keeps_its_neighbours_alike(pool: nn.Module) -> None:
    # Taken as white noise, the maximum comes out 25 % too large here and the average 16 % too small.
    layers = [nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(), pool]
    model = nn.Sequential(*layers, nn.Conv2d(24, 24, 3), nn.ReLU(), nn.AvgPool2d(4))
    batch = smooth_images(16, 3, 16)
    rows = iw.predict(model, batch, plan=iw.plan(model, "kaiming")).rows
    squares = np.zeros(len(rows))
    for seed in range(60):
        iw.init_(model, "kaiming", seed=seed)
        x = batch
        with torch.no_grad():
            for i, layer in enumerate(model):
                x = layer(x)
                squares[i] += float(x.square().mean()) / 60
    predicted = np.array([row["forward_rms"] for row in rows])
    # Ratios of the same draws: their standard error over 60 of them is below 1 %.
    for after in (4, 7):
        true = np.sqrt(squares[after] / squares[after - 1])
        assert predicted[after] / predicted[after - 1] == pytest.approx(true, rel=0.04), after


class Joined(nn.Module):
    """Channels of noise beside channels whose neighbours are alike, pooled together."""

    def __init__(self) -> None:
        super().__init__()
        self.rough, self.smooth = nn.Conv2d(3, 24, 1), nn.Conv2d(3, 24, 1)
        self.blur, self.pool, self.out = nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(2), nn.Conv2d(48, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([self.rough(x), self.smooth(3 * self.blur(x))], 1)
        found: torch.Tensor = self.out(self.pool(torch.relu(joined)))
        return found


def test_joined_channels_have_neighbours_alike_each_as_its_own_layer() -> None:
    # Forgotten, the average of four comes out 10 % too small here. What two axes have is taken as their product.
    model, batch = Joined(), torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    rows = iw.predict(model, batch, plan=iw.plan(model, "kaiming")).rows
    squares = np.zeros(len(rows))
    for seed in range(40):
        iw.init_(model, "kaiming", seed=seed)
        squares += [row["forward_rms"] ** 2 for row in iw.measure(model, batch, seed=seed).rows]
    names = [row["op"] for row in rows]
    before = names.index("aten.relu")
    pooled = names.index("aten.avg_pool2d", before)
    found = rows[pooled]["forward_rms"] / rows[before]["forward_rms"]
    # A ratio of the same draws: its standard error over 40 of them is below 0.5 %.
    assert found == pytest.approx(np.sqrt(squares[pooled] / squares[before]), rel=0.04)


class Gated(nn.Module):
    """A padded convolution, times one number a channel, and a convolution of that."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Conv2d(8, 64, 3, padding=1), nn.Conv2d(8, 64, 1), nn.Conv2d(64, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(self.first(x) * self.gate(x.mean((2, 3), keepdim=True)).sigmoid())
        return found


def test_a_gate_leaves_positions_as_they_differ() -> None:
    # With all of one size, what reads the inner four positions of 4×4 comes out 8 % too small.
    model, batch = Gated(), torch.randn(16, 8, 4, 4, generator=torch.Generator().manual_seed(4))
    rows = iw.predict(model, batch, plan=iw.plan(model, "kaiming")).rows
    gated = [row["op"] for row in rows].index("aten.mul")
    squares = np.zeros(len(rows))
    for seed in range(40):
        iw.init_(model, "kaiming", seed=seed)
        squares += [row["forward_rms"] ** 2 for row in iw.measure(model, batch, seed=seed).rows]
    found = rows[-1]["forward_rms"] / rows[gated]["forward_rms"]
    # A ratio of the same draws: its standard error over 40 of them is below 1 %.
    assert found == pytest.approx(np.sqrt(squares[-1] / squares[gated]), rel=0.04)


def test_a_mask_makes_neighbours_of_a_gradient_less_alike() -> None:
    # 200 000 fields of 20 places: an entry of the covariance has a standard error below 0.003.
    n = 20
    apart = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    rng, fields, signals = np.random.default_rng(5), {}, {}
    for name, own, common in (("g", 0.6**apart, 0.3), ("u", 0.5**apart, 0.2)):
        covariance = common + (1 - common) * own
        fields[name] = rng.multivariate_normal(np.zeros(n), covariance, 200_000)
        moments, places = np.array([1.0, off_average(covariance)]), settled(np.stack([np.ones((n, n)), own]))
        signals[name] = Signal(((Atom(n),),), moments, gaussian=True, profile=(places,))
    kept = fields["g"] * (fields["u"] > 0)
    found = pulled_back(activation("relu"), signals["u"], signals["g"])
    expected = whole_covariance(found.profile[0], found.q, found.averaged((0,)))
    # As alike as before, neighbours would have 0.32 in place of 0.25; alike no more, 0.12.
    np.testing.assert_allclose(expected, kept.T @ kept / len(kept), atol=0.012)


def test_axes_of_the_same_objects_share_the_work() -> None:
    asked: list[int] = []
    one, other = np.ones(3), np.ones(3)

    def work(places: Array) -> Array:
        asked.append(places.size)
        return places + 1

    found = by_axis(work, [one, other, one])
    assert len(asked) == 2 and found[0] is found[2] and found[1] is not found[0]


def test_what_reads_each_place_once_changes_nothing() -> None:
    places, axis = any_places(5), spatial_axis(5, 5, 1, 1, 0, 1)
    assert axis.one_to_one and not spatial_axis(5, 3, 1, 2, 0, 1).one_to_one
    assert not spatial_axis(5, 5, 3, 1, 1, 1).one_to_one
    np.testing.assert_allclose(settled(carried(places, axis, back=False)), places, rtol=1e-12)


def test_what_a_walk_remembers_is_used_by_the_next_and_forgotten_after_it() -> None:
    table, calls = even(3), list[float]()

    def work(places: Array, factor: float) -> Array:
        calls.append(factor)
        return np.asarray(factor * places)

    remembered, found = Remembered(), []
    for factor in (2.0, 2.0, 3.0, 2.0):
        with remembered.during():
            found.append(by_axis(work, [table, table], given=(factor,)))
    assert calls == [2.0, 3.0, 2.0]
    assert found[0][0] is found[0][1] is found[1][0]
    assert [float(f[0][0, 0, 0]) for f in found] == [2.0, 2.0, 3.0, 2.0]


def test_walks_of_other_weights_over_one_trace_find_what_a_walk_of_their_own_does() -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.MaxPool2d(3, 2, 1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1), nn.Sigmoid()
    )
    batch = torch.randn(2, 3, 8, 8, generator=generator)
    trace = record(model, batch, device="meta")
    values, table, known = known_values(trace), default_table(), []
    for factor in (1.0, 3.0, 0.2, 1.0):
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * factor)
        parts = [
            start.input_signals(model, trace, batch),
            start.parameter_signals(model, trace, None, []),
            start.starting_gradients(trace),
        ]
        begun = start.as_mapping(parts)
        again, alone = walk(trace, table, begun, values), walk(trace, table, begun, known_values(trace))
        sizes_now = [again.signals[v].q for op in trace.ops for v in op.outputs if v in again.signals]
        assert sizes_now == [alone.signals[v].q for op in trace.ops for v in op.outputs if v in alone.signals]
        known.append(sizes_now)
    assert known[0] == known[3] != known[1] and len(known[0]) > 10
