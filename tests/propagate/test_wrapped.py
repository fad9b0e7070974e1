"""Models within wrappers, compiled or parallel: predicted as what they wrap is, with a plan and without."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
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
