"""Values that vary together because they share a weight: covariances by sampling, predictions by measurement."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initwell as iw
from initwell.propagate.default import default_table
from initwell.propagate.engine import Walk, walk
from initwell.propagate.given.known import Known
from initwell.propagate.given.start import starting_gradients
from initwell.propagate.moments.axes import Atom
from initwell.propagate.moments.signal import independent
from initwell.propagate.shared import covariance
from initwell.propagate.shared.covariance import Covariances
from initwell.propagate.shared.pairs import Pair, of, picked
from initwell.propagate.shared.reuse import Reuse
from initwell.trace.recorder import record
from initwell.trace.trace import Trace

WIDTH, SAMPLES = 96, 8


class Steps(nn.Module):
    """One layer, called again and again on what it made and on something new."""

    def __init__(self, step: Callable[[nn.Linear, Tensor, Tensor], Tensor], steps: int = 4) -> None:
        super().__init__()
        self.layer, self.step, self.steps = nn.Linear(WIDTH, WIDTH), step, steps

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h, found = x, []
        for _ in range(self.steps):
            h = self.step(self.layer, h, x)
            found.append(h)
        return tuple(found)


STEPS: dict[str, Callable[[nn.Linear, Tensor, Tensor], Tensor]] = {
    "residual": lambda f, h, x: h + torch.tanh(f(h)),
    "difference": lambda f, h, x: h - 0.5 * f(h).relu(),
    "layer alone": lambda f, h, x: f(h),
    "product": lambda f, h, x: h + f(h) * torch.sigmoid(x),
    "halves": lambda f, h, x: h + torch.cat(f(h).tanh().chunk(2, 1)[::-1], 1),
    "norm": lambda f, h, x: h + f(nn.functional.layer_norm(h, (WIDTH,))),
    "sum that is normalized by hand": lambda f, h, x: root(x + 0.5 * h + 0.5 * f(h).tanh()),
}


def root(x: Tensor) -> Tensor:
    """x/√(mean(x²) + ε), written by hand: rows times a number for each."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


@dataclass
class Walked:
    """A trace and what a walk over it found, with what they were made from."""

    trace: Trace
    found: Walk
    pairs: Covariances

    def output(self, place: int) -> int:
        return list(self.trace.outputs.values())[place]


def walked(model: nn.Module, x: Tensor, q: float) -> Walked:
    """Walk a model whose weights and biases have second moment q and q/10."""
    trace, table, values = record(model, x), default_table(), Known.nothing()
    start = starting_gradients(trace)
    start |= {v: independent(tuple(x.shape), 1.0, sample=0) for v in trace.inputs.values()}
    for name, value in trace.parameters.items():
        start[value] = independent(trace.values[value].shape, q if name.endswith("weight") else q / 10)
    found = walk(trace, table, start, values)
    return Walked(trace, found, Covariances(Reuse(trace), found.signals, values, table))


