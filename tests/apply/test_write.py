import copy
import hashlib
import json
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from initwell.apply.plan import Plan, plan
from initwell.apply.schemes.kaiming import Kaiming
from initwell.apply.write import init_
from initwell.errors import ArgumentError, ModelError
from initwell.initializers.basic import constant, normal
from initwell.sampling.fill import fill


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(30, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 7))


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def weight(model: nn.Module, name: str = "0.weight") -> Tensor:
    owner, _, local = name.rpartition(".")
    found = getattr(model.get_submodule(owner), local)
    assert isinstance(found, Tensor)
    return found.detach()


def std(model: nn.Module) -> float:
    return float(weight(model).std())


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(values(a).values(), values(b).values(), strict=True))


def test_what_stands_in_the_model_is_what_was_planned_and_digested() -> None:
    model = net()
    receipt = init_(model, "kaiming", seed=5)
    for row, planned in zip(receipt.rows, receipt.plan.rows, strict=True):
        assert planned.distribution is not None
        drawn = fill(planned.distribution, planned.shape, seed=5, name=row.parameter)
        stands = model.get_parameter(row.parameter).detach().numpy()
        assert np.array_equal(stands, drawn)
        assert row.sha256 == hashlib.sha256(stands.tobytes()).hexdigest()
    assert receipt.plan == plan(net(), "kaiming", seed=5)


@pytest.mark.parametrize("distribution", ["normal", "uniform", "truncated_normal"])
def test_torch_as_witness_of_the_standard_deviation(distribution: str) -> None:
    # 400 x 300 entries: the standard error of a std is 0.2 % for a normal, less for the others.
    model = nn.Sequential(nn.Linear(300, 400), nn.LeakyReLU(0.2))
    init_(model, Kaiming(distribution=distribution), seed=1)  # type: ignore[arg-type]
    witness = torch.empty(400, 300)
    generator = torch.Generator().manual_seed(0)
    nn.init.kaiming_normal_(witness, a=0.2, generator=generator)
    assert std(model) == pytest.approx(float(witness.std()), rel=0.01)


