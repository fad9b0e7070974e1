"""Known values in a walk: rules get real numbers, signals are measured when asked for, nothing is computed twice."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import initwell as iw
from initwell.propagate.default import default_table
from initwell.propagate.engine import walk
from initwell.propagate.given.known import Known, known_values
from initwell.propagate.given.measured import measured
from initwell.propagate.given.start import parameter_signals
from initwell.propagate.moments.signal import Signal, independent
from initwell.propagate.table import Call
from initwell.trace.ops import COPIES, VIEWS
from initwell.trace.recorder import record
from initwell.trace.trace import Trace


class Decoder(nn.Module):
    """What depends on nothing random: padding and causal masks, buckets, rotary angles, a window's index."""

    inverse: Tensor
    window: Tensor
    unread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.bias = nn.Embedding(50, 16), nn.Embedding(8, 1)
        self.table, self.linear = nn.Parameter(torch.randn(9)), nn.Linear(16, 16)
        self.register_buffer("inverse", 1.0 / 100 ** (torch.arange(8) / 8))
        self.register_buffer("window", torch.arange(36).view(6, 6) % 9)
        self.register_buffer("unread", torch.full((4, 4), -1e9))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        angles = places[:, None].float() * self.inverse
        turn = torch.cat([angles, angles], -1).cos()
        x = self.linear(self.tokens(tokens) * mask[..., None]) * turn
        near = torch.minimum((places[:, None] - places).abs(), torch.full_like(places, 7))
        scores = x @ x.transpose(1, 2) + self.bias(near)[..., 0] + self.table[self.window.view(-1)].view(6, 6)
        allowed = torch.ones(6, 6, dtype=torch.bool, device=x.device).tril() & mask.bool()[:, None, :]
        out: Tensor = torch.softmax(scores + torch.where(allowed, 0.0, torch.finfo(x.dtype).min), -1) @ x
        return out


def batch() -> dict[str, Tensor]:
    tokens = torch.arange(18).view(3, 6) % 7
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[1, 4:] = 0
    return {"tokens": tokens, "mask": mask}


def prepared() -> tuple[Decoder, Trace, Known]:
    torch.manual_seed(0)
    model = Decoder()
    trace = record(model, batch())
    return model, trace, known_values(trace)


def test_a_rule_finds_the_mask_that_was_added_to_its_input() -> None:
    masks: list[Tensor | None] = []

    def softmax(call: Call) -> Sequence[Signal]:
        adding = call.trace.producer(call["self"].id)
        assert adding is not None and call.value("self") is None
        masks.append(call.value_of(adding.arguments["other"]))
        return [independent(call.shape(), 1.0, sample=0)]

    found = iw.predict(Decoder(), batch(), rules={"aten._softmax": softmax})
    allowed = torch.ones(6, 6).tril().bool() & batch()["mask"].bool()[:, None, :]
    (mask,) = masks
    assert mask is not None and torch.equal(mask, torch.where(allowed, 0.0, torch.finfo(torch.float32).min))
    assert found.rows[-1]["forward_rms"] is not None


def test_what_depends_on_nothing_random_is_known_in_a_decoder() -> None:
    found = iw.predict(Decoder(), batch())
    forward = {(r["path"], r["op"]): r["forward_rms"] for r in found.rows}
    assert None not in [forward[k] for k in (("tokens", "aten.embedding"), ("bias", "aten.embedding"))]
    assert forward["", "aten.index"] is not None and found.unsupported == {}
    real = {(r["path"], r["op"]): r["forward_rms"] for r in iw.measure(Decoder(), batch()).rows}
    # The angles are numbers, not moments of something random: equal to the last digits.
    assert forward["", "aten.cos"] == pytest.approx(real["", "aten.cos"], rel=1e-6)


def test_a_mask_has_no_signal_and_moderate_numbers_have_one() -> None:
    model, trace, values = prepared()
    by_name = {v.name: v.id for v in trace.values if v.kind == "buffer"}
    assert values.signal(by_name["unread"]) is None
    wheres = [op.outputs[0] for op in trace.forward_ops if op.functional == "aten.where"]
    assert wheres and all(value in values and values.signal(value) is None for value in wheres)
    angles = values.signal(by_name["inverse"])
    assert angles is not None and angles.mean == pytest.approx(float(model.inverse.mean()))


