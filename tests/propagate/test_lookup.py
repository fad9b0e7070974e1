"""Look-ups against PyTorch's own: the moments of what it returns, averaged over many draws of the table.

Each table has equally correlated entries along its axes, so that it is exchangeable and its moments are known. Averages
over n = 400 draws of 10 to 100 entries have a standard error near 2 %; a share counted over the wrong pairs, or without
the diagonal, is off by 20 % and more.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initwell as iw
from initwell.errors import ArgumentError
from initwell.propagate.default import default_table
from initwell.propagate.engine import Walk, walk
from initwell.propagate.given.known import known_values
from initwell.propagate.given.measured import pair_averages
from initwell.propagate.given.start import starting_gradients
from initwell.propagate.moments.alike import plain, refined
from initwell.propagate.moments.signal import Signal, independent
from initwell.propagate.rules.lookup import looked_up, lookup, picked, put_back, put_down
from initwell.trace.recorder import record

DRAWS = 400
SHAPE = (6, 5, 4)


class Looks(nn.Module):
    """A look-up in a parameter, as a test says."""

    def __init__(self, how: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...] = SHAPE) -> None:
        super().__init__()
        self.how, self.table = how, nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self.table, x)


def signal_of(shape: tuple[int, ...]) -> Signal:
    """Entries with a mean, and a part in common along each axis: 1 + Σ_axis z[axis index] + z[all]."""
    one = independent(shape, 1.0)
    moments = np.ones_like(one.moments)
    for place in np.ndindex(moments.shape):
        moments[place] += sum(p == 0 for p in place) + (not any(place))
    return one.changed(moments, 1.0)


def drawn(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    found = 1 + torch.randn(shape, generator=generator, dtype=torch.float64)
    for axis, n in enumerate(shape):
        found = found + torch.randn(n, generator=generator, dtype=torch.float64).reshape(
            -1, *[1] * (len(shape) - axis - 1)
        )
    return found


def walked(how: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...] = SHAPE) -> tuple[Signal, Signal, Walk]:
    """Return the signals of the output and of the table's gradient."""
    model, x = Looks(how, shape), torch.zeros(1)
    trace = record(model, x)
    start = {trace.parameters["table"]: signal_of(shape)} | {
        value: signal_of(s.shape) for value, s in starting_gradients(trace).items()
    }
    found = walk(trace, default_table(), start, known_values(trace))
    out = next(iter(trace.outputs.values()))
    return found.signals[out], found.signals[trace.gradients[trace.parameters["table"]]], found


