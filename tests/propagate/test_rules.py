"""Each rule against brute force over all pairs, and against sampling of what it assumes.

Sampling: n independent draws of a value with relative standard deviation about √2 in its square give a relative error
of √(2/n); the bounds are five of these or more, and a forgotten factor is off by tens of percent.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import initwell as iw
from initwell.propagate.given.measured import measured, pair_averages
from initwell.propagate.laws.gaussian import pair_moments
from initwell.propagate.moments.atoms import together
from initwell.propagate.moments.incidence import spatial_axis
from initwell.propagate.moments.signal import Signal, independent
from initwell.propagate.predict import predict
from initwell.propagate.rules.branch import added, product
from initwell.propagate.rules.contraction import contract
from initwell.propagate.rules.norm import normalized, normalized_backward
from initwell.propagate.rules.parts import concatenated
from initwell.propagate.rules.pointwise import applied, pulled_back
from initwell.propagate.rules.taps import tapped
from initwell.theory import moments as theory
from initwell.theory.activations import activation

Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def average(draw: Callable[[], Tensor], times: int) -> Array:
    torch.manual_seed(11)
    return np.asarray(sum(pair_averages(draw()) for _ in range(times)) / times)


def permutations_of(x: Tensor, dim: int) -> list[Tensor]:
    return [x.index_select(dim, torch.tensor(p)) for p in itertools.permutations(range(x.shape[dim]))]


def test_contraction_against_every_ordering_of_exchangeable_axes() -> None:
    # Reordering b's rows in every way makes a and b independent along the contracted axis, exactly.
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(3, 4, generator=generator) + 0.3
    b = torch.randn(4, 2, generator=generator) - 0.2
    brute = np.mean([pair_averages(a.double() @ c.double()) for c in permutations_of(b, 0)], axis=0)
    found = contract(measured(a), measured(b), [(1, 0)])
    np.testing.assert_allclose(found.moments, brute, rtol=1e-9)
    assert found.mean == pytest.approx(float((a.mean() * b.mean() * 4).double()), rel=1e-5)


def test_batched_contraction_shares_an_axis() -> None:
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(2, 3, 3, generator=generator), torch.randn(2, 3, 2, generator=generator)
    orders = [c.double() for p in permutations_of(b, 0) for c in permutations_of(p, 1)]
    brute = np.mean([pair_averages(torch.bmm(a.double(), c)) for c in orders], axis=0)
    # A common order of the rows in both of the batch is the contracted axis; reordering the batch is the shared one.
    found = contract(measured(a), measured(b), [(2, 1)], [(0, 0)])
    np.testing.assert_allclose(found.moments[1], brute[1], rtol=1e-9)


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 0, 1), (1, 1, 1), (2, 1, 1), (1, 2, 2), (3, 0, 1)])
def test_pairs_of_incidences_are_those_of_enumeration(stride: int, padding: int, dilation: int) -> None:
    inputs, taps = 7, 3
    outputs = (inputs + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    hits = [(p, p * stride - padding + k * dilation, k) for p in range(outputs) for k in range(taps)]
    hits = [h for h in hits if 0 <= h[1] < inputs]
    brute = np.zeros((2, 2, 2))
    for one, two in itertools.product(hits, hits):
        brute[tuple(int(a != b) for a, b in zip(one, two, strict=True))] += 1
    np.testing.assert_array_equal(spatial_axis(inputs, outputs, taps, stride, padding, dilation).pairs, brute)


def test_a_convolution_its_input_gradient_and_its_weight_gradient_by_sampling() -> None:
    axes = [spatial_axis(6, 3, 3, 2, 1, 1)]
    x, w, g = independent((4, 3, 6), 1.0), independent((5, 3, 3), 0.5), independent((4, 5, 3), 2.0)

    def forward() -> Tensor:
        return F.conv1d(torch.randn(4, 3, 6), torch.randn(5, 3, 3) * math.sqrt(0.5), stride=2, padding=1)

    y = tapped(x, w, axes, "xkp", over=[(1, 1)])
    assert y.q == pytest.approx(average(forward, 2000)[0, 0, 0], rel=0.03)
    dx = tapped(g, w, axes, "pkx", over=[(1, 0)])
    assert dx.q == pytest.approx(2 * 0.5 * 5 * 8 / 6)  # 8 taps of 9 fall inside, on 6 inputs
    dw = tapped(g, x, axes, "pxk", over=[(0, 0)])
    assert dw.q == pytest.approx(2 * 4 * 8 / 3)


def test_padded_convolutions_on_each_other_count_their_borders_exactly() -> None:
    model = torch.nn.Sequential(*(torch.nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(3))).to("meta")
    found = predict(model, torch.ones(2, 8, 4, 4) * torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1))
    size = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    for row in found.rows:
        # Each weight has variance 1/(3·72), and 8 channels feed each tap.
        size = F.conv2d(size, torch.full((1, 1, 3, 3), 8 / (3 * 72), dtype=torch.float64), padding=1)
        assert row["forward_rms"] == pytest.approx(math.sqrt(float(size.mean())), rel=1e-6)
    # Position by position the borders differ; by their average alone the third would be 10 % too small.
    assert found.rows[2]["forward_rms"] > 1.05 * math.sqrt((8 / (3 * 72) * 100 / 16) ** 3)


@pytest.mark.parametrize("name", ["relu", "gelu", "tanh", "sigmoid", "leaky_relu", "hardtanh"])
def test_pair_moments_are_the_theorys(name: str) -> None:
    phi = activation(name)
    c = np.array([1.0, 0.97, 0.5, 0.0, -0.4])
    _, pairs = pair_moments(phi.fn, phi.kinks, 0.3, 0.8, c)
    _, slopes = pair_moments(phi.derivative, phi.kinks, 0.3, 0.8, c)
    for i, correlation in enumerate(c):
        assert pairs[i] == pytest.approx(float(theory.overlap(phi, 0.8, correlation, 0.3)), rel=1e-4)
        assert slopes[i] == pytest.approx(float(theory.derivative_overlap(phi, 0.8, correlation, 0.3)), rel=6e-3)


def test_the_same_mask_twice_and_a_rectified_stream_by_sampling() -> None:
    relu = activation("relu")
    u, b, g = (independent((64, 64), q, sample=0) for q in (1.0, 0.3, 1.0))
    u, b = (Signal(s.dims, s.moments, s.means, gaussian=True) for s in (u, b))
    x = applied(relu, u)
    w = added(x, b)
    y = applied(relu, w)
    at_w = pulled_back(relu, w, g, w)
    at_u = pulled_back(relu, u, at_w, u)
    torch.manual_seed(3)
    tu, tb, tg = torch.randn(10**6), math.sqrt(0.3) * torch.randn(10**6), torch.randn(10**6)
    tw = tu.relu() + tb
    assert y.q == pytest.approx(float(tw.relu().square().mean()), rel=0.01)
    assert at_w.q == pytest.approx(float((tg * (tw > 0)).square().mean()), rel=0.01)
    assert at_u.q == pytest.approx(float((tg * (tw > 0) * (tu > 0)).square().mean()), rel=0.01)
    # As independent masks the last would be 0.32 in place of 0.44.
    assert at_u.q > 0.4


def test_a_rectified_stream_beside_a_gated_branch_by_sampling() -> None:
    # As in squeeze-excitation: the stream keeps its law, and its mean and its square are no Gaussian's.
    relu = activation("relu")
    u, b, s = (independent((64, 64), q, sample=0) for q in (1.0, 1.0, 0.04))
    u, b, s = (Signal(x.dims, x.moments, x.means, gaussian=True) for x in (u, b, s))
    branch = product(applied(activation("sigmoid"), s), b, (64, 64))
    found = applied(relu, added(applied(relu, u), branch))
    torch.manual_seed(3)
    tu, tb, ts = torch.randn(10**6), torch.randn(10**6), 0.2 * torch.randn(10**6)
    true = (tu.relu() + ts.sigmoid() * tb).relu()
    # Taken as Gaussian the square is 6 % too small and the mean 5 % too large.
    assert found.q == pytest.approx(float(true.square().mean()), rel=0.01)
    assert found.mean == pytest.approx(float(true.mean()), rel=0.01)
    assert found.fidelity == "approximate"


def test_normalization_and_its_gradient_by_sampling() -> None:
    x, g = independent((16, 40), 2.0), independent((16, 40), 1.0)

    def gradient() -> Tensor:
        t = (torch.randn(16, 40, dtype=torch.float64) * math.sqrt(2)).requires_grad_()
        y = F.batch_norm(t, None, None, training=True, eps=1e-12)
        (found,) = torch.autograd.grad(y, t, torch.randn_like(y))
        return found

    assert normalized(x, [0], 0.0).q == pytest.approx(1.0)
    dx = normalized_backward(g, x, [0], 0.0)
    sampled = average(gradient, 300)
    np.testing.assert_allclose(dx.moments, sampled, rtol=0.05, atol=0.003)


def test_a_gradient_gated_by_what_is_normalized_by_sampling() -> None:
    # relu after the norm: the gradient of the norm's output, all of one sign, is correlated with x̂.
    x = Signal(independent((64, 32), 1.0).dims, independent((64, 32), 1.0).moments, gaussian=True)
    hat = normalized(x, [0], 0.0, tag=7)
    shared = Signal(x.dims, np.array([[1.0, 0.0], [1.0, 0.0]]))  # one gradient for all samples of a channel
    dx = normalized_backward(pulled_back(activation("relu"), hat, shared, hat), x, [0], 0.0, tag=7)

    def gradient() -> Tensor:
        t = torch.randn(64, 32, dtype=torch.float64).requires_grad_()
        y = F.batch_norm(t, None, None, training=True, eps=1e-12).relu()
        (found,) = torch.autograd.grad(y, t, torch.randn(1, 32, dtype=torch.float64).expand(64, 32))
        return found

    # 1/2 − 1/4 − 1/(2π) = 0.09; as independent it would be 0.25.
    assert dx.q == pytest.approx(average(gradient, 300)[0, 0], rel=0.06)


@pytest.mark.parametrize(("kernel", "size"), [(7, 16), (640, 3), (3, 9)])
def test_average_pooling_in_ceil_mode_divides_by_what_a_window_holds(kernel: int, size: int) -> None:
    """Of 8·16·size² entries an rms has a standard error below 3 %; a window of 640 over 3 pixels holds 9."""
    model = nn.Sequential(nn.Conv2d(4, 16, 1), nn.AvgPool2d(kernel, ceil_mode=True))
    batch = torch.randn(64, 4, size, size, generator=torch.Generator().manual_seed(0))
    predicted, measured = iw.predict(model, batch).rows[-1], iw.measure(model, batch).rows[-1]
    assert predicted["op"] == "aten.avg_pool2d"
    assert predicted["forward_rms"] == pytest.approx(measured["forward_rms"], rel=0.15)


def test_a_stream_of_joined_channels_by_sampling() -> None:
    # Channels of two layers, one twice as large: rectified again beside a branch each keeps what it is, and masks know
    # each other. As a Gaussian each, the square is 12 % too small, and masks pass 6 % too much, then 4 % too little.
    relu = activation("relu")
    parts = [independent((32, 48, 2), q, sample=0) for q in (1.0, 4.0)]
    parts = [Signal(s.dims, s.moments, s.means, gaussian=True) for s in parts]
    whole = concatenated([applied(relu, part) for part in parts], 1)
    branch, g = (independent((32, 96, 2), q, sample=0) for q in (0.1, 1.0))
    branch = Signal(branch.dims, branch.moments, branch.means, gaussian=True)
    one = added(*together(whole, branch, whole.shape))
    y = applied(relu, one)
    two = added(*together(y, branch, whole.shape))
    gradient = together(g, two, whole.shape)[0]
    at_two = pulled_back(relu, two, gradient, two)
    at_one = pulled_back(relu, one, at_two, one)
    torch.manual_seed(5)
    x = torch.stack([torch.randn(10**6), 2 * torch.randn(10**6)]).relu() + math.sqrt(0.1) * torch.randn(2, 10**6)
    after = x.relu() + math.sqrt(0.1) * torch.randn(2, 10**6)
    assert applied(relu, two).q == pytest.approx(float(after.relu().square().mean()), rel=0.005)
    assert at_two.q == pytest.approx(float((after > 0).double().mean()), rel=0.005)
    assert at_one.q == pytest.approx(float(((after > 0) & (x > 0)).double().mean()), rel=0.01)
