"""Losses and their gradients against the losses themselves on Gaussian outputs and targets drawn at random.

Averages are over 400 draws of outputs of 16 samples, 12 classes and, for images, 6 places; standard errors are near 1 %
where all is independent, and the bounds are three of these or more. A forgotten 1/N, 1/C or covariance is far off.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import initwell as iw
from initwell.propagate.default import default_table
from initwell.propagate.engine import walk
from initwell.propagate.given.known import known_values
from initwell.propagate.given.measured import pair_averages
from initwell.propagate.given.start import starting_gradients
from initwell.propagate.laws.concentration import Weights
from initwell.propagate.moments.axes import Atom
from initwell.propagate.moments.signal import Signal
from initwell.propagate.rules.loss import log_softmax_backward, log_softmaxed, log_sum
from initwell.trace.recorder import record

N, C, L = 16, 12, 6
TIMES = 400
Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
# Variance of each entry alone; of (sample, class) at all places; of class; of sample.
SHARES = ((1, 1, 1), 0.8), ((1, 1, 0), 0.5), ((0, 1, 0), 0.2), ((1, 0, 0), 0.6)


def draw(shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
    parts = [
        share**0.5 * torch.randn([n if a else 1 for n, a in zip(shape, axes, strict=False)]).expand(shape)
        for axes, share in SHARES
    ]
    return scale * torch.stack(parts).sum(0)


def drawn(shape: tuple[int, ...], scale: float = 1.0) -> Signal:
    moments = np.zeros((2,) * len(shape))
    for axes, share in SHARES:
        moments[tuple(slice(0, 1) if a else slice(None) for a in axes[: len(shape)])] += share * scale**2
    return Signal(tuple((Atom(n),) for n in shape), moments, gaussian=True)


def average(draws: Callable[[], Tensor], times: int = TIMES) -> Array:
    torch.manual_seed(2)
    return np.asarray(sum(pair_averages(draws()) for _ in range(times)) / times)


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
def test_the_log_of_a_sum_by_sampling(scale: float) -> None:
    torch.manual_seed(0)
    t = scale * torch.randn(400_000, C, dtype=torch.float64)
    other = 0.6 * t + 0.8 * scale * torch.randn(400_000, C, dtype=torch.float64)
    one, two = t.logsumexp(1), other.logsumexp(1)
    mean, spread = log_sum(np.array([scale**2, 0.6 * scale**2]), Weights(C))
    assert mean == pytest.approx(float(one.mean()), abs=5e-3 * scale)
    assert spread[1] == pytest.approx(float(torch.stack([one, two]).cov()[0, 1]), rel=0.02)
    assert spread[0] == pytest.approx(float(one.var()), rel=0.02)


@pytest.mark.parametrize(("dim", "keep"), [(1, False), (-1, True)], ids=["places", "features"])
def test_the_gradient_of_the_log_of_a_sum_is_of_softmax_weights(
    dim: int, keep: bool, measured_rms: Callable[..., Array]
) -> None:
    """As of e^s and of e^(−L) by themselves it was 2.6 and 1.4 times too large; 8 draws, standard error 2 %."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(64, 64), nn.Linear(1 if keep else 64, 8)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.last(torch.logsumexp(self.first(x), dim, keepdim=keep))
            return found

    model, x = Pooled(), torch.randn(16, 12, 64, generator=torch.Generator().manual_seed(6))
    found = iw.predict(model, x, plan=iw.plan(model, "kaiming"))
    measured = measured_rms(model, x, "kaiming", 8)
    assert found.rows[0]["gradient_rms"] == pytest.approx(measured[0, 1], rel=0.08)


def test_log_softmax_by_sampling() -> None:
    found = log_softmaxed(drawn((N, C, L)), 1)
    sampled = average(lambda: draw((N, C, L)).log_softmax(1))
    np.testing.assert_allclose(found.moments, sampled, rtol=0.03)


