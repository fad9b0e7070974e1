"""The table and the walk: duplicates, wrong types, user rules, failures with their place, ops without a rule."""

import gc
from collections.abc import Sequence
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from initwell.errors import ArgumentError, ModelError
from initwell.propagate.default import default_table
from initwell.propagate.engine import RuleError, RuleWarning
from initwell.propagate.moments.signal import Signal, constant
from initwell.propagate.predict import predict
from initwell.propagate.table import Call, RuleTable


def rule(call: Call) -> Sequence[Signal]:
    return [constant(call.shape(), 2.0)]


def test_an_op_has_one_rule() -> None:
    with pytest.raises(ArgumentError, match=r"aten\.relu twice"):
        RuleTable.build([{"aten.relu": rule}, {"aten.relu": rule}], {})
    with pytest.raises(ArgumentError, match="Say why"):
        RuleTable.build([{"aten.relu": rule}], {"aten.relu": "no need"})


@pytest.mark.parametrize("rules", [{"relu": rule}, {"aten.relu.default": rule}, {"aten.relu": 3}, [rule]])
def test_rules_that_are_none_are_refused(rules) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ArgumentError, match="rules"):
        default_table().with_rules(rules)


def test_a_rule_of_the_users_counts_for_one_call_only() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.ones(2, 4)
    assert predict(model, x, rules={"aten.relu": rule}).rows[-1]["forward_rms"] == 2.0
    assert predict(model, x).rows[-1]["forward_rms"] != 2.0
    assert default_table().rules["aten.relu"] is not rule


def test_a_failing_rule_is_reported_with_its_op_and_module() -> None:
    def broken(call: Call) -> Sequence[Signal]:
        raise ZeroDivisionError("by nothing")

    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU()))
    with pytest.raises(RuleError, match=r"aten\.relu\.default failed at 1\.0 \(forward\).*by nothing") as found:
        predict(model, torch.ones(2, 4), rules={"aten.relu": broken})
    assert isinstance(found.value.__cause__, ZeroDivisionError)
    with pytest.raises(ModelError, match="a signal of shape"):
        predict(model, torch.ones(2, 4), rules={"aten.relu": lambda call: [constant((3,), 1.0)]})


def test_a_rule_that_fails_here_leaves_its_values_unknown_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes before it and what it has no part in are predicted as ever: one defect is not the end of a walk."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError("by nothing")

    model, x = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU()), nn.Linear(4, 4)), torch.ones(2, 4)
    whole = predict(model, x)
    monkeypatch.setitem(default_table().rules, "aten.relu", broken)
    with pytest.warns(RuleWarning, match=r"aten\.relu\.default failed at 1\.0 \(forward\).*by nothing.*report"):
        found = predict(model, x)
    sizes = [row["forward_rms"] for row in found.rows]
    assert sizes == [whole.rows[0]["forward_rms"], None, None]
    assert found.rows[1]["gradient_rms"] == whole.rows[1]["gradient_rms"]
    assert any("a rule failed at, with ZeroDivisionError: by nothing: aten.relu at 1.0" in note for note in found.notes)


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.b(torch.asinh(self.a(x)))
        return y


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_rule_returns_as_many_signals_as_its_op_has_outputs(count: int) -> None:
    """A batch norm has three: of a rule that forgot two of them, one of four, nothing may be taken."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    rules = {"aten.native_batch_norm": lambda call: [call.signal("input")] * count}
    with pytest.raises(RuleError, match=f"{count} signals for 3 outputs"):
        predict(model, torch.randn(8, 4), rules=rules)


@pytest.mark.parametrize("collected", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_cycles_are_looked_for_after_a_walk_as_before_it(collected: bool, fails: bool) -> None:
    seen: list[bool] = []

    def rule(call: Call) -> Sequence[Signal]:
        seen.append(gc.isenabled())
        return [] if fails else [call.signal("self")]

    before = gc.isenabled()
    (gc.enable if collected else gc.disable)()
    try:
        with pytest.raises(RuleError) if fails else nullcontext():
            predict(nn.ReLU(), torch.ones(3, 4), rules={"aten.relu": rule})
        assert gc.isenabled() is collected
    finally:
        (gc.enable if before else gc.disable)()
    assert seen == [False]


def test_an_op_without_a_rule_is_named_with_what_it_made_unknown() -> None:
    found = predict(Odd(), torch.ones(3, 4))
    assert found.unsupported == {"aten.asinh": 1}
    by_op = {(row["path"], row["op"]): row for row in found.rows}
    assert by_op["a", "aten.addmm"]["forward_rms"] is not None
    last = by_op["b", "aten.addmm"]
    assert last["forward_rms"] is None and last["fidelity"] == "unknown"
    assert any("aten.asinh (1×)" in note for note in found.notes)
    assert any(note.startswith("Unknown: ") for note in found.notes)


def test_every_rule_is_listed_once_and_every_ignored_op_says_why() -> None:
    table = default_table()
    assert not set(table.rules) & set(table.ignored)
    assert all(reason for reason in table.ignored.values())
