"""Meta and real tensors take the same route, op by op, forward and backward, through all that PyTorch offers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import CheckpointFunction, checkpoint

from initwell.trace.recorder import record
from initwell.trace.route import same_route, shapes_completed

IMAGE = (2, 4, 8, 8)


class Wrapped(nn.Module):
    """A function, and modules that it needs, as a module."""

    def __init__(self, function: Callable[..., Any], *inner: nn.Module) -> None:
        super().__init__()
        self.function, self.inner = function, nn.ModuleList(inner)

    def forward(self, *args: Any) -> Any:
        return self.function(*self.inner, *args)


def images(function: Callable[..., Any]) -> tuple[nn.Module, Any]:
    return Wrapped(function), torch.randn(IMAGE)


def attention(**call: Any) -> tuple[nn.Module, Any]:
    inner = nn.MultiheadAttention(8, 2, batch_first=True, dropout=0.1)
    return Wrapped(lambda m, x: m(x, x, x, **call), inner), torch.randn(3, 5, 8)


def padded(mode: str, dims: int) -> tuple[nn.Module, Any]:
    return Wrapped(lambda x: F.pad(x, (1, 2) * dims, mode=mode)), torch.randn(2, 3, *[5] * dims)


def resized(mode: str, dims: int, **options: Any) -> tuple[nn.Module, Any]:
    return Wrapped(lambda x: F.interpolate(x, size=[7] * dims, mode=mode, **options)), torch.randn(2, 3, *[5] * dims)


def pooled(make: Callable[..., nn.Module], dims: int, *options: Any, **named: Any) -> tuple[nn.Module, Any]:
    return make(*options, **named), torch.randn(2, 4, *[6] * dims)


def bag(mode: str) -> tuple[nn.Module, Any]:
    return nn.EmbeddingBag(7, 5, mode=mode), TOKENS


def einsum(equation: str, *shapes: tuple[int, ...]) -> tuple[nn.Module, Any]:
    return Wrapped(lambda *given: torch.einsum(equation, *given)), tuple(torch.randn(s) for s in shapes)


def masked(x: Tensor) -> Tensor:
    mask = torch.ones(8, 8, dtype=torch.bool, device=x.device).triu(1)
    return x.masked_fill(mask, -1e9).softmax(-1)


TOKENS = torch.randint(0, 7, (3, 4))
linear = parametrizations
CASES: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "batch norm": lambda: (nn.BatchNorm2d(4), torch.randn(IMAGE)),
    "batch norm, eval": lambda: (nn.BatchNorm2d(4).eval(), torch.randn(IMAGE)),
    "instance norm": lambda: (nn.InstanceNorm2d(4, affine=True, track_running_stats=True), torch.randn(IMAGE)),
    "group norm": lambda: (nn.GroupNorm(2, 4), torch.randn(IMAGE)),
    "layer norm": lambda: (nn.LayerNorm([8, 8]), torch.randn(IMAGE)),
    "layer norm of transposed images": lambda: (
        Wrapped(lambda m, x: m(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), nn.LayerNorm(4)),
        torch.randn(IMAGE),
    ),
    "rms norm": lambda: (nn.RMSNorm(8), torch.randn(IMAGE)),
    "local response norm": lambda: (nn.LocalResponseNorm(3), torch.randn(IMAGE)),
    "weight norm": lambda: (linear.weight_norm(nn.Linear(8, 5)), torch.randn(3, 8)),
    "spectral norm": lambda: (linear.spectral_norm(nn.Linear(8, 5)), torch.randn(3, 8)),
    "orthogonal": lambda: (linear.orthogonal(nn.Linear(8, 5)), torch.randn(3, 8)),
    "attention": attention,
    "attention, weights of each head": lambda: attention(average_attn_weights=False),
    "attention without weights": lambda: attention(need_weights=False),
    "encoder": lambda: (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(3, 5, 8)),
    "encoder, norm first": lambda: (
        nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", norm_first=True),
        torch.randn(5, 3, 8),
    ),
    "encoder, eval": lambda: (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.randn(3, 5, 8)),
    "decoder": lambda: (
        nn.TransformerDecoderLayer(8, 2, 16, batch_first=True),
        (torch.randn(3, 5, 8), torch.randn(3, 4, 8)),
    ),
    "causal attention": lambda: (
        Wrapped(lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True)),
        torch.randn(2, 3, 5, 4),
    ),
    **{f"padding, {m}, {d}": partial(padded, m, d) for m in ("constant", "circular") for d in (1, 2, 3)},
    **{f"padding, {m}, {d}": partial(padded, m, d) for m in ("reflect", "replicate") for d in (1, 2, 3)},
    **{
        f"resizing, {m}": partial(resized, m, d)
        for m, d in (("linear", 1), ("bilinear", 2), ("bicubic", 2), ("trilinear", 3))
    },
    **{f"resizing, nearest, {d}": partial(resized, "nearest", d) for d in (1, 2, 3)},
    "resizing, exact": lambda: resized("nearest-exact", 2),
    "resizing, area": lambda: resized("area", 2),
    "resizing, corners": lambda: resized("bilinear", 2, align_corners=True),
    "resizing, antialiased": lambda: resized("bilinear", 2, antialias=True),
    **{f"max pooling {d}": partial(pooled, getattr(nn, f"MaxPool{d}d"), d, 2) for d in (1, 2, 3)},
    **{f"average pooling {d}": partial(pooled, getattr(nn, f"AvgPool{d}d"), d, 2) for d in (1, 2, 3)},
    **{f"adaptive max {d}": partial(pooled, getattr(nn, f"AdaptiveMaxPool{d}d"), d, 4) for d in (1, 2, 3)},
    **{f"adaptive average {d}": partial(pooled, getattr(nn, f"AdaptiveAvgPool{d}d"), d, 4) for d in (1, 2, 3)},
    "global average": lambda: pooled(nn.AdaptiveAvgPool2d, 2, 1),
    "power pooling": lambda: pooled(nn.LPPool2d, 2, 2, 2),
    "fractional pooling 2": lambda: pooled(nn.FractionalMaxPool2d, 2, 2, output_size=4),
    "fractional pooling 3": lambda: pooled(nn.FractionalMaxPool3d, 3, 2, output_size=2),
    **{
        f"transposed convolution {d}": partial(pooled, getattr(nn, f"ConvTranspose{d}d"), d, 4, 3, 3, 2)
        for d in (1, 2, 3)
    },
    "convolution, reflecting": lambda: (nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect"), torch.randn(IMAGE)),
    "depthwise, channels last": lambda: (
        Wrapped(lambda m, x: m(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flatten(1, 2), nn.Conv2d(8, 8, 3, groups=8)),
        torch.randn(2, 5, 5, 8),
    ),
    "unfold": lambda: (nn.Unfold(3), torch.randn(IMAGE)),
    "fold": lambda: (nn.Fold((4, 4), 2), torch.randn(2, 12, 9)),
    "pixel shuffle": lambda: images(lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2)),
    "bilinear": lambda: (nn.Bilinear(4, 5, 6), (torch.randn(3, 4), torch.randn(3, 5))),
    "embedding": lambda: (nn.Embedding(7, 5, padding_idx=0), TOKENS),
    **{f"bag, {m}": partial(bag, m) for m in ("sum", "mean", "max")},
    "einsum, matrices": lambda: einsum("bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
    "einsum, heads": lambda: einsum("bhid,bhjd->bhij", (2, 3, 4, 5), (2, 3, 6, 5)),
    "einsum, channels": lambda: einsum("bchw,cd->bdhw", IMAGE, (4, 5)),
    "prelu": lambda: (nn.PReLU(4), torch.randn(IMAGE)),
    "rrelu": lambda: (nn.RReLU(), torch.randn(IMAGE)),
    "mish": lambda: (nn.Mish(), torch.randn(IMAGE)),
    "glu": lambda: (nn.GLU(1), torch.randn(IMAGE)),
    "softsign": lambda: (nn.Softsign(), torch.randn(IMAGE)),
    "alpha dropout": lambda: (nn.AlphaDropout(0.3), torch.randn(IMAGE)),
    "mask": lambda: images(masked),
    "indices": lambda: images(lambda x: x[:, [0, 2]] + x.index_select(1, torch.tensor([1, 3], device=x.device))),
    "one-hot": lambda: images(lambda x: x + F.one_hot(torch.arange(8, device=x.device), 8)),
    "standard deviation": lambda: images(lambda x: x.std(1) + x.var((2, 3))[..., None].mean(1, keepdim=True)),
    "sorting": lambda: images(lambda x: x.topk(2, 1)[0] + x.cumsum(1)[:, :2]),
    "Fourier": lambda: images(lambda x: torch.fft.rfft2(x).abs()),
    "reentrant checkpoint": lambda: (
        Wrapped(lambda m, x: checkpoint(m, x, use_reentrant=True), nn.Linear(8, 8)),
        torch.randn(IMAGE),
    ),
}
SEVERAL = torch.tensor([[0, 3] + [-1] * 14] * 2)
TARGET = torch.randint(0, 4, (2, 8, 8))
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "cross-entropy": lambda y: F.cross_entropy(y, TARGET),
    "cross-entropy, smoothed": lambda y: F.cross_entropy(y, TARGET, label_smoothing=0.1),
    "squares": lambda y: F.mse_loss(y, torch.zeros(IMAGE)),
    "Huber": lambda y: F.huber_loss(y, torch.zeros(IMAGE)),
    "binary": lambda y: F.binary_cross_entropy_with_logits(y, torch.zeros(IMAGE)),
    "divergence": lambda y: F.kl_div(y.log_softmax(1), torch.full(IMAGE, 0.25), reduction="batchmean"),
    "triplets": lambda y: F.triplet_margin_loss(y[0], y[1], y[0] * 2),
    "margins": lambda y: F.multi_margin_loss(y.flatten(1), torch.tensor([0, 1])),
    "margins, several labels": lambda y: F.multilabel_margin_loss(y.flatten(2)[..., :4].flatten(1), SEVERAL),
}


def check(model: nn.Module, batch: Any, loss: Callable[[Tensor], Tensor] | None = None) -> None:
    meta, real = (record(model, batch, loss=loss, device=device) for device in ("meta", "real"))
    for one, other in zip(meta.ops, real.ops, strict=True):
        assert (one.name, one.phase, one.path, one.call, one.of) == (
            other.name,
            other.phase,
            other.path,
            other.call,
            other.of,
        )
        assert (one.inputs, one.outputs, one.mutates) == (other.inputs, other.outputs, other.mutates), one
        # Side outputs that nobody reads, such as the statistics of a norm in eval mode, have any shape.
        first = one.outputs[:1]
        assert [meta.values[v].shape for v in first] == [real.values[v].shape for v in first]
    assert meta.gradients == real.gradients


@pytest.mark.parametrize("name", CASES)
def test_modules_and_functions(name: str) -> None:
    torch.manual_seed(0)
    check(*CASES[name]())


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str) -> None:
    check(nn.Conv2d(4, 4, 1), torch.randn(IMAGE), LOSSES[name])


def test_a_reentrant_checkpoint_has_the_gradients_of_an_ordinary_call() -> None:
    def grown(**options: Any) -> set[str]:
        model = Wrapped(lambda m, x: checkpoint(m, x, **options) if options else m(x), nn.Linear(8, 8))
        trace = record(model, torch.randn(IMAGE))
        return {name for name, value in trace.parameters.items() if value in trace.gradients}

    assert grown(use_reentrant=True) == grown() != set()


def test_pytorch_is_left_as_it_was() -> None:
    def shown() -> list[Any]:
        has = torch._C._dispatch_has_kernel_for_dispatch_key
        return [dict(vars(CheckpointFunction)), has("aten::mish_backward", "Meta"), has("aten::_logcumsumexp", "Meta")]

    before = shown()
    with same_route(), shapes_completed():
        within = shown()
    assert all(a != b for a, b in zip(before, within, strict=True))
    assert shown() == before