def test_the_gradient_of_log_softmax_by_sampling() -> None:
    g, s = drawn((N, C, L)), drawn((N, C, L), 0.8)

    def back() -> Tensor:
        x = draw((N, C, L), 0.8).requires_grad_()
        return torch.autograd.grad(x.log_softmax(1), x, draw((N, C, L)))[0]

    sampled = average(back)
    np.testing.assert_allclose(log_softmax_backward(g, s, 1).moments, sampled, atol=0.03 * sampled[0, 0, 0])


def classes(shape: tuple[int, ...]) -> Tensor:
    return torch.randint(0, C, shape)


def ones(shape: tuple[int, ...]) -> Tensor:
    return (torch.rand(shape) < 0.3).float()


WEIGHT = torch.linspace(0.5, 2.0, C)
# Loss of (output, target), how a target is drawn, and the output's shape.
LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[tuple[int, ...]], Tensor], tuple[int, ...]]] = {
    "cross-entropy": (F.cross_entropy, lambda s: classes(s[:1]), (N, C)),
    "cross-entropy of places": (F.cross_entropy, lambda s: classes((s[0], s[2])), (N, C, L)),
    "cross-entropy, summed": (lambda o, t: F.cross_entropy(o, t, reduction="sum"), lambda s: classes(s[:1]), (N, C)),
    "cross-entropy, unreduced": (
        lambda o, t: F.cross_entropy(o, t, reduction="none").mean(),
        lambda s: classes((s[0], s[2])),
        (N, C, L),
    ),
    "class weights": (lambda o, t: F.cross_entropy(o, t, WEIGHT.to(o.device)), lambda s: classes(s[:1]), (N, C)),
    "mse": (F.mse_loss, torch.randn, (N, C)),
    "mse, summed": (lambda o, t: F.mse_loss(o, t, reduction="sum"), torch.randn, (N, C, L)),
    "l1": (F.l1_loss, torch.randn, (N, C)),
    "smooth l1": (lambda o, t: F.smooth_l1_loss(o, t, beta=0.7), torch.randn, (N, C)),
    "huber": (lambda o, t: F.huber_loss(o, t, delta=0.7), torch.randn, (N, C)),
    "binary": (F.binary_cross_entropy_with_logits, ones, (N, C)),
}


def alike(tensor: Tensor, shape: tuple[int, ...]) -> Signal:
    """Return independent entries of a tensor's size and mean."""
    mean, q = float(tensor.mean()), float(tensor.square().mean())
    moments = np.full((2,) * len(shape), mean**2)
    moments.flat[0] = q
    return Signal(tuple((Atom(n),) for n in shape), moments, np.asarray(mean))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradients_by_sampling(name: str) -> None:
    loss, target, shape = LOSSES[name]
    model, whole = nn.Identity(), target(shape)
    trace = record(model, torch.zeros(shape), loss=lambda out: loss(out, whole.to(out.device)))
    into = trace.inputs["input.0"]
    start = {into: drawn(shape)}
    for v in trace.values:
        if v.kind == "cotangent":
            start[v.id] = alike(torch.ones(1), v.shape)
        elif v.kind == "constant" and v.is_floating:
            start[v.id] = alike(WEIGHT if "weights" in name else target((200, C)), v.shape)
    found = walk(trace, default_table(), start)
    assert not found.unsupported
    value = found.signals[trace.loss if trace.loss is not None else -1]
    gradient = found.signals[trace.gradients[into]]
    torch.manual_seed(2)
    losses, sampled = [], np.zeros((2,) * len(shape))
    for _ in range(TIMES):
        x = draw(shape).requires_grad_()
        y = loss(x, target(shape))
        losses.append(float(y.detach()))
        sampled += pair_averages(torch.autograd.grad(y, x)[0]) / TIMES
    assert value.mean == pytest.approx(float(np.mean(losses)), rel=0.03)
    np.testing.assert_allclose(gradient.moments, sampled, atol=0.04 * sampled.flat[0])


