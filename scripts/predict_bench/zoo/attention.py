"""Transformers and mixers of our own."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from predict_bench.zoo.entry import VOCABULARY, Entry, Zoo, normal, tokens
from predict_bench.zoo.first import Text, Transformer
from predict_bench.zoo.images import Dropped


class ClassToken(nn.Module):
    """A ViT with a class token and learned positions; ``rate`` is that of stochastic depth in the last block."""

    def __init__(
        self, width: int, depth: int, heads: int, patch: int, places: int, classes: int, rate: float = 0
    ) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, width, patch, patch), nn.Linear(width, classes)
        self.token, self.places = (
            nn.Parameter(torch.zeros(1, 1, width)),
            nn.Parameter(torch.zeros(1, places + 1, width)),
        )
        nn.init.trunc_normal_(self.token, std=0.02)
        nn.init.trunc_normal_(self.places, std=0.02)
        rates = [rate * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.Sequential(*(Deep(width, heads, r) for r in rates), nn.LayerNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        y: Tensor = self.head(self.blocks(x)[:, 0])
        return y


class Deep(Transformer):
    """A block whose branches are dropped for some samples."""

    def __init__(self, width: int, heads: int, rate: float) -> None:
        super().__init__(width, heads)
        self.drop = Dropped(rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attend(self.norm1(x)))
        y: Tensor = x + self.drop(self.down(F.gelu(self.up(self.norm2(x)))))
        return y


class PostNorm(Transformer):
    """The first Transformer's order: norm after each sum, ReLU inside."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attend(x))
        y: Tensor = self.norm2(x + self.down(F.relu(self.up(x))))
        return y


class MixerBlock(nn.Module):
    """MLPs over positions, then over channels."""

    def __init__(self, width: int, places: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across = nn.Sequential(nn.Linear(places, 48), nn.GELU(), nn.Linear(48, places))
        self.along = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        y: Tensor = x + self.along(self.norm2(x))
        return y


class GatedBlock(nn.Module):
    """gMLP's: half the channels, mixed over positions, gate the other half."""

    def __init__(self, width: int, places: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(2 * width, width)
        self.gate, self.mix = nn.LayerNorm(2 * width), nn.Conv1d(places, places, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept, gate = F.gelu(self.up(self.norm(x))).chunk(2, -1)
        y: Tensor = x + self.down(kept * self.mix(self.gate(gate)))
        return y


class Pooled(nn.Module):
    """Patches, blocks, mean over positions, logits."""

    def __init__(self, blocks: list[nn.Module], width: int) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, width, 4, 4), nn.Linear(width, 10)
        self.blocks = nn.Sequential(*blocks, nn.LayerNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.blocks(self.patch(x).flatten(2).transpose(1, 2)).mean(1))
        return y


def rotated(x: Tensor) -> Tensor:
    """Turn pairs of channels of (batch, heads, places, channels) by an angle that grows with the place."""
    half = x.shape[-1] // 2
    rates = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(x.shape[-2], device=x.device)[:, None] * rates
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


class GatedTransformer(nn.Module):
    """RMSNorm, rotary grouped-query attention written out, and SwiGLU, without biases."""

    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.size, self.heads, self.groups = width // heads, heads, groups
        self.norm1, self.norm2 = nn.RMSNorm(width, 1e-6), nn.RMSNorm(width, 1e-6)
        self.q, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k, self.v = (nn.Linear(width, groups * self.size, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, 3 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(3 * width, width, bias=False)

    def split(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:2], heads, self.size).transpose(1, 2)

    def attend(self, x: Tensor) -> Tensor:
        q, k = rotated(self.split(self.q(x), self.heads)), rotated(self.split(self.k(x), self.groups))
        v = self.split(self.v(x), self.groups)
        k, v = (t.repeat_interleave(self.heads // self.groups, 1) for t in (k, v))
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        scores = (q @ k.transpose(-1, -2) / math.sqrt(self.size)).masked_fill(later, -math.inf)
        y: Tensor = self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))
        return y

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        h = self.norm2(x)
        y: Tensor = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return y


class TiedText(nn.Module):
    """Tokens, blocks, and logits from the embedding's own table."""

    def __init__(self, blocks: list[nn.Module], norm: nn.Module, width: int) -> None:
        super().__init__()
        self.tokens, self.blocks, self.norm = nn.Embedding(VOCABULARY, width), nn.Sequential(*blocks), norm

    def forward(self, t: Tensor) -> Tensor:
        return F.linear(self.norm(self.blocks(self.tokens(t))), self.tokens.weight)


class EncoderDecoder(nn.Module):
    """PyTorch's own nn.Transformer on two sequences."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.net = nn.Transformer(width, 4, 2, 2, 4 * width, dropout=0.1, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        y: Tensor = self.head(self.net(source, target))
        return y


def encoder(width: int, *, first: bool, dropout: float) -> nn.Module:
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout, "gelu", batch_first=True, norm_first=first)
    return nn.Sequential(nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), nn.Linear(width, 10))


def vit_base() -> nn.Module:
    """Return ViT-B/16, as published."""
    return ClassToken(768, 12, 12, 16, 196, 1000)


def zoo() -> Zoo:
    """Return name → entry."""
    images, text = normal(3, 32, 32), tokens(32)
    width = 96
    return {
        "vit, class token": Entry(lambda: ClassToken(width, 4, 3, 4, 64, 10), images),
        "vit, stochastic depth": Entry(lambda: ClassToken(width, 4, 3, 4, 64, 10, 0.2), images),
        "mlp-mixer": Entry(lambda: Pooled([MixerBlock(width, 64) for _ in range(4)], width), images),
        "gmlp": Entry(lambda: Pooled([GatedBlock(width, 64) for _ in range(4)], width), images),
        "gpt": Entry(lambda: Text(width, vocabulary=VOCABULARY, causal=True), text),
        "gpt, 12 layers": Entry(lambda: Text(width, 12, vocabulary=VOCABULARY, causal=True), tokens(16)),
        "post-norm vit": Entry(lambda: Pooled([PostNorm(width, 3) for _ in range(4)], width), images),
        "swiglu rmsnorm": Entry(
            lambda: TiedText([GatedTransformer(width, 4, 2) for _ in range(3)], nn.RMSNorm(width, 1e-6), width), text
        ),
        "gpt, tied head": Entry(
            lambda: TiedText([Transformer(width, 3, causal=True) for _ in range(3)], nn.LayerNorm(width), width), text
        ),
        "torch encoder, post-norm": Entry(lambda: encoder(width, first=False, dropout=0.1), normal(24, width)),
        "torch encoder, pre-norm": Entry(lambda: encoder(width, first=True, dropout=0.0), normal(24, width)),
        "torch transformer": Entry(EncoderDecoder, lambda: (normal(20, width)(), normal(14, width, seed=1)())),
    }