def sampled(model: nn.Module, x: Tensor, q: float, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Return E[v w] of every pair of outputs, over fresh weights and inputs, and its standard error."""
    generator = torch.Generator().manual_seed(7)
    draws = []
    for _ in range(seeds):
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.normal_(0.0, math.sqrt(q if name.endswith("weight") else q / 10), generator=generator)
            outputs = [y.double().flatten() for y in model(torch.randn(x.shape, generator=generator))]
        draws.append([[float((a * b).mean()) for b in outputs] for a in outputs])
    found = np.array(draws)
    return found.mean(0), found.std(0) / math.sqrt(seeds)


@pytest.mark.parametrize("name", STEPS)
def test_covariances_of_the_calls_of_one_layer(name: str) -> None:
    # 200 draws of 768 entries each. What is asked for is 5 % of the larger size besides four standard errors: widths
    # are finite. Taken as independent, any two steps of these but the plain layer's would have none of it.
    x, q = torch.zeros(SAMPLES, WIDTH), 1.0 / WIDTH
    model = Steps(STEPS[name])
    walk_ = walked(model, x, q)
    mean, error = sampled(model, x, q, 200)
    for i in range(4):
        for j in range(i + 1):
            v, w = walk_.output(i), walk_.output(j)
            pair = walk_.pairs.of(v, w)
            one, two = walk_.found.signals[v], walk_.found.signals[w]
            found = one.mean * two.mean + (0.0 if pair is None else pair.signal().q)
            assert abs(found - mean[i, j]) < 0.05 * math.sqrt(mean[i, i] * mean[j, j]) + 4 * error[i, j], (i, j)
    if name != "layer alone":
        assert mean[3, 1] > 0.2 * math.sqrt(mean[3, 3] * mean[1, 1])


def ninetieth(model: nn.Module, x: Tensor, key: str) -> float:
    """Return the 90th percentile of errors of a predicted rms against that measured over 8 weight seeds.

    Measured values have a standard error of their own; an error counts beyond two of these.
    """
    predicted = iw.predict(model, x, plan=iw.plan(model, "xavier")).rows
    runs = []
    for seed in range(8):
        iw.init_(model, "xavier", seed=seed)
        runs.append(iw.measure(model, x, seed=seed).rows)
    errors = []
    for i, row in enumerate(predicted):
        squares = np.array([run[i][key] or 0.0 for run in runs]) ** 2
        if squares.any():
            spread = float(squares.std(ddof=1) / squares.mean() / math.sqrt(8) / 2)
            errors.append(max(0.0, abs(row[key] / math.sqrt(squares.mean()) - 1) - 2 * spread))
    return float(np.quantile(errors, 0.9))


def test_a_layer_called_six_times_on_a_residual_stream() -> None:
    # Taken as independent: 0.43 and 0.26.
    torch.manual_seed(0)
    model, x = Steps(STEPS["residual"], 6), torch.randn(16, WIDTH)
    assert ninetieth(model, x, "forward_rms") < 0.04
    assert ninetieth(model, x, "gradient_rms") < 0.1


class Last(nn.Module):
    """A head on the last step."""

    def __init__(self, kind: str, **options: float) -> None:
        super().__init__()
        self.rnn, self.head = getattr(nn, kind)(32, 64, batch_first=True, **options), nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(x)[0][:, -1])
        return y


class Averaged(Last):
    """A head on the average over time."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(x)[0].mean(1))
        return y


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("head", [Last, Averaged])
def test_recurrent_nets(head: type[Last], kind: str) -> None:
    # Taken as independent, gradients: 0.45, 0.37 and 0.05 from the last step, 0.36 and 0.40 from the average.
    torch.manual_seed(0)
    model, x = head(kind), torch.randn(16, 10, 32)
    assert ninetieth(model, x, "forward_rms") < 0.04
    assert ninetieth(model, x, "gradient_rms") < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_two_recurrent_layers_both_ways(kind: str) -> None:
    # The second layer's input varies together over time; taken as independent: 0.22 and 0.24.
    torch.manual_seed(0)
    model, x = getattr(nn, kind)(32, 64, 2, bidirectional=True), torch.randn(10, 16, 32)
    assert ninetieth(model, x, "forward_rms") < 0.04
    assert ninetieth(model, x, "gradient_rms") < 0.1


def test_every_row_of_a_recurrent_net_is_known() -> None:
    for kind in ("LSTM", "GRU", "RNN"):
        found = iw.predict(Last(kind, num_layers=2, dropout=0.2), torch.randn(4, 5, 32))
        assert found.unsupported == {}
        assert {row["fidelity"] for row in found.rows} <= {"exact", "approximate"}


def test_pairs_beyond_what_is_looked_at_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(covariance, "MOST", 50)
    found = iw.predict(Last("LSTM"), torch.randn(4, 5, 32))
    assert any("pairs of values that share a weight" in note for note in found.notes)


def test_where_no_weight_is_used_twice_nothing_is_looked_for() -> None:
    once = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    assert not Reuse(record(once, torch.zeros(2, 4))).any
    layer = nn.Linear(4, 4)
    assert Reuse(record(nn.Sequential(layer, nn.Tanh(), layer), torch.zeros(2, 4))).any


def test_parts_of_one_layers_output_have_no_tag_in_common() -> None:
    class Gates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            a, b = self.one(x).chunk(2, 1)
            return a, b, self.one(2 * x).chunk(2, 1)[0], self.two(x)

    trace = record(Gates(), torch.zeros(2, 4))
    reuse = Reuse(trace)
    a, b, again, other = (reuse.tags(v) for v in trace.outputs.values())
    assert not a & b
    assert not a & other
    assert a == again


def test_picked_stretches_against_real_tensors() -> None:
    # Averages over the pairs themselves, of two tensors that are made of one.
    torch.manual_seed(0)
    whole = torch.randn(400, 6) + torch.randn(400, 1)
    moments = np.array([float((whole * whole).mean()), 0.0])
    outer = (whole.T @ whole / 400).double()
    moments[1] = float((outer.sum() - outer.trace()) / 30)
    found = picked(Pair(((Atom(6),),), moments), 0, (0, 2), (3, 5), drop=False)
    assert found is not None
    assert found.moments.tolist() == pytest.approx([float(outer[:2, 3:5].mean())] * 2, abs=0.1)
    assert picked(Pair(((Atom(6),),), moments), 0, (0, 2), (1, 3), drop=False) is None


def test_swapping_turns_segments_round() -> None:
    pair = Pair(((Atom(3, parts=(1, 2)),),), np.arange(6.0))
    turned = pair.swapped()
    assert turned.moments.tolist() == [0.0, 1.0, 2.0, 4.0, 3.0, 5.0]
    assert of(independent((3, 2), 2.0)).swapped().moments.tolist() == of(independent((3, 2), 2.0)).moments.tolist()
