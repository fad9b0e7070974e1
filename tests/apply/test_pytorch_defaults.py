"""The scheme "pytorch" against modules that PyTorch has just built: the same law, parameter by parameter."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from initwell.apply.write import init_

# Sizes are chosen so that every tensor but the small biases has >= 2000 entries: over DRAWS draws the standard error of
# a std is below 0.5 % for a uniform and 0.8 % for a normal; 3 % is far outside, and a wrong fan is off by >= 10 %.
DRAWS = 8
BUILDS: list[Callable[[], nn.Module]] = [
    lambda: nn.Linear(90, 60),
    lambda: nn.Conv1d(40, 30, 5, groups=5, stride=2),
    lambda: nn.Conv2d(24, 36, 3),
    lambda: nn.ConvTranspose2d(24, 36, 3, stride=2, groups=3),
    lambda: nn.Bilinear(20, 10, 30),
    lambda: nn.Embedding(60, 50, padding_idx=4),
    lambda: nn.EmbeddingBag(60, 50),
    lambda: nn.LSTM(40, 30, num_layers=2, bidirectional=True, proj_size=20),
    lambda: nn.GRUCell(40, 30),
    lambda: nn.RNN(40, 60),
    lambda: nn.MultiheadAttention(48, 4, add_bias_kv=True),
    lambda: nn.MultiheadAttention(48, 4, kdim=60, vdim=70),
    lambda: nn.TransformerEncoderLayer(48, 4, 60),
    lambda: nn.Transformer(48, 4, 1, 1, 60, batch_first=True),
    lambda: nn.Sequential(nn.BatchNorm2d(6), nn.LayerNorm(7), nn.PReLU(3, init=0.1), nn.RMSNorm(5), nn.GroupNorm(2, 4)),
]


def pooled(draw: Callable[[int], nn.Module]) -> dict[str, Tensor]:
    drawn = [dict(draw(i).named_parameters()) for i in range(DRAWS)]
    return {name: torch.stack([d[name].detach() for d in drawn]) for name in drawn[0]}


@pytest.mark.parametrize("build", BUILDS, ids=lambda b: type(b()).__name__)
def test_the_same_spread_and_the_same_bounds(build: Callable[[], nn.Module]) -> None:
    def theirs(i: int) -> nn.Module:
        torch.manual_seed(i)
        return build()

    def ours(i: int) -> nn.Module:
        module = build()
        with torch.no_grad():
            for p in module.parameters():
                p.fill_(7.0)
        assert all(row.sha256 for row in init_(module, "pytorch", seed=i).rows)
        return module

    with torch.random.fork_rng(devices=[]):
        want, got = pooled(theirs), pooled(ours)
    for name, tensor in want.items():
        # A tensor of n entries has its std to 1/sqrt(2n) of a normal: five of those where n is small.
        rel = max(0.03, 5 / (2 * tensor.numel()) ** 0.5)
        assert got[name].std().item() == pytest.approx(tensor.std().item(), rel=rel, abs=1e-12), name
        spread = tensor.abs().max().item()
        assert got[name].abs().max().item() == pytest.approx(spread, rel=0.35), name
        assert abs(got[name].mean().item() - tensor.mean().item()) <= 6 * spread / tensor.numel() ** 0.5, name


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(5, 4))


def test_what_pytorch_has_no_default_for_is_left_alone() -> None:
    (row,) = init_(Custom(), "pytorch").rows
    assert row.sha256 is None and "Custom has no default of PyTorch's" in row.reason


def test_a_stack_of_defaults_shrinks_as_known() -> None:
    # Without biases a default Linear and its ReLU multiply the second moment by 1/6: Var = 1/(3 fan_in), half lost.
    layers = [layer for _ in range(6) for layer in (nn.Linear(500, 500, bias=False), nn.ReLU())]
    model = nn.Sequential(*layers)
    init_(model, "pytorch")
    x = torch.randn(100, 500, generator=torch.Generator().manual_seed(0))
    shrunk = model(x).detach().square().mean().item()
    assert shrunk ** (1 / 6) == pytest.approx(1 / 6, rel=0.05)