@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
def test_torch_as_witness_of_a_plain_convolution(mode: str) -> None:
    model = nn.Sequential(nn.Conv2d(32, 64, 5), nn.ReLU())
    init_(model, Kaiming(mode=mode), seed=1)  # type: ignore[arg-type]
    witness = nn.init.kaiming_normal_(torch.empty(64, 32, 5, 5), mode=mode, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    assert std(model) == pytest.approx(float(witness.std()), rel=0.015)


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    a, b, c = net(), net(), net()
    first, second, third = init_(a, "xavier", seed=1), init_(b, "xavier", seed=1), init_(c, "xavier", seed=2)
    assert same(a, b) and first == second
    assert first.rows[0].sha256 != third.rows[0].sha256
    assert abs(np.corrcoef(weight(a).flatten(), weight(c).flatten())[0, 1]) < 0.1


def test_random_generators_are_neither_used_nor_moved() -> None:
    states = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    a = net()
    moved = torch.get_rng_state()
    assert not torch.equal(states[0], moved)
    init_(a, "kaiming", example=torch.zeros(4, 30))
    assert torch.equal(moved, torch.get_rng_state())
    assert states[1] == str(np.random.get_state()) and states[2] == random.getstate()  # noqa: NPY002
    torch.manual_seed(99)
    b = net()
    init_(b, "kaiming")
    assert same(a, b)


class Pair(nn.Module):
    def __init__(self, order: tuple[str, str]) -> None:
        super().__init__()
        for name in order:
            self.add_module(name, nn.Linear(6, 6))


def test_neither_the_order_of_modules_nor_only_nor_other_layers_matter() -> None:
    a, b = Pair(("first", "second")), Pair(("second", "first"))
    init_(a, "lecun")
    init_(b, "lecun", only="second.*")
    assert torch.equal(a.get_parameter("second.weight"), b.get_parameter("second.weight"))
    assert not torch.equal(a.get_parameter("first.weight"), b.get_parameter("first.weight"))
    assert not torch.equal(a.get_parameter("first.weight"), a.get_parameter("second.weight"))


def wrapped_in_data_parallel(model: nn.Module) -> nn.Module:
    return nn.DataParallel(model)


def wrapped_in_compile(model: nn.Module) -> nn.Module:
    compiled = torch.compile(model, backend="eager")
    assert isinstance(compiled, nn.Module)
    return compiled


@pytest.mark.parametrize("wrap", [wrapped_in_data_parallel, wrapped_in_compile])
def test_wrappers_change_neither_names_nor_weights(wrap: Callable[[nn.Module], nn.Module]) -> None:
    a, b = net(), net()
    assert init_(a, "kaiming") == init_(wrap(b), "kaiming")
    assert same(a, b)


@pytest.mark.parametrize("norm", ["new", "old"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_weight_norm_holds_the_weight_that_was_drawn(norm: str) -> None:
    plain, normed = nn.Sequential(nn.Conv1d(4, 6, 3)), nn.Sequential(nn.Conv1d(4, 6, 3))
    (nn.utils.parametrizations.weight_norm if norm == "new" else nn.utils.weight_norm)(normed[0])
    init_(plain, "kaiming")
    receipt = init_(normed, "kaiming")
    normed(torch.zeros(1, 4, 9))
    assert torch.allclose(weight(plain), weight(normed), rtol=1e-6, atol=1e-7)
    assert any("under weight_norm" in row.reason for row in receipt.rows)
    assert all(row.sha256 for row in receipt.rows)
    with pytest.raises(ArgumentError, match="divides by the norm"):
        init_(normed, "zeros")
    assert torch.allclose(weight(plain), weight(normed), rtol=1e-6, atol=1e-7), "refused before anything is written"


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_other_parametrizations_are_left_alone_and_named(norm: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(norm(nn.Linear(5, 5)), nn.Linear(5, 2))
    before = values(model)
    receipt = init_(model, "kaiming")
    (left,) = [row for row in receipt.rows if row.sha256 is None]
    assert "orig" in left.parameter and "behind" in left.reason
    assert torch.equal(before[left.parameter], values(model)[left.parameter])


def test_flags_gradients_buffers_and_mode_stay() -> None:
    model = net().train()
    model(torch.randn(8, 30, generator=torch.Generator().manual_seed(0))).sum().backward()
    model[3].bias.requires_grad_(False)
    before, gradients = copy.deepcopy(model), [p.grad.clone() for p in model.parameters() if p.grad is not None]
    receipt = init_(model, "kaiming", only="*")
    for (name, p), q, g in zip(model.named_parameters(), before.parameters(), gradients, strict=True):
        assert p.requires_grad == q.requires_grad, name
        assert p.grad is not None and torch.equal(p.grad, g)
        assert p.is_leaf
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before.buffers(), strict=True))
    assert model.training
    assert any("running statistics" in note for note in receipt.notes)


def test_autograd_notices_a_weight_that_was_overwritten() -> None:
    model = nn.Linear(3, 3)
    x = torch.ones(2, 3, requires_grad=True)
    y = model(x).sum()
    init_(model, "lecun")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_rounded_from_float32(dtype: torch.dtype) -> None:
    model, low = net(), net().to(dtype)
    init_(model, "kaiming")
    receipt = init_(low, "kaiming")
    assert torch.equal(weight(low), weight(model).to(dtype))
    stands = weight(low).view(torch.uint8).numpy()
    assert receipt.rows[0].sha256 == hashlib.sha256(stands.tobytes()).hexdigest()


def test_parameters_that_are_not_contiguous() -> None:
    model, other = nn.Linear(4, 6), nn.Linear(4, 6)
    other.weight = nn.Parameter(torch.zeros(4, 6).t())
    assert init_(model, "lecun") == init_(other, "lecun")
    assert torch.equal(model.weight, other.weight) and not other.weight.is_contiguous()


def test_a_padding_row_stays_zero() -> None:
    model = nn.Embedding(10, 4, padding_idx=3)
    init_(model, normal(std=1.0))
    assert not model.weight[3].any() and bool(model.weight[[0, 9]].all())


def test_tied_weights_stay_tied() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
    model["head"].weight = model["embed"].weight
    receipt = init_(model, "lecun")
    assert len(receipt.rows) == 1 and model["head"].weight is model["embed"].weight


def test_a_plan_is_replayed_from_its_file(tmp_path: object) -> None:
    a, b = net(), net()
    receipt = init_(a, "kaiming", example=torch.zeros(3, 30), seed=4, rules={"3": "orthogonal"})
    receipt.plan.save(f"{tmp_path}/plan.json")
    assert init_(b, Plan.load(f"{tmp_path}/plan.json")) == receipt
    assert same(a, b)


@pytest.mark.parametrize(
    ("model", "faults"),
    [
        (
            nn.Sequential(nn.Linear(30, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 8)),
            ["3.weight is (8, 40) in the model and (7, 40)"],
        ),
        (
            nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 7)),
            ["1.weight (40,) is not in the model", "2.bias (7,) is not in the plan"],
        ),
    ],
)
def test_a_plan_of_another_model_lists_what_differs(model: nn.Module, faults: list[str]) -> None:
    before = values(model)
    with pytest.raises(ArgumentError) as caught:
        init_(model, plan(net(), "kaiming"))
    assert all(fault in str(caught.value) for fault in faults)
    assert all(torch.equal(before[k], v) for k, v in values(model).items())


