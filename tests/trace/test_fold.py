"""Folding: what depends on nothing random is computed, as the model itself computes it; nothing else is."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from initwell.trace import fold as fold_module
from initwell.trace.recorder import record
from initwell.trace.trace import Folded, Op, Trace, Value


class Calls(nn.Module):
    """A forward put together by a test."""

    index: Tensor

    def __init__(self, how: Callable[..., object]) -> None:
        super().__init__()
        self.how, self.linear = how, nn.Linear(6, 6)
        self.register_buffer("index", torch.arange(12).view(3, 4))
        self.own = torch.linspace(0, 1, 6)

    def forward(self, x: Tensor) -> object:
        return self.how(self, x)


def folded(how: Callable[..., object], *, device: str = "meta") -> tuple[Folded, Trace]:
    trace = record(Calls(how), torch.zeros(2, 6), device="real" if device == "real" else "meta")
    return trace.folded, trace


def outputs(how: Callable[..., object]) -> list[Tensor | None]:
    """Return what is known of a forward's outputs."""
    found, trace = folded(how)
    return [found.tensors.get(value) for value in trace.outputs.values()]


class Keeping:
    """Keeps a copy of every forward value."""

    def __init__(self) -> None:
        self.seen: dict[int, Tensor] = {}

    def restarted(self) -> None:
        raise AssertionError("nothing here needs a second walk")

    def given(self, value: Value, tensor: Tensor) -> None: ...

    def replaced(self, old: int, new: int) -> None: ...

    def value(self, value: Value, op: Op, tensor: Tensor) -> None:
        self.seen[value.id] = tensor.detach().clone()

    def gradient(self, value: int, tensor: Tensor) -> None: ...


def causal(m: Calls, x: Tensor) -> Tensor:
    n = x.shape[1]
    allowed = torch.ones(n, n, dtype=torch.bool, device=x.device).tril()
    return torch.zeros(n, n, device=x.device).masked_fill(~allowed, torch.finfo(torch.float32).min)


def padding(m: Calls, x: Tensor) -> Tensor:
    given = m.index.ne(3)[:, None, :].expand(3, 2, 4).to(x.dtype)
    return (1.0 - given) * -1e9


def views(m: Calls, x: Tensor) -> tuple[Tensor, ...]:
    mask = torch.zeros(4, 6, device=x.device)
    top, column, before = mask[:2], mask[:, 1], mask + 0
    top[:, 3:] = 1.0
    column += 5
    top.mul_(2)
    return mask, top, column, before, mask.t()


def rotary(m: Calls, x: Tensor) -> tuple[Tensor, Tensor]:
    angles = torch.outer(torch.arange(5, device=x.device).float(), 1.0 / 100 ** (m.own.to(x.device) / 6))
    both = torch.cat([angles, angles], -1)
    return both.cos(), both.sin()


def buckets(m: Calls, x: Tensor) -> Tensor:
    away = torch.arange(6, device=x.device)[None] - torch.arange(6, device=x.device)[:, None]
    near = away.abs()
    far = 2 + (torch.log(near.float() / 2) / torch.log(torch.tensor(4.0)) * 2).to(torch.long)
    return torch.where(near < 2, near, torch.minimum(far, torch.full_like(far, 3))) + (away > 0).long() * 4


def filled(m: Calls, x: Tensor) -> tuple[Tensor, ...]:
    made = torch.empty_like(x)
    made.fill_(3)
    made[0].copy_(m.own)
    return (
        made,
        x.new_full((2, 2), 7),
        x.new_tensor([1.0, 2.0]),
        torch.zeros_like(x),
        torch.as_tensor([4], device=x.device),
    )


KNOWN = {f.__name__: f for f in (causal, padding, views, rotary, buckets, filled)}


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_computed_is_what_the_model_computes(name: str) -> None:
    # The witness is the model itself on real tensors. Without the copy before a write, `before` would be overwritten.
    expected = Calls(KNOWN[name])(torch.zeros(2, 6))
    expected = expected if isinstance(expected, tuple) else (expected,)
    found = outputs(KNOWN[name])
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        assert one is not None and one.dtype == two.dtype and torch.equal(one, two)


@pytest.mark.parametrize("name", KNOWN)
def test_every_version_keeps_its_own_numbers(name: str) -> None:
    keeping = Keeping()
    model = Calls(KNOWN[name])
    trace = record(model, torch.zeros(2, 6), device="real", observer=keeping)
    found = trace.folded
    # Memory that nobody wrote to yet has any numbers.
    unwritten = {o for op in trace.ops if op.functional == "aten.empty_like" for o in op.outputs}
    unwritten |= {
        o for op in trace.ops if op.functional == "aten.detach" and op.inputs[0] in unwritten for o in op.outputs
    }
    compared = {v: t for v, t in keeping.seen.items() if v not in unwritten}
    assert len(compared) >= 5 and set(compared) <= set(found.tensors)
    assert all(torch.equal(found.tensors[v], t) for v, t in compared.items())


def test_what_is_random_floating_or_learned_is_never_folded() -> None:
    def forward(m: Calls, x: Tensor) -> tuple[Tensor, ...]:
        drawn = torch.empty(3, device=x.device).uniform_()
        return x + 1, m.linear.weight * 2, torch.rand(3, device=x.device), drawn, torch.randperm(4, device=x.device)

    model = Calls(forward)
    state = torch.get_rng_state()
    trace = record(model, torch.zeros(2, 6))
    found = trace.folded
    assert torch.equal(state, torch.get_rng_state())
    assert not set(trace.outputs.values()) & set(found.tensors)
    assert [value in found.drawn for value in trace.outputs.values()] == [False, False, True, True, True]


