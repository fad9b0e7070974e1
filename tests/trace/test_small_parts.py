"""The parts of the walk, each alone."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from initwell.errors import ArgumentError
from initwell.trace.batch import check_batch, map_tensors, tensors
from initwell.trace.ledger import Ledger
from initwell.trace.schema import signature
from initwell.trace.scope import Scope
from initwell.trace.start import unit_gradient

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("func", "written", "sources"),
    [
        (aten.add_.Tensor, ("self",), ("self",)),
        (aten.view.default, (), ("self",)),
        (aten.split.Tensor, (), ("self",)),
        (aten.mm.default, (), (None,)),
        (aten.native_batch_norm.default, (), (None, None, None)),
        (aten.add.out, ("out",), ("out",)),
    ],
    ids=str,
)
def test_schemas(func: Any, written: tuple[str, ...], sources: tuple[str | None, ...]) -> None:
    known = signature(func)
    assert (known.written, known.sources) == (written, sources)


def test_binding_names_positions_keywords_and_defaults() -> None:
    bound = signature(aten.gelu.default).bind(("x",), {})
    assert bound == {"self": "x", "approximate": "none"}
    assert signature(aten.gelu.default).bind(("x",), {"approximate": "tanh"})["approximate"] == "tanh"
    assert signature(object()).bind((1,), {"k": 2}) == {"argument_0": 1, "k": 2}


def test_ledger_versions() -> None:
    told: list[tuple[int, int]] = []
    ledger = Ledger(lambda old, new: told.append((old, new)))
    whole = torch.zeros(2, 2)
    view, other = whole[0], whole[1]
    ids = [ledger.add(whole, "input"), *(ledger.add(v, "op", producer=0, source=whole) for v in (view, other))]
    assert [ledger.find(t) for t in (whole, view, other)] == ids == [0, 1, 2]
    assert ledger.write(view, 5) == 4
    assert ledger.find(whole) == 3
    assert ledger.find(other) == 5
    assert told == [(0, 3), (1, 4), (2, 5)]
    assert [(v.producer, v.base) for v in ledger.values[3:]] == [(5, None), (5, 3), (5, 3)]
    assert ledger.find(torch.zeros(1)) is None


def test_ledger_keeps_nothing_alive() -> None:
    ledger = Ledger()
    ledger.add(torch.zeros(1), "op")
    assert len(ledger._held) == 0


@dataclass
class Output:
    logits: Tensor
    extra: tuple[Tensor, ...] = ()


def test_outputs_of_any_structure() -> None:
    one, two = torch.zeros(1), torch.zeros(2)
    found = list(tensors([Output(one, (two,)), {"k": one}, "text", None], "out"))
    assert [name for name, _ in found] == ["out.0.logits", "out.0.extra.0", "out.1.k"]


def test_mapping_keeps_the_structure() -> None:
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(2, 1), torch.ones(1, 1)])
    changed = map_tensors({"a": (torch.ones(1), [packed, 3])}, lambda t: t * 2)
    assert changed["a"][0].item() == 2
    assert changed["a"][1][0].data.tolist() == [[2], [2], [2]]
    assert torch.equal(changed["a"][1][0].batch_sizes, packed.batch_sizes)
    assert changed["a"][1][1] == 3


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": torch.tensor([1.0, float("nan")])}, r"batch\.x: got 1 NaN or infinite entries of 2"),
        ((torch.ones(1), torch.tensor(float("inf"))), r"batch\.1"),
        (torch.zeros(0, 3), "at least one sample"),
    ],
)
def test_bad_batches(batch: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        check_batch(batch, values=True)


def test_start_of_the_backward_is_a_unit_gaussian_by_seed_and_name() -> None:
    like = torch.empty(300, 200, dtype=torch.float64).t()
    drawn = unit_gradient(like, seed=0, name="output.0")
    # 60,000 draws: five standard errors are 0.02 of the mean and 0.03 of the variance.
    assert abs(float(drawn.mean())) < 0.02
    assert abs(float(drawn.var()) - 1) < 0.03
    assert torch.equal(drawn, unit_gradient(like.contiguous(), seed=0, name="output.0"))
    for other in (unit_gradient(like, seed=1, name="output.0"), unit_gradient(like, seed=0, name="output.1")):
        assert abs(float((drawn * other).mean())) < 0.02


def test_scope_names_modules_made_on_the_way_and_survives_a_caught_failure() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(scope.here.path)
            if len(seen) == 2:
                raise ValueError("once")
            return x

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            for module in (self.inner, self.inner, Inner()):
                with suppress(ValueError):
                    x = module(x)
                seen_after.append(scope.here.path)
            return x

    seen: list[str] = []
    seen_after: list[str] = []
    model = nn.Sequential(Outer())
    scope = Scope(model)
    with scope.watching():
        model(torch.zeros(1))
    assert seen == ["0.inner", "0.inner", "0.<Inner>"]
    assert seen_after == ["0", "0", "0"]
    assert not scope.inside


def test_scope_removes_its_hooks_after_a_failure() -> None:
    def hooks() -> Iterator[int]:
        yield len(torch.nn.modules.module._global_forward_hooks)
        yield len(torch.nn.modules.module._global_forward_pre_hooks)

    before = list(hooks())
    with pytest.raises(RuntimeError), Scope(nn.Linear(2, 2)).watching():
        assert list(hooks()) == [n + 1 for n in before]
        nn.Linear(2, 2)(torch.zeros(3, 3))
    assert list(hooks()) == before
