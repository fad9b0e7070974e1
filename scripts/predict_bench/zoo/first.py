"""The first fifteen: stacks, plain convolutions, a ResNet, a ViT pooled by its mean, and text without a mask."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from predict_bench.zoo.entry import Entry, Zoo, normal, tokens


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

    def __init__(self, width: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def attend(self, x: Tensor) -> Tensor:
        split = (*x.shape[:2], 3, self.heads, x.shape[2] // self.heads)
        q, k, v = self.qkv(x).reshape(split).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        y: Tensor = self.out(mixed.transpose(1, 2).reshape(x.shape))
        return y

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
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
    """Token and position embeddings, blocks, logits at every place."""

    def __init__(self, width: int = 96, depth: int = 3, *, vocabulary: int = 50, causal: bool = False) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(32, width)
        blocks = (Transformer(width, 3, causal=causal) for _ in range(depth))
        self.blocks = nn.Sequential(*blocks, nn.LayerNorm(width))
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, t: Tensor) -> Tensor:
        places = torch.arange(t.shape[1], device=t.device)
        y: Tensor = self.head(self.blocks(self.tokens(t) + self.places(places)))
        return y


def mlp(act: Callable[[], nn.Module], depth: int, width: int = 256, *, norm: bool = False) -> nn.Module:
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


def zoo() -> Zoo:
    """Return name → entry."""
    flat, images = normal(64), normal(3, 32, 32)
    return {
        "mlp tanh 10": Entry(lambda: mlp(nn.Tanh, 10), flat),
        "mlp relu 10": Entry(lambda: mlp(nn.ReLU, 10), flat),
        "mlp relu 30": Entry(lambda: mlp(nn.ReLU, 30), flat),
        "mlp gelu 10": Entry(lambda: mlp(nn.GELU, 10), flat),
        "mlp silu 10": Entry(lambda: mlp(nn.SiLU, 10), flat),
        "mlp sigmoid 10": Entry(lambda: mlp(nn.Sigmoid, 10), flat),
        "mlp relu batchnorm 10": Entry(lambda: mlp(nn.ReLU, 10, norm=True), flat),
        "conv relu, average pool": Entry(lambda: conv(nn.ReLU, nn.AvgPool2d, norm=False), images),
        "conv relu, max pool": Entry(lambda: conv(nn.ReLU, nn.MaxPool2d, norm=False), images),
        "conv tanh, average pool": Entry(lambda: conv(nn.Tanh, nn.AvgPool2d, norm=False), images),
        "conv relu batchnorm, max pool": Entry(lambda: conv(nn.ReLU, nn.MaxPool2d, norm=True), images),
        "resnet": Entry(resnet, images),
        "resnet, eval": Entry(lambda: resnet().eval(), images),
        "vit": Entry(ViT, images),
        "text": Entry(Text, tokens(32, 50)),
    }