def test_a_plan_of_the_same_names_that_are_tied_in_the_model() -> None:
    model = nn.Sequential(nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False))
    made = plan(model, "lecun")
    model[1].weight = model[0].weight
    with pytest.raises(ArgumentError, match=r"0\.weight = 1\.weight \(5, 5\) is not in the plan"):
        init_(model, made)


def test_a_plan_takes_no_other_arguments() -> None:
    made = plan(net(), "kaiming", seed=3)
    with pytest.raises(ArgumentError, match="activation: got given together with a Plan"):
        init_(net(), made, activation="relu")
    with pytest.raises(ArgumentError, match="its own seed, 3"):
        init_(net(), made, seed=1)
    init_(net(), made, seed=3)


def test_a_model_on_meta_is_told_to_get_memory_first() -> None:
    with torch.device("meta"):
        model = net()
    with pytest.raises(ArgumentError, match=r"0\.weight.*to_empty"):
        init_(model, "kaiming")
    model.to_empty(device="cpu")
    for buffer in model.buffers():
        buffer.zero_()
    other = net()
    init_(model, "kaiming")
    init_(other, "kaiming")
    assert same(model, other)


def test_a_write_that_fails_says_what_was_written_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*args: object, name: str, **options: object) -> object:
        if name == "1.weight":
            raise MemoryError("no room for 16 entries")
        return fill(*args, name=name, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("initwell.apply.write.fill", out_of_memory)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with pytest.raises(ModelError, match=r"1\.weight: could not be written.*Written before it: 0\.weight, 0\.bias\."):
        init_(model, "lecun")


def _in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return nn.Linear(4, 4)


def _with_second_weight(make: Callable[[Tensor], Tensor]) -> nn.Module:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = nn.Parameter(make(first.weight.detach()))
    return nn.Sequential(first, second)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        # An autoencoder whose decoder is the transposed encoder: whichever is written last, the other was not.
        (lambda: _with_second_weight(lambda first: first.t()), r"share a part.*: 0\.weight, 1\.weight\..*None"),
        (lambda: _with_second_weight(lambda first: first[:1].expand(4, 4)), r"one entry at several places: 1\.weight"),
        (_in_inference_mode, r"inference mode.*: weight, bias\."),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_first_write(build: object, message: str) -> None:
    assert callable(build)
    model = build()
    before = values(model)
    with pytest.raises(ArgumentError, match=message):
        init_(model, "lecun")
    assert all(torch.equal(before[name], now) for name, now in values(model).items())


def test_a_transposed_tie_is_written_once_the_other_side_is_left_alone() -> None:
    model = _with_second_weight(lambda first: first.t())
    receipt = init_(model, "lecun", rules={"1.weight": None})
    assert torch.equal(weight(model, "1.weight"), weight(model, "0.weight").t())
    assert [row.sha256 is None for row in receipt.rows] == [False, False, True, False]


def test_columns_of_one_block_of_memory_are_apart() -> None:
    block = torch.zeros(4, 8)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].weight, model[1].weight = nn.Parameter(block[:, :4]), nn.Parameter(block[:, 4:])
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    init_(model, "lecun")
    init_(other, "lecun")
    assert same(model, other)


def test_integer_parameters_are_left_alone() -> None:
    model = net()
    model.register_parameter("count", nn.Parameter(torch.zeros(3, 4, dtype=torch.int32), requires_grad=False))
    (row,) = [r for r in init_(model, "lecun", only="*").rows if r.parameter == "count"]
    assert row.sha256 is None and "int32 is not a floating-point type" in row.reason


def test_the_receipt_prints_cites_and_gives_json() -> None:
    receipt = init_(net(), "kaiming", rules={"3.bias": constant(0.1)})
    data = json.loads(receipt.to_json())
    assert [row["parameter"] for row in data["rows"]] == [row.parameter for row in receipt.rows]
    assert len(data["rows"][0]["sha256"]) == 64
    assert "6 of 6 parameters written" in str(receipt) and "<table>" in receipt._repr_html_()
    assert "he2015delving" in receipt.citation() and receipt.citation().startswith("@")
    assert "orthogonal" not in receipt.citation()