def test_what_random_numbers_alone_decide_is_drawn() -> None:
    def forward(m: Calls, x: Tensor) -> tuple[Tensor, ...]:
        shuffle = torch.rand(2, 6, device=x.device).argsort(1)
        return shuffle, shuffle.argsort(1)[:, :3] + m.index[:2, :3].to(x.device), shuffle * x, torch.rand_like(x)

    found, trace = folded(forward)
    assert [value in found.drawn for value in trace.outputs.values()] == [True, True, False, True]


def test_a_write_of_something_unknown_makes_the_whole_memory_unknown() -> None:
    def forward(m: Calls, x: Tensor) -> tuple[Tensor, ...]:
        whole = torch.zeros(2, 6, device=x.device)
        other, before = whole[1], whole + 0
        whole[0] = x[0]
        return whole, other, before

    whole, other, before = outputs(forward)
    assert whole is None and other is None
    assert before is not None and torch.equal(before, torch.zeros(2, 6))


def test_layers_that_build_the_same_mask_share_it() -> None:
    def forward(m: Calls, x: Tensor) -> tuple[Tensor, ...]:
        one, two, three = causal(m, x), causal(m, x), causal(m, x)
        two[0, 0] = 1
        return one, two, three, torch.full((2,), 1, device=x.device), torch.full((2,), True, device=x.device)

    found, trace = folded(forward)
    one, two, three, ints, bools = trace.outputs.values()
    assert found.tensors[one] is found.tensors[three] and found.first[one] == found.first[three] != found.first[two]
    assert float(found.tensors[one][0, 0]) == 0.0 and float(found.tensors[two][0, 0]) == 1.0
    assert found.tensors[ints].dtype == torch.int64 and found.tensors[bools].dtype == torch.bool


def test_equal_memory_that_is_shared_is_still_written_apart() -> None:
    def forward(m: Calls, x: Tensor) -> tuple[Tensor, ...]:
        one, two = torch.zeros(3, device=x.device), torch.zeros(3, device=x.device)
        torch._foreach_add_([one, two], [1.0, 2.0])
        return one, two

    one, two = outputs(forward)
    assert one is not None and two is not None
    assert one.tolist() == [1.0] * 3 and two.tolist() == [2.0] * 3


def test_what_is_too_large_is_left_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_module, "MOST", 30)
    found, trace = folded(causal)
    assert not set(trace.outputs.values()) & set(found.tensors)
    assert found.notes == (
        "Too large to be computed as real numbers: aten.ones of shape 6×6 (1×), aten.zeros of shape 6×6 (1×).",
    )
    monkeypatch.setattr(fold_module, "MOST", 2**24)
    monkeypatch.setattr(fold_module, "MOST_BYTES", 100)
    assert any("aten.zeros of shape 6×6" in note for note in folded(causal)[0].notes)


def test_an_op_that_fails_is_named_once_and_not_known() -> None:
    def forward(m: Calls, x: Tensor) -> tuple[Tensor, ...]:
        outside = torch.full((2,), 99, device=x.device)
        return m.index.to(x.device).index_select(0, outside), m.index.to(x.device).index_select(1, outside)

    found, trace = folded(forward)
    assert not set(trace.outputs.values()) & set(found.tensors)
    assert len(found.notes) == 1 and found.notes[0].startswith("aten.index_select could not be computed")


def test_ops_of_others_are_not_run() -> None:
    calls = []

    @torch.library.custom_op("initwell_test::spy", mutates_args=())
    def spy(x: Tensor) -> Tensor:
        calls.append(1)
        return x.clone()

    spy.register_fake(torch.empty_like)
    assert outputs(lambda m, x: spy(torch.ones(3, device=x.device))) == [None]
    assert not calls


def test_a_buffer_that_is_read_is_not_written_to() -> None:
    def forward(m: Calls, x: Tensor) -> Tensor:
        m.index += 1
        return m.index * 2

    model = Calls(forward)
    trace = record(model, torch.zeros(2, 6))
    before = model.index.clone()
    found = trace.folded
    (out,) = trace.outputs.values()
    assert torch.equal(found.tensors[out], (before + 1) * 2) and torch.equal(model.index, before)


def test_a_number_put_at_all_places_in_whatever_order_is_known() -> None:
    def all_of_them(m: Calls, x: Tensor) -> tuple[Tensor, Tensor]:
        best = m.linear(x).topk(6, -1)[1]
        some = m.linear(x).topk(5, -1)[1]
        shut = torch.ones(2, 6, dtype=torch.bool, device=x.device)
        return shut.scatter(-1, best.int().long(), False), shut.scatter(-1, some, False)

    whole, part = outputs(all_of_them)
    assert whole is not None and whole.dtype == torch.bool and not whole.any()
    assert part is None


def test_what_a_model_keeps_has_its_numbers_in_the_next_walk() -> None:
    @cache
    def places(length: int, device: torch.device) -> Tensor:
        return torch.arange(length, device=device, dtype=torch.float32) / 2

    def how(model: Calls, x: Tensor) -> Tensor:
        return x + places(6, x.device).cos()

    for _ in range(3):
        found, trace = folded(how)
        (added,) = (op for op in trace.ops if op.functional == "aten.add")
        torch.testing.assert_close(found.tensors[added.inputs[1]], (torch.arange(6) / 2).cos())
    places(6, torch.device("meta")).add_(1)
    found, trace = folded(how)
    (added,) = (op for op in trace.ops if op.functional == "aten.add")
    assert added.inputs[1] not in found.tensors, "written since, and so not known"
