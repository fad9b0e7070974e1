"""Every loss of ``torch.nn`` on what a small net says, against targets that are given."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from predict_bench.zoo.entry import BATCH, Entry, normal
from predict_bench.zoo.written import lines

OUT = 24
LENGTH = 20
Loss = Callable[[Any], Tensor]
_FLAT, _IMAGE = (BATCH, OUT), (BATCH, OUT, 8, 8)
# What is written of the loss | what is done to the output first | kind of target
WRITTEN = lines("""
    L1Loss() | y | normal
    L1Loss(reduction="sum") | y | normal
    MSELoss() | y | normal
    HuberLoss() | y | normal
    SmoothL1Loss(beta=0.5) | y | normal
    CrossEntropyLoss() | y | class
    CrossEntropyLoss(label_smoothing=0.1) | y | class
    CrossEntropyLoss(reduction="sum") | y | class
    CrossEntropyLoss(torch.linspace(0.5, 2, 24)) | y | class
    CrossEntropyLoss() | y | distribution
    NLLLoss() | F.log_softmax(y, 1) | class
    KLDivLoss(reduction="batchmean") | F.log_softmax(y, 1) | distribution
    BCELoss() | y.sigmoid() | probability
    BCEWithLogitsLoss() | y | probability
    BCEWithLogitsLoss(pos_weight=torch.tensor(3.0)) | y | probability
    PoissonNLLLoss() | y | count
    PoissonNLLLoss(log_input=False) | y.exp() | count
    HingeEmbeddingLoss() | y | sign
    SoftMarginLoss() | y | sign
""")
# Of one label a sample, or of rows of them.
OF_ROWS = lines("""
    MultiLabelMarginLoss() | y | labels
    MultiLabelSoftMarginLoss() | y | probability
    MultiMarginLoss() | y | class
    MultiMarginLoss(p=2) | y | class
""")


@cache
def given(kind: str, shape: tuple[int, ...]) -> Tensor:
    """Return targets of a kind, the same every time."""
    drawn = torch.Generator().manual_seed(1)
    many = shape[:1] if kind == "row sign" else shape
    if kind == "class":
        return torch.randint(0, OUT, (shape[0], *shape[2:]), generator=drawn)
    if kind == "probability":
        return torch.rand(*shape, generator=drawn)
    if kind == "distribution":
        return torch.randn(*shape, generator=drawn).softmax(1)
    if kind in ("sign", "row sign"):
        return torch.randint(0, 2, many, generator=drawn) * 2.0 - 1
    if kind == "count":
        return torch.randint(0, 5, shape, generator=drawn).float()
    if kind == "labels":
        chosen = torch.stack([torch.randperm(shape[1], generator=drawn) for _ in range(shape[0])])
        return chosen.masked_fill(torch.arange(shape[1]) > 2, -1)
    return torch.randn(*shape, generator=drawn)


class Several(nn.Module):
    """Heads beside one another behind one layer."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.body, self.heads = nn.Linear(64, 96), nn.ModuleList(nn.Linear(96, OUT) for _ in range(heads))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = F.relu(self.body(x))
        return tuple(head(h) for head in self.heads)


class Adaptive(nn.Module):
    """A softmax over clusters of classes, whose targets are given to it."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.softmax = nn.Linear(64, 96), nn.AdaptiveLogSoftmaxWithLoss(96, OUT, [8, 16])

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.softmax(F.relu(self.body(x)), given("class", _FLAT)).output
        return found


def _of(spec: str, change: str, kind: str, shape: tuple[int, ...]) -> Loss:
    names = {"nn": nn, "torch": torch, "F": F}
    loss: nn.Module = eval(f"nn.{spec}", names)
    first: Callable[[Tensor], Tensor] = eval(f"lambda y: {change}", names)
    target = given(kind, shape)

    def found(y: Tensor) -> Tensor:
        value: Tensor = loss(first(y), target)
        return value

    return found


def _of_several() -> dict[str, tuple[int, Loss]]:
    signs, target = given("row sign", _FLAT), given("normal", _FLAT)

    def apart(x: Tensor, y: Tensor) -> Tensor:
        return (x - y).square().sum(1)

    by_square = nn.TripletMarginWithDistanceLoss(distance_function=apart)
    return {
        "MarginRankingLoss(0.5)": (2, lambda y: nn.MarginRankingLoss(0.5)(y[0][:, 0], y[1][:, 0], signs)),
        "CosineEmbeddingLoss()": (2, lambda y: nn.CosineEmbeddingLoss()(*y, signs)),
        "TripletMarginLoss()": (3, lambda y: nn.TripletMarginLoss()(*y)),
        "TripletMarginWithDistanceLoss()": (3, lambda y: by_square(*y)),
        "GaussianNLLLoss()": (2, lambda y: nn.GaussianNLLLoss()(y[0], target, F.softplus(y[1]))),
    }


def _of_sequences() -> tuple[Entry, Loss]:
    labels = torch.randint(1, OUT, (BATCH, 6), generator=torch.Generator().manual_seed(2))
    lengths, counts = torch.full((BATCH,), LENGTH), torch.full((BATCH,), 6)
    entry = Entry(lambda: nn.Sequential(nn.Linear(32, 96), nn.ReLU(), nn.Linear(96, OUT)), normal(LENGTH, 32))
    return entry, lambda y: nn.CTCLoss()(y.log_softmax(-1).transpose(0, 1), labels, lengths, counts)


def zoo() -> dict[str, tuple[Entry, Loss]]:
    """Return a net and a loss of what it says, by what is written of the loss."""
    found: dict[str, tuple[Entry, Loss]] = {}
    flat = Entry(lambda: nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, OUT)), normal(64))
    layers = lambda: nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, OUT, 1))  # noqa: E731
    image = Entry(layers, normal(3, 8, 8))
    for line in WRITTEN + OF_ROWS:
        spec, change, kind = (part.strip() for part in line.split("|"))
        found[f"{spec} of {kind}"] = flat, _of(spec, change, kind, _FLAT)
        if line in WRITTEN:
            found[f"{spec} of {kind}, image"] = image, _of(spec, change, kind, _IMAGE)
    for spec, (heads, loss) in _of_several().items():
        found[spec] = Entry(partial(Several, heads), normal(64)), loss
    found["CTCLoss()"] = _of_sequences()
    found["AdaptiveLogSoftmaxWithLoss()"] = Entry(Adaptive, normal(64)), lambda y: -y.mean()
    return found
