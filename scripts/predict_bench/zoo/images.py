"""Convolutional families, written plainly: VGG to EfficientNet, U-Net and decoders."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from predict_bench.zoo.entry import Entry, Zoo, normal
from predict_bench.zoo.first import resnet
from predict_bench.zoo.stacks import Residual

Norm = Callable[[int], nn.Module]


def group_norm(width: int) -> nn.Module:
    return nn.GroupNorm(8, width)


def unit(a: int, b: int, size: int, act: nn.Module | None, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return convolution, BatchNorm and an activation."""
    conv = nn.Conv2d(a, b, size, stride, size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(b), *([] if act is None else [act])]


def pooled(width: int) -> list[nn.Module]:
    """Return global average pooling and ten logits."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)]


def vgg(*, norm: bool) -> nn.Module:
    layers: list[nn.Module] = []
    width = 3
    for out, depth in ((32, 1), (64, 1), (96, 2), (128, 2)):
        for _ in range(depth):
            layers += [
                nn.Conv2d(width, out, 3, padding=1),
                *([nn.BatchNorm2d(out)] if norm else []),
                nn.ReLU(inplace=True),
            ]
            width = out
        layers += [nn.MaxPool2d(2, 2)]
    head = (nn.Linear(512, 128), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(128, 128), nn.ReLU(inplace=True))
    return nn.Sequential(*layers, nn.Flatten(), *head, nn.Dropout(), nn.Linear(128, 10))


class Bottleneck(nn.Module):
    """ResNet's and ResNeXt's: 1×1, 3×3, 1×1, and ReLU after the sum."""

    def __init__(self, width: int, inner: int, out: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *unit(width, inner, 1, nn.ReLU(inplace=True)),
            *unit(inner, inner, 3, nn.ReLU(inplace=True), stride=stride, groups=groups),
            *unit(inner, out, 1, None),
        )
        same = width == out and stride == 1
        self.skip = nn.Identity() if same else nn.Sequential(*unit(width, out, 1, None, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.skip(x), inplace=True)


def bottlenecks(stages: Sequence[tuple[int, int]], stem: Sequence[nn.Module], start: int, groups: int = 1) -> nn.Module:
    """Return a ResNet of bottlenecks: ``stages`` are (inner width, blocks); its outputs are four times as wide."""
    layers, width = [*stem], start
    for i, (inner, depth) in enumerate(stages):
        for j in range(depth):
            layers += [Bottleneck(width, inner, 4 * inner, 2 if i and j == 0 else 1, groups)]
            width = 4 * inner
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000 if start == 64 else 10))


def resnet50() -> nn.Module:
    """Return ResNet-50, as published."""
    stem = [*unit(3, 64, 7, nn.ReLU(inplace=True), stride=2), nn.MaxPool2d(3, 2, 1)]
    return bottlenecks(((64, 3), (128, 4), (256, 6), (512, 3)), stem, 64)


class PreActivation(nn.Module):
    """Norm and ReLU before each convolution; nothing after the sum."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(out), nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.skip = None if stride == 1 and width == out else nn.Conv2d(width, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(x))
        y: Tensor = self.conv2(F.relu(self.norm2(self.conv1(h)))) + (x if self.skip is None else self.skip(h))
        return y


def preactivation() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 1, 1, bias=False)]
    width = 32
    for stride, out in ((1, 32), (2, 64), (2, 128)):
        layers += [PreActivation(width, out, stride), PreActivation(out, out, 1), PreActivation(out, out, 1)]
        width = out
    return nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(), *pooled(width))


class Dense(nn.Module):
    """Its input, with new channels after it."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.make = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 4 * growth, 1, bias=False),
            *(nn.BatchNorm2d(4 * growth), nn.ReLU(), nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.make(x)], 1)


def densenet(growth: int = 16) -> nn.Module:
    width = 2 * growth
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False)]
    for last in (False, False, True):
        for _ in range(4):
            layers.append(Dense(width, growth))
            width += growth
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        if not last:
            layers += [nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
            width //= 2
    return nn.Sequential(*layers, *pooled(width))


class Squeeze(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self, width: int, inner: int, act: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.down, self.up, self.act, self.gate = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1), act, gate

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x * self.gate(self.up(self.act(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return y


class Dropped(nn.Module):
    """Stochastic depth: a branch that each sample skips with a probability."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        return x * x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep).div_(keep)