SOME = torch.tensor([-100, 3, 3, 3, 3, 3, -100, -100, 0, 1, 2, 3, 11, -100, -100, -100])
ONE_CLASS = torch.full((N,), 5)
FEW = torch.where(torch.arange(C) < 4, 1.0, 0.0)  # weights of classes, most of them 0
KNOWN: dict[str, tuple[Tensor, Tensor | None, str]] = {
    "left out": (SOME, None, "mean"),
    "left out, summed": (SOME, None, "sum"),
    "left out, weighted": (SOME, FEW, "mean"),
    "one class": (ONE_CLASS, None, "mean"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_targets_that_are_known_count_as_they_are(name: str) -> None:
    target, weight, reduction = KNOWN[name]

    def loss(out: Tensor) -> Tensor:
        w = None if weight is None else weight.to(out.device)
        return F.cross_entropy(out, target.to(out.device), w, reduction=reduction)

    trace = record(nn.Identity(), torch.zeros(N, C), loss=loss)
    into = trace.inputs["input.0"]
    start = {into: drawn((N, C))} | starting_gradients(trace)
    found = walk(trace, default_table(), start, known_values(trace))
    torch.manual_seed(2)
    losses, sampled = list[float](), np.zeros((2, 2))
    for _ in range(TIMES):
        x = draw((N, C)).requires_grad_()
        losses.append(float(loss(x).detach()))
        sampled += pair_averages(torch.autograd.grad(loss(x), x)[0]) / TIMES
    assert trace.loss is not None
    value = found.signals[trace.loss]
    error = float(np.std(losses)) / TIMES**0.5
    assert value.mean == pytest.approx(float(np.mean(losses)), abs=3 * error)
    assert value.q == pytest.approx(float(np.mean(np.square(losses))), rel=0.08)
    # Counted as all alike, the sizes are off by 2 and more, and what samples of one class share by 10.
    np.testing.assert_allclose(found.signals[trace.gradients[into]].moments, sampled, atol=0.04 * sampled[0, 0])


def test_targets_that_are_all_left_out_are_no_loss() -> None:
    target = torch.full((16,), -100)
    found = iw.predict(nn.Linear(8, 4), torch.randn(16, 8), loss=lambda o: F.cross_entropy(o, target))
    assert found.rows[-1]["forward_rms"] is None and found.rows[0]["gradient_rms"] is None


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_language_model_head_by_measurement(smoothing: float) -> None:
    # 24 places of 8 samples, flattened as training code does; every seed draws weights and measures the same batch.
    generator = torch.Generator().manual_seed(5)
    batch, targets = torch.randn(8, 24, 64, generator=generator), torch.randint(0, 40, (8, 24), generator=generator)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 40))

    def loss(out: Tensor) -> Tensor:
        return F.cross_entropy(out.flatten(0, 1), targets.flatten().to(out.device), label_smoothing=smoothing)

    found = iw.predict(model, batch, plan=iw.plan(model, "kaiming"), loss=loss)
    runs: list[Any] = []
    for seed in range(6):
        iw.init_(model, "kaiming", seed=seed)
        runs.append(iw.measure(model, batch, loss=loss))
    for i, row in enumerate(found.rows):
        for key in ("forward_rms", "gradient_rms"):
            if runs[0].rows[i][key]:
                true = np.sqrt(np.mean([r.rows[i][key] ** 2 for r in runs]))
                assert row[key] == pytest.approx(true, rel=0.04), (row["op"], key)


def test_a_mixture_of_densities_has_a_likelihood() -> None:
    """Its log-sum-exp and their mean, one number, are run on drawn numbers."""

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.heads = nn.Linear(16, 32), nn.ModuleList(nn.Linear(32, 5) for _ in range(3))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            weights, means, scales = (head(torch.tanh(self.enter(x))) for head in self.heads)
            return weights.log_softmax(-1), means, F.elu(scales) + 1.001

    def loss(found: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        weights, means, scales = found
        return -torch.logsumexp(weights - scales.log() - 0.5 * ((1.0 - means) / scales) ** 2, -1).mean()

    rows = iw.predict(Mixture(), torch.randn(16, 16, generator=torch.Generator().manual_seed(0)), loss=loss).rows
    assert rows[-1]["forward_rms"] is not None
