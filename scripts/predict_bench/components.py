"""Single components with Gaussian input, against the figures that DeepScaleLM published for its own formulas.

Errors are of second moments, as there, over a range of sizes and of input variances; attention also over correlations
between positions. Each is measured over some draws of weights, input and starting gradient.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import initwell as iw
from initwell.records import Row
from predict_bench.compare import rms_over
from predict_bench.tables import Table, percentiles, reaches, written

DRAWS = 8
PUBLISHED: Mapping[str, tuple[float, float, float]] = {
    "FFN forward": (0.4, 1.4, 2.8),
    "FFN backward": (0.2, 1.0, 2.2),
    "ReLU forward": (0.5, 1.9, 3.4),
    "GELU forward": (0.2, 0.6, 1.3),
    "LayerNorm backward": (0.4, 1.5, 3.2),
    "softmax forward": (0.2, 0.9, 4.0),
    "attention forward": (1.4, 4.1, 7.8),
    "attention backward": (2.2, 13.3, 44.5),
}


class Alone(nn.Module):
    """A function without weights; its one parameter is not used."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.unused = function, nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Attention(nn.Module):
    """Multi-head self-attention without biases."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        split = (n, length, self.heads, width // self.heads)
        q, k, v = (layer(x).view(split).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        y: Tensor = self.out(mixed.transpose(1, 2).reshape(x.shape))
        return y


def softmax(x: Tensor) -> Tensor:
    return x.softmax(-1)


def ffn(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width), nn.Dropout(0.1))


def gaussian(shape: Sequence[int], variance: float, correlation: float = 0.0, seed: int = 0) -> Tensor:
    """Draw N(0, variance) numbers of shape (samples, positions, channels); positions correlate.

    Their own mean is 0 and their mean square the variance, so that batches of other seeds differ in nothing that is
    predicted from.
    """
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(*shape, generator=generator)
    common = torch.randn(shape[0], 1, shape[2], generator=generator)
    x = math.sqrt(1 - correlation) * own + math.sqrt(correlation) * common
    x = x - x.mean()
    return x * math.sqrt(variance) / x.square().mean().sqrt()


@dataclass(frozen=True)
class Case:
    """One component at one size.

    Attributes:
        name: of the component.
        build: makes it.
        batch: its input, for each seed; the same where it has weights, which are drawn anew instead.
        start: scheme of its weights.
    """

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[int], Tensor]
    start: str


def cases() -> Iterator[Case]:
    """Yield every component at every size."""
    starts = ("kaiming", "xavier", "pytorch")
    for i, (width, length) in enumerate(((64, 48), (128, 64), (192, 32), (256, 96), (384, 16), (512, 24))):
        for variance in (0.25, 1.0, 4.0):
            yield from _of_size((8, length, width), variance, starts[i % 3])


def _of_size(shape: tuple[int, int, int], variance: float, start: str) -> Iterator[Case]:
    def fixed(correlation: float) -> Callable[[int], Tensor]:
        return lambda seed: gaussian(shape, variance, correlation)

    def anew(seed: int) -> Tensor:
        return gaussian(shape, variance, 0.0, seed)

    width = shape[2]
    yield Case("FFN", lambda: ffn(width), fixed(0.0), start)
    yield Case("ReLU", lambda: Alone(F.relu), anew, start)
    yield Case("GELU", lambda: Alone(F.gelu), anew, start)
    yield Case("LayerNorm", lambda: nn.LayerNorm(width), anew, start)
    yield Case("softmax", lambda: Alone(softmax), anew, start)
    for correlation in (0.0, 0.3, 0.7):
        for causal in (False, True):
            yield Case("attention", _attention(width, width // 32, causal=causal), fixed(correlation), start)


def _attention(width: int, heads: int, *, causal: bool) -> Callable[[], nn.Module]:
    return lambda: Attention(width, heads, causal=causal)


Pair = tuple[float, float]


def errors(case: Case) -> dict[str, Pair]:
    """Return the errors of the output's second moment and of the input gradient's, beyond two standard errors and raw.

    Both are nan where the moment is unknown.
    """
    torch.manual_seed(0)
    model = case.build()
    predicted = iw.predict(model, case.batch(0), plan=iw.plan(model, case.start))
    forward, backward = list[float](), list[float]()
    for seed in range(DRAWS):
        iw.init_(model, case.start, seed=seed)
        found = iw.measure(model, case.batch(seed), seed=seed)
        forward.append(found.rows[-1]["forward_rms"])
        backward.append(found.inputs[0]["gradient_rms"])
    return {
        f"{case.name} forward": error_of_square(predicted.rows[-1]["forward_rms"], forward),
        f"{case.name} backward": error_of_square(predicted.inputs[0]["gradient_rms"], backward),
    }


def error_of_square(guess: float | None, sizes: Sequence[float]) -> Pair:
    """Return |guess²/mean of sizes² − 1|, beyond two standard errors of that mean and raw; nan for no guess.

    >>> error_of_square(1.1, [1.0, 1.0])
    (0.2100000000000002, 0.2100000000000002)
    """
    if guess is None:
        return math.nan, math.nan
    size, spread = rms_over(sizes)
    raw = abs((guess / size) ** 2 - 1)
    # The relative error of a square is twice that of its root.
    return max(0.0, raw - 4 * spread), raw


def table() -> Table:
    """Run every case; one row a component and direction."""
    groups: dict[str, list[Pair]] = {}
    for case in cases():
        for name, pair in errors(case).items():
            groups.setdefault(name, []).append(pair)
    columns = ("component", "p50", "p90", "p99", "published", "reached", "raw", "unknown", "n")
    title = "Components with Gaussian input: errors of second moments, in %, beyond two standard errors"
    return Table(title, columns, tuple(_row(name, found) for name, found in groups.items()))


def _row(name: str, found: Sequence[Pair]) -> Row:
    places, bar = percentiles(counted for counted, _ in found), PUBLISHED.get(name)
    return {
        "component": name,
        **{key: f"{p:.2f}" for key, p in zip(("p50", "p90", "p99"), places, strict=True)},
        "published": None if bar is None else "/".join(f"{b:g}" for b in bar),
        "reached": None if bar is None else reaches(places, bar),
        "raw": written(raw for _, raw in found),
        "unknown": sum(math.isnan(raw) for _, raw in found),
        "n": len(found),
    }