class Inverted(nn.Module):
    """MobileNet's inverted residual: wide, depthwise, narrow, with squeeze-excitation or without."""

    def __init__(
        self, width: int, out: int, stride: int, act: type[nn.Module], squeeze: nn.Module | None, rate: float = 0
    ) -> None:
        super().__init__()
        inner = 4 * width
        self.same = stride == 1 and width == out
        self.branch = nn.Sequential(
            *unit(width, inner, 1, act()),
            *unit(inner, inner, 3, act(), stride=stride, groups=inner),
            *([] if squeeze is None else [squeeze]),
            *unit(inner, out, 1, None),
            *([Dropped(rate)] if rate and self.same else []),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.branch(x)
        return x + y if self.same else y


PLAN = ((16, 1), (24, 2), (24, 1), (40, 2), (40, 1), (40, 1))


def mobilenet(act: type[nn.Module], gate: type[nn.Module] | None, rate: float = 0) -> nn.Module:
    layers, width = unit(3, 16, 3, act()), 16
    for out, stride in PLAN:
        inner = 4 * width
        inside = nn.ReLU() if gate is nn.Hardsigmoid else nn.SiLU()
        squeeze = None if gate is None else Squeeze(inner, max(8, inner // 4), inside, gate())
        layers += [Inverted(width, out, stride, act, squeeze, rate)]
        width = out
    return nn.Sequential(*layers, *unit(width, 160, 1, act()), *pooled(160))


class ChannelsLast(nn.Module):
    """LayerNorm over the channels of an image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return y


class ConvNeXtBlock(nn.Module):
    """Depthwise 7×7, LayerNorm, a GELU MLP over channels, and a layer scale."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.mix, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), scale))

    def forward(self, x: Tensor) -> Tensor:
        h = self.down(F.gelu(self.up(self.norm(self.mix(x).permute(0, 2, 3, 1)))))
        y: Tensor = x + (self.scale * h).permute(0, 3, 1, 2)
        return y


def convnext(scale: float) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 4, 4), ChannelsLast(32)]
    layers += [ConvNeXtBlock(32, scale), ConvNeXtBlock(32, scale)]
    layers += [ChannelsLast(32), nn.Conv2d(32, 64, 2, 2), ConvNeXtBlock(64, scale), ConvNeXtBlock(64, scale)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 10))


