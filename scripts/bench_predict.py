"""How close `predict` comes to measurement: errors of rms over weight seeds, forward and backward, model by model."""

import argparse
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import initwell as iw
from initwell.measurement.measurement import Measurement
from initwell.records import Row, TableRecord

BATCH = 16


class Block(nn.Module):
    """A ResNet block, with BatchNorm or without."""

    def __init__(self, width: int, out: int, stride: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, out, 3, stride, 1, bias=False), norm(out)
        self.conv2, self.norm2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), norm(out)
        same = stride == 1 and width == out
        self.skip = nn.Identity() if same else nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), norm(out))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(h)) + self.skip(x))


class Transformer(nn.Module):
    """A pre-norm block of attention and a GELU MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        split = (*x.shape[:2], 3, self.heads, x.shape[2] // self.heads)
        q, k, v = self.qkv(self.norm1(x)).reshape(split).permute(2, 0, 3, 1, 4).unbind(0)
        a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + self.out(a)
        y: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return y


class ViT(nn.Module):
    """Patches, blocks, mean over positions."""

    def __init__(self, width: int = 96, depth: int = 4) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, width, 4, 4), nn.Linear(width, 10)
        self.blocks = nn.Sequential(*(Transformer(width, 3) for _ in range(depth)), nn.LayerNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.blocks(self.patch(x).flatten(2).transpose(1, 2)).mean(1))
        return y


class Text(nn.Module):
    """Token and position embeddings, blocks without a causal mask, logits at every place."""

    def __init__(self, width: int = 96, depth: int = 3) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(50, width), nn.Embedding(32, width)
        self.blocks = nn.Sequential(*(Transformer(width, 3) for _ in range(depth)), nn.LayerNorm(width))
        self.head = nn.Linear(width, 50, bias=False)

    def forward(self, t: Tensor) -> Tensor:
        places = torch.arange(t.shape[1], device=t.device)
        y: Tensor = self.head(self.blocks(self.tokens(t) + self.places(places)))
        return y


def mlp(act: type[nn.Module], depth: int, width: int = 256, *, norm: bool = False) -> nn.Module:
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(64 if i == 0 else width, width), *([nn.BatchNorm1d(width)] if norm else []), act()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def conv(act: type[nn.Module], pool: type[nn.Module], *, norm: bool) -> nn.Module:
    layers: list[nn.Module] = []
    width = 3
    for out in (32, 64, 64):
        for _ in range(2):
            layers += [nn.Conv2d(width, out, 3, padding=1), *([nn.BatchNorm2d(out)] if norm else []), act()]
            width = out
        layers += [pool(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 128), act(), nn.Linear(128, 10))


def resnet(norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 1, 1, bias=False), norm(32), nn.ReLU()]
    width = 32
    for stride, out in ((1, 32), (2, 64), (2, 128)):
        layers += [Block(width, out, stride, norm), Block(out, out, 1, norm)]
        width = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def models() -> Mapping[str, tuple[Callable[[], nn.Module], Tensor]]:
    """Return name → (builder, batch)."""
    generator = torch.Generator().manual_seed(0)
    flat, images = (torch.randn(BATCH, *s, generator=generator) for s in ((64,), (3, 32, 32)))
    tokens = torch.randint(0, 50, (8, 32), generator=generator)
    return {
        "mlp tanh 10": (lambda: mlp(nn.Tanh, 10), flat),
        "mlp relu 10": (lambda: mlp(nn.ReLU, 10), flat),
        "mlp relu 30": (lambda: mlp(nn.ReLU, 30), flat),
        "mlp gelu 10": (lambda: mlp(nn.GELU, 10), flat),
        "mlp silu 10": (lambda: mlp(nn.SiLU, 10), flat),
        "mlp sigmoid 10": (lambda: mlp(nn.Sigmoid, 10), flat),
        "mlp relu batchnorm 10": (lambda: mlp(nn.ReLU, 10, norm=True), flat),
        "conv relu, average pool": (lambda: conv(nn.ReLU, nn.AvgPool2d, norm=False), images),
        "conv relu, max pool": (lambda: conv(nn.ReLU, nn.MaxPool2d, norm=False), images),
        "conv tanh, average pool": (lambda: conv(nn.Tanh, nn.AvgPool2d, norm=False), images),
        "conv relu batchnorm, max pool": (lambda: conv(nn.ReLU, nn.MaxPool2d, norm=True), images),
        "resnet": (resnet, images),
        "resnet, eval": (lambda: resnet().eval(), images),
        "vit": (ViT, images),
        "text": (Text, tokens),
    }


@dataclass(frozen=True)
class Errors(TableRecord):
    """The table."""

    rows: tuple[Row, ...]

    def table_title(self) -> str:
        return "predict against measure: |predicted/measured − 1| of rms, in %, beyond two standard errors (raw)"

    def table_columns(self) -> tuple[str, ...]:
        return ("model", "start", "forward p50/p90/p99", "backward p50/p90/p99", "beyond", "values", "seconds", "worst")

    def table_rows(self) -> tuple[Row, ...]:
        return self.rows


Pair = tuple[float, float, str]


def compared(
    build: Callable[[], nn.Module], batch: Tensor, scheme: str, seeds: int
) -> tuple[dict[str, list[Pair]], float]:
    """Return (counted error, raw error, place) of every value, by direction, and the seconds that predict took."""
    model = build()
    plan = iw.plan(model, scheme)
    started = time.perf_counter()
    predicted = iw.predict(model, batch, plan=plan)
    seconds = time.perf_counter() - started
    runs: list[Measurement] = []
    for seed in range(seeds):
        iw.init_(model, scheme, seed=seed)
        runs.append(iw.measure(model, batch, seed=seed))
    found: dict[str, list[Pair]] = {"forward_rms": [], "gradient_rms": []}
    for i, row in enumerate(predicted.rows):
        for key, pairs in found.items():
            if runs[0].rows[i][key]:
                squares = torch.tensor([run.rows[i][key] for run in runs], dtype=torch.float64).square()
                spread = float(squares.std() / math.sqrt(seeds) / (2 * squares.mean()))
                raw = math.inf if row[key] is None else abs(row[key] / float(squares.mean().sqrt()) - 1)
                pairs.append((max(0.0, raw - 2 * spread), raw, f"{row['path']} {row['op']} {key.split('_')[0]}"))
    return found, seconds


def percent(pairs: list[Pair]) -> str:
    """Write the percentiles of counted and raw errors."""
    counted, raw = (sorted(100 * p[k] for p in pairs) for k in (0, 1))
    places = [min(len(pairs) - 1, int(share * len(pairs))) for share in (0.5, 0.9, 0.99)]
    return "/".join(f"{counted[i]:.1f}" for i in places) + " (" + "/".join(f"{raw[i]:.1f}" for i in places) + ")"


def row(model: str, start: str, found: Mapping[str, list[Pair]], seconds: float) -> Row:
    """Return one row of the table."""
    every = [pair for pairs in found.values() for pair in pairs]
    return {
        "model": model,
        "start": start,
        "forward p50/p90/p99": percent(found["forward_rms"]),
        "backward p50/p90/p99": percent(found["gradient_rms"]),
        "beyond": sum(pair[0] > 0 for pair in every),
        "values": len(every),
        "seconds": seconds,
        "worst": max(every)[2],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--schemes", default="pytorch,kaiming,xavier")
    parser.add_argument("--only", default="", help="models whose name contains this")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    together: dict[str, list[Pair]] = {"forward_rms": [], "gradient_rms": []}
    for name, (build, batch) in models().items():
        for scheme in chosen.schemes.split(",") if chosen.only in name else ():
            found, seconds = compared(build, batch, scheme, chosen.seeds)
            rows.append(row(name, scheme, found, seconds))
            for key, pairs in found.items():
                together[key] += pairs
    rows.append(row("all", "", together, sum(r["seconds"] for r in rows)))
    print(Errors(tuple(rows)))


if __name__ == "__main__":
    main()