def sampled(how: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    generator = torch.Generator().manual_seed(3)
    forward, backward = [], []
    for _ in range(DRAWS):
        table = drawn(shape, generator).requires_grad_()
        out = how(table, torch.zeros(1))
        (gradient,) = torch.autograd.grad(out, table, drawn(tuple(out.shape), generator))
        forward.append(pair_averages(out).reshape([2] * out.ndim))
        backward.append(pair_averages(gradient))
    return np.mean(forward, 0), np.mean(backward, 0)


def at(*numbers: int, shape: tuple[int, ...] = (-1,)) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.tensor(numbers, device=x.device).reshape(shape)


RELATIVE = at(*[(i - j + 5) % 6 for i in range(4) for j in range(4)])
PICKS = at(*[(7 * i * i + i // 4) % 5 for i in range(6 * 3 * 4)], shape=(6, 3, 4))
LOOKUPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relative positions": lambda t, x: t[RELATIVE(x)],
    "two axes of places": lambda t, x: t[RELATIVE(x).view(4, 4)],
    "a middle dimension": lambda t, x: t[:, at(0, 0, 3, -1)(x)],
    "two neighbours": lambda t, x: t[at(0, 1, 2, 2, 5)(x), at(4, 4, 0, 1, 1)(x)],
    "two apart": lambda t, x: t[at(0, 1, 2, 2)(x), :, at(3, 3, 0, 1)(x)],
    "broadcast": lambda t, x: t[at(0, 3, 3)(x)[:, None], at(1, 2)(x)],
    "all three": lambda t, x: t[at(0, 3, 3)(x), at(1, 2, 2)(x), at(0, 0, 1)(x)],
    "parts of a dimension": lambda t, x: t.reshape(30, 4)[at(0, 7, 7, 12, 29, 25)(x)],
    "index_select": lambda t, x: t.index_select(1, at(0, 1, 1, 4)(x)),
    "gather": lambda t, x: t.gather(1, PICKS(x)),
    "every row": lambda t, x: t[at(5, 3, 1, 0, 2, 4)(x)],
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_moments_are_those_of_pytorch(name: str) -> None:
    out, gradient, _ = walked(LOOKUPS[name])
    forward, backward = sampled(LOOKUPS[name])
    for found, truth in ((out, forward), (gradient, backward)):
        assert found.moments.size == truth.size
        scale = truth.ravel()[0]
        assert np.abs(found.moments.ravel() - truth.ravel()).max() <= 0.06 * scale


def test_an_embedding_is_such_a_look_up() -> None:
    def how(t: Tensor, x: Tensor) -> Tensor:
        return nn.functional.embedding(RELATIVE(x).view(4, 4), t)

    out, gradient, _ = walked(how, (6, 4))
    for found, truth in zip((out, gradient), sampled(how, (6, 4)), strict=True):
        assert np.abs(found.moments - truth).max() <= 0.06 * truth.ravel()[0]


def test_rows_that_are_looked_up_unlike_often_are_named() -> None:
    assert walked(LOOKUPS["relative positions"])[1].reasons == ("rows that are looked up unlike often, taken as alike",)
    assert walked(LOOKUPS["every row"])[1].fidelity == "exact"


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_segments_that_are_alike_change_nothing(axis: int) -> None:
    # The same table and gradients, with an axis written as two segments: a class token and the others, say.
    table = signal_of(SHAPE)
    parts = refined(table, axis, (1, SHAPE[axis] - 1))
    index = {0: torch.tensor([0, 2, 2, 5])}
    found = lookup(table.dims, index)
    for one, two in (
        (looked_up(table, found), looked_up(parts, found)),
        (put_back(looked_up(table, found), found, SHAPE), put_back(looked_up(parts, found), found, SHAPE)),
    ):
        assert one.shape == two.shape and one.mean == pytest.approx(two.mean)
        np.testing.assert_allclose(plain(two, 0, 1, 2).moments, one.moments)
    picks = lookup(table.dims, {1: PICKS(torch.zeros(1))})
    for one, two in (
        (picked(table, 1, picks), picked(parts, 1, picks)),
        (put_down(picked(table, 1, picks), picks, 1, 5), put_down(picked(parts, 1, picks), picks, 1, 5)),
    ):
        assert one.shape == two.shape and one.mean == pytest.approx(two.mean)
        np.testing.assert_allclose(plain(two, 0, 1, 2).moments, one.moments)


def test_padding_gets_no_gradient() -> None:
    def how(t: Tensor, x: Tensor) -> Tensor:
        return nn.functional.embedding(at(0, 0, 0, 2, 2, 5, 1, 0)(x).view(2, 4), t, padding_idx=0)

    _, gradient, _ = walked(how, (6, 4))
    _, backward = sampled(how, (6, 4))
    assert np.abs(gradient.moments - backward).max() <= 0.06 * backward[0, 0]


def test_a_random_shuffle_keeps_what_is_exchangeable() -> None:
    def how(t: Tensor, x: Tensor) -> Tensor:
        picked = torch.rand(6, 5, device=x.device).argsort(1)[:, :3]
        return t.gather(1, picked[:, :, None].expand(-1, -1, 4))

    out, gradient, _ = walked(how)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        forward, backward = sampled(how)
    assert out.fidelity == gradient.fidelity == "approximate"
    assert abs(out.q / forward[0, 0, 0] - 1) <= 0.05 and abs(gradient.q / backward[0, 0, 0] - 1) <= 0.05


def test_an_index_that_follows_from_activations_is_unknown() -> None:
    class Best(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            best: Tensor = y.gather(1, (y > 0).long())
            return best

    found = iw.predict(Best(), torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
    assert found.rows[-1]["op"] == "aten.gather" and found.rows[-1]["fidelity"] == "unknown"
    assert any("aten.gather" in note for note in found.notes)


def test_samples_stay_samples() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            last: Tensor = y[torch.arange(len(y), device=y.device), torch.tensor([0, 2, 1, 2], device=y.device)]
            return last

    x = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(0))
    row = iw.predict(Last(), x).rows[-1]
    assert row["op"] == "aten.index" and row["overlap"] is not None and row["fidelity"] != "unknown"
    assert row["gradient_rms"] == pytest.approx(1.0)


class Transformed(nn.Module):
    """Tokens shifted to the right, as a decoder does, before they are looked up; positions counted, as RoBERTa does."""

    def __init__(self, rows: int, places: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(rows, 8), nn.Embedding(places, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        shifted = tokens.new_zeros(tokens.shape)
        shifted[:, 1:] = tokens[:, :-1] + 2
        counted = tokens.ne(0).long().cumsum(1)
        out: Tensor = self.tokens(shifted) + self.positions(counted)
        return out


def test_transformed_tokens_are_checked_and_predicted() -> None:
    tokens = torch.tensor([[1, 2, 3, 1], [4, 4, 0, 5]])
    with torch.device("meta"):
        model = Transformed(8, 5)
    found = iw.predict(model, tokens)
    assert found.rows[-1]["forward_rms"] == pytest.approx(2**0.5)
    # Looked up: 0 3 4 5 and 0 6 6 2, of which one is equal at the same place; positions 1 2 3 4 and 1 2 2 3, two.
    assert found.rows[-1]["overlap"] == pytest.approx((1 / 4 + 2 / 4) / 2)
    assert {row["fidelity"] for row in found.rows} == {"exact"}
    with pytest.raises(ArgumentError, match=r"input\.0.*rows 0 to 6\. The embedding at 'tokens' has 6 rows"):
        iw.predict(Transformed(6, 5), tokens)
    with pytest.raises(ArgumentError, match=r"input\.0.*'positions' has 4 rows"):
        iw.predict(Transformed(8, 4), tokens)


def test_positions_that_no_input_decides_are_checked_too() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table(torch.arange(x.shape[1], device=x.device))  # type: ignore[no-any-return]

    assert {r["fidelity"] for r in iw.predict(Positions(), torch.ones(2, 4, 8)).rows} == {"exact"}
    text = r"batch: got a shape whose positions are 0 to 4\. The embedding at 'table' has 4 rows: give a shorter one"
    with pytest.raises(ArgumentError, match=text):
        iw.predict(Positions(), torch.ones(2, 5, 8))


def test_rows_of_a_frozen_table_are_those_that_are_looked_up() -> None:
    """Of 400 places of sinusoids the first 10 are alike, all of them are not: the mean would be 60 % less."""
    angles = torch.arange(400.0)[:, None] / 100 ** (torch.arange(16) / 16)

    class Sinusoids(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer = nn.Embedding(400, 32), nn.Linear(32, 32, bias=False)
            self.table.weight.requires_grad = False

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x + self.table(torch.arange(x.shape[1], device=x.device))).mean(1)
            return out

    model = Sinusoids()
    model.table.weight.data = torch.cat([angles.sin(), angles.cos()], 1)
    plan = iw.plan(model, "kaiming")
    batch = torch.zeros(2, 10, 32)
    squares = []
    for seed in range(100):
        iw.init_(model, "kaiming", seed=seed)
        squares.append(iw.measure(model, batch, seed=seed).rows[-1]["forward_rms"] ** 2)
    error = np.std(squares) / len(squares) ** 0.5 / np.mean(squares) / 2
    assert error < 0.03
    found = iw.predict(model, batch, plan=plan).rows[-1]["forward_rms"]
    assert found == pytest.approx(np.mean(squares) ** 0.5, rel=4 * error)


class Places(nn.Module):
    """A bias by how far apart two places are, made of their coordinates by a small net, as in Swin v2."""

    def __init__(self, side: int = 6) -> None:
        super().__init__()
        axis = torch.arange(1 - side, side, dtype=torch.float32)
        self.register_buffer("table", torch.cartesian_prod(axis, axis) / side)
        place = torch.cartesian_prod(torch.arange(side), torch.arange(side))
        apart = place[:, None] - place[None] + side - 1
        self.register_buffer("index", (apart[..., 0] * (2 * side - 1) + apart[..., 1]).reshape(-1))
        self.hidden, self.out = nn.Linear(2, 64), nn.Linear(64, 32, bias=False)
        self.mixed = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.out(torch.relu(self.hidden(self.table)))[self.index]
        y: Tensor = self.mixed(x) + bias
        return y


def test_a_table_made_of_coordinates_is_small_where_it_is_looked_up_most() -> None:
    """Most pairs of places are near each other: with all rows alike, 30 % too large, against 100 draws."""
    model, batch = Places(), torch.randn(2, 1296, 32, generator=torch.Generator().manual_seed(0))
    plan = iw.plan(model, "kaiming")
    rows = iw.predict(model, batch, plan=plan).rows
    place = next(i for i, row in enumerate(rows) if row["op"] == "aten.index")
    squares = []
    for seed in range(100):
        iw.init_(model, "kaiming", seed=seed)
        squares.append(iw.measure(model, batch, seed=seed).rows[place]["forward_rms"] ** 2)
    assert rows[place]["forward_rms"] == pytest.approx(math.sqrt(sum(squares) / len(squares)), rel=0.06)