def test_only_what_a_rule_asks_for_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def spied(tensor: Tensor, *, sample: int | None = None) -> Signal:
        seen.append(tuple(tensor.shape))
        return measured(tensor, sample=sample)

    monkeypatch.setattr("initwell.propagate.given.known.measured", spied)
    model, trace, values = prepared()
    start = parameter_signals(model, trace, None, [])
    walk(trace, default_table(), start, values)
    asked = len(seen)
    # The padding mask and the angles; of the buckets, the index and the causal mask, nothing.
    assert 1 <= asked <= 3 and (6, 6) not in seen
    walk(trace, default_table(), start, values)
    assert len(seen) == asked


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ran: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ran.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_second_walk_computes_nothing_again() -> None:
    model, trace, values = prepared()
    start = parameter_signals(model, trace, None, [])
    walk(trace, default_table(), start, values)
    with Counting() as counting:
        walk(trace, default_table(), start, values)
    assert set(counting.ran) <= {"aten.detach.default"}


def test_nothing_random_is_drawn_and_model_and_batch_stay() -> None:
    torch.manual_seed(5)
    model, given = Decoder(), batch()
    state, before = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    iw.predict(model, given)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(torch.equal(v, given[k]) for k, v in batch().items())


def test_samples_are_marked_where_a_value_was_made_from_the_batch() -> None:
    _, trace, values = prepared()
    embedding = next(op for op in trace.forward_ops if op.path == "tokens")
    (tokens,) = (trace.inputs[n] for n in ("input.tokens",))
    assert values.sample(tokens) == 0 and values.sample(embedding.inputs[1]) == 0
    places = next(op.outputs[0] for op in trace.forward_ops if op.functional == "aten.arange")
    assert places in values and values.sample(places) is None


def test_known_numbers_times_a_value_stay_exact() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 64, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(x) * torch.tensor(3.0, device=x.device)
            return torch.relu(y) * torch.full((64,), 2, device=x.device)

    torch.manual_seed(0)
    model, x = Scaled(), torch.randn(16, 64)
    found = iw.predict(model, x)
    assert {row["fidelity"] for row in found.rows} == {"exact"}
    one, two, three, four = (row["forward_rms"] for row in found.rows)
    assert two == pytest.approx(3 * one) and four == pytest.approx(2 * three)
    assert four == pytest.approx(float(model(x).detach().square().mean().sqrt()), rel=0.05)


def test_what_varies_alike_is_no_independent_factor() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            size = torch.arange(32, device=x.device) / 16
            out: Tensor = (self.one(x) * size) * (self.two(x) * size)
            return out

    # E[c⁴] is 1.8 times E[c²]² for such c.
    found = iw.predict(Twice(), torch.randn(8, 32, generator=torch.Generator().manual_seed(0)))
    assert found.rows[-1]["fidelity"] == "approximate"
    single = iw.predict(Once(), torch.randn(8, 32, generator=torch.Generator().manual_seed(0)))
    assert {row["fidelity"] for row in single.rows} == {"exact"}


class Once(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) * (torch.arange(32, device=x.device) / 16) + self.two(x)  # type: ignore[no-any-return]


def test_a_meta_models_buffers_are_named() -> None:
    with torch.device("meta"):
        model = Decoder()
    found = iw.predict(model, batch())
    (note,) = (note for note in found.notes if note.startswith("Buffers without numbers"))
    assert note == "Buffers without numbers (meta device), so unknown: inverse, window."


def config(name: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    small = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    text = {**small, "vocab_size": 30}
    built: nn.Module
    if name == "t5":
        built = transformers.T5Model(
            transformers.T5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        )
    elif name == "swin":
        built = transformers.SwinModel(
            transformers.SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[2], num_heads=[2], window_size=4)
        )
    elif name == "roberta":
        built = transformers.RobertaModel(transformers.RobertaConfig(**text))
    else:
        built = transformers.MistralModel(transformers.MistralConfig(**text, num_key_value_heads=1, sliding_window=3))
    return built.eval()


