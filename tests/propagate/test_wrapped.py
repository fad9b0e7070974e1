"""Models within wrappers, compiled or parallel: predicted as what they wrap is, with a plan and without."""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn

import initwell as iw
from initwell.errors import ArgumentError


def net() -> nn.Module:
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), normed, nn.Tanh(), nn.Linear(16, 4))


def batch() -> Tensor:
    return torch.randn(32, 8, generator=torch.Generator().manual_seed(0))


def compiled(model: nn.Module) -> nn.Module:
    wrapped = torch.compile(model, backend="eager")
    assert isinstance(wrapped, nn.Module)
    return wrapped


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel], ids=["compiled", "parallel"])
@pytest.mark.parametrize("scheme", ["", "kaiming"], ids=["as it is", "planned"])
def test_a_wrapped_model_is_predicted_as_what_it_wraps(wrap: Callable[[nn.Module], nn.Module], scheme: str) -> None:
    plain, wrapped = net(), wrap(net())
    whole = iw.predict(plain, batch(), plan=iw.plan(plain, scheme) if scheme else None)
    for planned in (wrapped, plain):
        found = iw.predict(wrapped, batch(), plan=iw.plan(planned, scheme) if scheme else None)
        for key in ("op", "forward_rms", "gradient_rms", "overlap", "fidelity"):
            assert [row[key] for row in found.rows] == [row[key] for row in whole.rows]
        for key in ("weight_rms", "gradient_rms"):
            assert [row[key] for row in found.parameters] == [row[key] for row in whole.parameters]
    frozen = wrap(net().requires_grad_(False))
    assert iw.predict(frozen, batch()).rows[0]["gradient_rms"] == iw.predict(net(), batch()).rows[0]["gradient_rms"]


def test_a_compiled_model_on_meta_has_its_running_statistics() -> None:
    with torch.device("meta"):
        model = compiled(nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)).eval())
    found = iw.predict(model, batch())
    assert all(row["forward_rms"] for row in found.rows)
    assert not any("Buffers without numbers" in note for note in found.notes)


def test_a_plan_of_another_shape_is_refused_of_a_wrapped_model_too() -> None:
    plan = iw.plan(nn.Sequential(nn.Linear(8, 16)), "kaiming")
    with pytest.raises(ArgumentError, match=r"plan: got shape \(16, 8\) for 0.weight, which has \(4, 8\)"):
        iw.predict(nn.DataParallel(nn.Sequential(nn.Linear(8, 4))), batch(), plan=plan)


def test_threads_predict_one_model_alike() -> None:
    model = net()
    whole = [row["forward_rms"] for row in iw.predict(model, batch()).rows]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: iw.predict(model, batch()), range(12)))
    assert [[row["forward_rms"] for row in f.rows] for f in found] == [whole] * 12


def test_a_scripted_model_is_predicted_without_its_paths() -> None:
    plain = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch's own, of scripts
        scripted = torch.jit.script(plain)
    found, whole = iw.predict(scripted, batch()), iw.predict(plain, batch())
    assert [row["forward_rms"] for row in found.rows] == [row["forward_rms"] for row in whole.rows]


def test_a_model_made_in_inference_mode_is_predicted() -> None:
    with torch.inference_mode():
        model, x = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU()), batch().clone()
    found = iw.predict(model, x)
    assert found.rows[0]["forward_rms"] > 0 and found.rows[0]["gradient_rms"] > 0
    assert all(p.requires_grad and p.is_inference() for p in model.parameters())


def test_a_pruned_weight_has_the_size_of_what_is_left() -> None:
    # The largest half of uniform numbers has 7/8 of their squares: 1.32 times the size that a blind mask leaves.
    layer = nn.Linear(64, 64)
    model = nn.Sequential(layer)
    nn.utils.prune.l1_unstructured(layer, "weight", amount=0.5)  # type: ignore[no-untyped-call]
    for trained in (False, True):
        row = iw.predict(model.requires_grad_(trained), batch().repeat(1, 8)).rows[0]
        assert row["op"] == "aten.mul"
        assert row["forward_rms"] == pytest.approx(float(layer.weight.detach().square().mean().sqrt()), rel=1e-6)
    planned = iw.predict(model, batch().repeat(1, 8), plan=iw.plan(model, iw.normal(std=0.1))).rows[0]
    assert planned["forward_rms"] == pytest.approx(0.1 * 0.5**0.5, rel=1e-3)


def test_a_hook_on_a_parameter_changes_its_gradient() -> None:
    seen: list[Tensor] = []

    def threefold(gradient: Tensor) -> Tensor:
        seen.append(gradient)
        return gradient * 3

    layer = nn.Linear(8, 16)
    model = nn.Sequential(layer)
    once = iw.predict(model, batch()).parameters[0]["gradient_rms"]
    layer.weight.register_hook(threefold)  # type: ignore[no-untyped-call]
    assert iw.predict(model, batch()).parameters[0]["gradient_rms"] == pytest.approx(3 * once)
    hooks = layer.weight._backward_hooks or {}
    assert seen and list(hooks.values()) == [threefold]


def test_tied_parameters_have_one_row_as_in_measure_and_are_named() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(50, 32), nn.Linear(32, 50, bias=False)
            self.head.weight = self.table.weight

        def forward(self, tokens: Tensor) -> Tensor:
            y: Tensor = self.head(self.table(tokens))
            return y

    model, tokens = Tied(), torch.arange(24).reshape(4, 6)
    found, seen = iw.predict(model, tokens), iw.measure(model, tokens)
    assert [row["parameter"] for row in found.parameters] == [row["parameter"] for row in seen.parameters]
    tied = "Tied, one parameter under several names: head.weight, table.weight."
    assert tied in found.notes and tied in seen.notes