class UNet(nn.Module):
    """Down by max pooling, up by upsampling or transposed convolution, joined by concatenation."""

    def __init__(self, width: int = 24, *, transposed: bool) -> None:
        super().__init__()
        a, b, c = width, 2 * width, 4 * width

        def twice(i: int, o: int) -> nn.Module:
            return nn.Sequential(*unit(i, o, 3, nn.ReLU()), *unit(o, o, 3, nn.ReLU()))

        def up(i: int, o: int) -> nn.Module:
            bilinear = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
            return nn.ConvTranspose2d(i, o, 2, 2) if transposed else nn.Sequential(bilinear, nn.Conv2d(i, o, 1))

        self.down1, self.down2, self.bottom = twice(3, a), twice(a, b), twice(b, c)
        self.up2, self.join2, self.up1, self.join1 = up(c, b), twice(2 * b, b), up(b, a), twice(2 * a, a)
        self.head = nn.Conv2d(a, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        h = self.up2(self.bottom(F.max_pool2d(second, 2)))
        h = self.up1(self.join2(torch.cat([second, h], 1)))
        y: Tensor = self.head(self.join1(torch.cat([first, h], 1)))
        return y


class Inception(nn.Module):
    """Four branches side by side."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.one = nn.Sequential(*unit(width, out, 1, nn.ReLU()))
        self.three = nn.Sequential(*unit(width, out, 1, nn.ReLU()), *unit(out, out, 3, nn.ReLU()))
        self.five = nn.Sequential(*unit(width, out, 1, nn.ReLU()), *unit(out, out, 5, nn.ReLU()))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), *unit(width, out, 1, nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


def inception() -> nn.Module:
    stem = [*unit(3, 32, 3, nn.ReLU()), nn.MaxPool2d(2)]
    return nn.Sequential(*stem, Inception(32, 16), Inception(64, 16), nn.MaxPool2d(2), Inception(64, 24), *pooled(96))


def decoder() -> nn.Module:
    """Return a generator as in DCGAN: transposed convolutions from a vector to an image."""
    layers: list[nn.Module] = [nn.Linear(64, 128 * 16), nn.Unflatten(1, (128, 4, 4)), nn.BatchNorm2d(128), nn.ReLU()]
    for a, b in ((128, 64), (64, 32)):
        layers += [nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(32, 3, 4, 2, 1), nn.Tanh())


def discriminator() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 4, 2, 1), nn.LeakyReLU(0.2)]
    for a, b in ((32, 64), (64, 128)):
        layers += [nn.Conv2d(a, b, 4, 2, 1), nn.InstanceNorm2d(b), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(128, 1, 4))


def prelu() -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in ((3, 32), (32, 64), (64, 96)):
        layers += [nn.Conv2d(a, b, 3, 1, 1), nn.PReLU(b), nn.Conv2d(b, b, 3, 2, 1), nn.PReLU(b)]
    return nn.Sequential(*layers, *pooled(96))


def volumes() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv3d(1, 16, 3, padding=1), nn.BatchNorm3d(16), nn.ReLU(), nn.MaxPool3d(2)]
    layers += [nn.Conv3d(16, 32, 3, padding=1), nn.BatchNorm3d(32), nn.ReLU(), nn.AdaptiveAvgPool3d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 10))


def convmixer(width: int = 64) -> nn.Module:
    def block() -> list[nn.Module]:
        mix = Residual(nn.Conv2d(width, width, 5, groups=width, padding=2), nn.GELU(), nn.BatchNorm2d(width))
        return [mix, nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width)]

    stem = [nn.Conv2d(3, width, 4, 4), nn.GELU(), nn.BatchNorm2d(width)]
    return nn.Sequential(*stem, *(part for _ in range(3) for part in block()), *pooled(width))


def zoo() -> Zoo:
    """Return name → entry."""
    images = normal(3, 32, 32)
    small = bottlenecks
    return {
        "vgg": Entry(lambda: vgg(norm=False), images),
        "vgg batchnorm": Entry(lambda: vgg(norm=True), images),
        "resnet bottleneck": Entry(lambda: small(((16, 2), (32, 2), (48, 2)), unit(3, 32, 3, nn.ReLU()), 32), images),
        "resnext": Entry(lambda: small(((16, 2), (32, 2), (48, 2)), unit(3, 32, 3, nn.ReLU()), 32, 4), images),
        "resnet preactivation": Entry(preactivation, images),
        "resnet groupnorm": Entry(lambda: resnet(group_norm), images),
        "resnet without norm": Entry(lambda: resnet(lambda width: nn.Identity()), images),
        "densenet": Entry(densenet, images),
        "mobilenet v2": Entry(lambda: mobilenet(nn.ReLU6, None), images),
        "mobilenet v3": Entry(lambda: mobilenet(nn.Hardswish, nn.Hardsigmoid), images),
        "efficientnet": Entry(lambda: mobilenet(nn.SiLU, nn.Sigmoid, 0.1), images),
        "efficientnet, eval": Entry(lambda: mobilenet(nn.SiLU, nn.Sigmoid, 0.1).eval(), images),
        "convnext": Entry(lambda: convnext(1e-6), images),
        "convnext, layer scale 1": Entry(lambda: convnext(1.0), images),
        "u-net": Entry(lambda: UNet(transposed=False), images),
        "u-net, transposed": Entry(lambda: UNet(transposed=True), images),
        "inception": Entry(inception, images),
        "decoder": Entry(decoder, normal(64)),
        "discriminator": Entry(discriminator, images),
        "prelu net": Entry(prelu, images),
        "volumes": Entry(volumes, normal(1, 12, 12, 12)),
        "convmixer": Entry(convmixer, images),
    }