@pytest.mark.parametrize("name", ["t5", "swin", "roberta", "mistral"])
def test_every_constant_of_a_transformers_model_is_known(name: str) -> None:
    model = config(name)
    tokens = torch.arange(14).view(2, 7)
    given = {"pixel_values": torch.ones(2, 3, 16, 16)} if name == "swin" else {"input_ids": tokens}
    if name == "t5":
        given["decoder_input_ids"] = tokens
    trace = record(model, given)
    values = known_values(trace)
    brought = [v.id for v in trace.values if v.kind in ("constant", "buffer") and trace.consumers(v.id)]
    whole = [v.id for v in trace.values if v.kind == "op" and not v.is_floating]
    assert whole and all(value in values for value in [*brought, *whole])
    moving = trace.dependents([*trace.parameters.values(), *(v for v in trace.inputs.values() if v not in values)])
    assert not moving & values.folded.tensors.keys()
    assert not values.folded.notes
    # Nothing but what reads weights or floating inputs is left.
    left = [op.name for op in trace.forward_ops if not values.made(op) and not moving & {*op.inputs}]
    assert not [n for n in left if n.rpartition(".")[0] not in {*VIEWS, *COPIES}]


def test_reading_a_known_number_needs_no_rule_and_numbers_are_not_kept() -> None:
    class Reads(Decoder):
        def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
            return super().forward(tokens, mask) if bool((mask.sum(1) > 0).all()) else mask

    found = iw.predict(Reads(), batch())
    assert any(op.packet == "aten._local_scalar_dense" for op in found.trace.ops)
    assert found.unsupported == {} and not found.trace.folded.tensors


class Weighted(nn.Module):
    """A layer of x times Σ v·w of two vectors of its own."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.v, self.w = (nn.Parameter(torch.randn(8, generator=generator)) for _ in range(2))
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x) * (self.v.softmax(0) * self.w).sum()
        return out


def test_products_of_two_vectors_that_stay_as_they_are_are_computed() -> None:
    """The average square of eight products is not that of independents, 10 % off."""
    model, batch = Weighted(), torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    plan = iw.plan(model, "pytorch")
    rows = iw.predict(model, batch, plan=plan).rows
    found = {tuple(row["shape"]): row["forward_rms"] for row in rows if row["op"] in ("aten.mul", "aten.sum")}
    both = (model.v.softmax(0) * model.w).detach()
    assert found[8,] == pytest.approx(float(both.square().mean().sqrt()), rel=1e-5)
    assert found[()] == pytest.approx(float(both.sum().abs()), rel=1e-5)


class Turned(nn.Module):
    """Pairs of channels turned by a frozen table, whose first half are sines and whose second half cosines."""

    def __init__(self) -> None:
        super().__init__()
        angles = torch.arange(20.0)[:, None] * 10000 ** (-torch.arange(0, 16, 2) / 16)
        self.table = nn.Embedding(20, 16, _weight=torch.cat([angles.sin(), angles.cos()], 1))
        self.table.weight.requires_grad_(False)
        self.layer = nn.Linear(16, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        sines, cosines = self.table(torch.arange(x.shape[1])).chunk(2, -1)
        a, b = self.layer(x).chunk(2, -1)
        return torch.cat([a * torch.stack([cosines]) - b * torch.stack([sines])], -1)


def test_each_part_of_a_frozen_table_is_as_large_as_it_is() -> None:
    """Both halves counted as the whole table's average, 0.707, and that was called exact."""
    model, x = Turned(), torch.randn(4, 20, 16, generator=torch.Generator().manual_seed(0))
    found = iw.predict(model, x, plan=iw.plan(model, "xavier")).rows
    cosines, sines = (row for row in found if row["op"] == "aten.stack")
    for row, part in ((cosines, model.table.weight[:, 8:]), (sines, model.table.weight[:, :8])):
        assert row["forward_rms"] == pytest.approx(float(part.square().mean().sqrt()), rel=1e-6)
        assert row["fidelity"] == "exact"


class OneKey(nn.Module):
    """Attention to one key, whose value is what it makes, before a sum and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(24, 24, bias=False) for _ in range(3))
        self.norm = nn.LayerNorm(24)

    def forward(self, x: Tensor) -> Tensor:
        one = x[:, :1]
        y: Tensor = self.norm(one + 3 * (self.q(one) @ self.k(one).mT).softmax(-1) @ self.v(one))
        return y


def test_a_gradient_times_what_it_came_back_through_is_not_exact() -> None:
    """A norm's gradient is orthogonal to its row: that of the one weight is a third of what independent ones give."""
    model, x = OneKey(), torch.randn(16, 2, 24, generator=torch.Generator().manual_seed(0))
    (row,) = (r for r in iw.predict(model, x, plan=iw.plan(model, "xavier")).rows if r["op"] == "aten._softmax")
    assert row["forward_rms"] == 1.0
    assert row["fidelity"] == "approximate"
