"""Every layer of ``torch.nn`` in a small net: a linear layer or a convolution before it, and after it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, rnn

from predict_bench.zoo.entry import VOCABULARY, Entry, Zoo, normal, tokens
from predict_bench.zoo.written import ATTENTION, CELLS, FEATURES, MULTIHEAD, PACKED, RECURRENT, SPACES, TWO_INPUTS

Make = Callable[[], nn.Module]
SIDE = {1: 24, 2: 12, 3: 8}
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Of(nn.Module):
    """A function of a module's output, or of two modules' outputs."""

    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(parts)

    def forward(self, *x: Any) -> Any:
        return self.function(*(part(*x) for part in self.parts)) if self.parts else self.function(*x)


def by(spec: str, width: int = 32) -> Make:
    """Return a maker of the layer of ``torch.nn`` that is written there, C the number of channels."""
    names = {**vars(nn), "C": width}

    def make() -> nn.Module:
        found: nn.Module = eval(spec, names)
        return found

    return make


def featured(layer: Make, width: int = 96) -> Entry:
    """Put a layer of features between two linear ones."""
    return Entry(lambda: nn.Sequential(nn.Linear(64, width), layer(), nn.LazyLinear(48)), normal(64))


def spatial(dims: int, layer: Make, width: int = 32) -> Entry:
    """Put a layer between two convolutions over so many dimensions of space."""
    convolution, sides = CONVOLUTIONS[dims], (SIDE[dims],) * dims

    def build() -> nn.Module:
        after = (nn.LazyConv1d, nn.LazyConv2d, nn.LazyConv3d)[dims - 1]
        return nn.Sequential(convolution(4, width, 3, padding=1), layer(), after(16, 3, padding=1))

    return Entry(build, normal(4, *sides))


def sequence(layer: Make, width: int = 64) -> Entry:
    """Put a layer of sequences between two linear ones; all positions of the input are of one length."""

    def batch() -> Tensor:
        found: Tensor = 32**0.5 * F.normalize(normal(10, 32)(), dim=-1)
        return found

    return Entry(lambda: nn.Sequential(nn.Linear(32, width), layer(), nn.LazyLinear(24)), batch)


def first(x: Any) -> Tensor:
    """Return the first of what a layer returns."""
    found: Tensor = x[0]
    return found


class Cell(nn.Module):
    """A recurrent cell, stepped over a sequence; what it ends in."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        found: Tensor = state[0] if isinstance(state, tuple) else state
        return found


class Packed(nn.Module):
    """A recurrent layer over sequences of several lengths, as packed rows, padded again or not."""

    def __init__(self, layer: nn.Module, *, padded: bool) -> None:
        super().__init__()
        self.layer, self.padded = layer, padded

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.arange(16) % 8 + 3
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, _ = self.layer(packed)
        found: Tensor = rnn.pad_packed_sequence(out, batch_first=True)[0] if self.padded else out.data
        return found


class Attended(nn.Module):
    """Attention of a sequence to itself."""

    def __init__(self, attention: nn.Module, **options: Any) -> None:
        super().__init__()
        self.attention, self.options = attention, options

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.attention(x, x, x, **self.options)[0]
        return found


class Unpooled(nn.Module):
    """Max pooling, and its largest put back where they were."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1](2, return_indices=True)
        self.back = (nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d)[dims - 1](2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.back(*self.pool(x))
        return found


class Twice(nn.Module):
    """A module of two inputs, given one."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.module(x, x)
        return found


def _two(kind: Callable[..., Tensor] | nn.Module, after: bool = True) -> Entry:
    """Give a function of two values two linear layers' outputs, and put a layer after it, or none."""

    def build() -> nn.Module:
        both = Of(kind, nn.Linear(64, 96), nn.Linear(64, 96))
        return nn.Sequential(both, nn.LazyLinear(48)) if after else both

    return Entry(build, normal(64))


def _pairs() -> Zoo:
    return {
        "Bilinear": _two(nn.Bilinear(96, 96, 48), after=False),
        "CosineSimilarity": _two(nn.CosineSimilarity(), after=False),
        "PairwiseDistance": _two(nn.PairwiseDistance(), after=False),
        "PairwiseDistance(1)": _two(nn.PairwiseDistance(1.0), after=False),
        "maximum": _two(torch.maximum),
        "minimum": _two(torch.minimum),
        "amax of two": featured(lambda: Of(lambda x: x.unflatten(1, (-1, 2)).amax(2))),
    }


def _embedded(layer: Make) -> Entry:
    return Entry(lambda: nn.Sequential(layer(), nn.Linear(64, 24)), tokens(12))


def _tables() -> Zoo:
    written = [f"Embedding({VOCABULARY}, 64{more})" for more in ("", ", padding_idx=0", ", max_norm=1.0")]
    written += [f"EmbeddingBag({VOCABULARY}, 64, mode='{mode}')" for mode in ("sum", "mean", "max")]
    return {spec: _embedded(by(spec)) for spec in written}


def _parametrized() -> Zoo:
    found: dict[str, Entry] = {}
    for name in ("spectral_norm", "weight_norm", "orthogonal"):
        wrapped: Callable[[nn.Module], nn.Module] = getattr(parametrizations, name)
        found[name] = featured(partial(_wrapped, wrapped, partial(nn.Linear, 96, 96)))
        found[f"{name} of a convolution"] = spatial(
            2, partial(_wrapped, wrapped, partial(nn.Conv2d, 32, 32, 3, padding=1))
        )
    return found


def _wrapped(wrapped: Callable[[nn.Module], nn.Module], layer: Make) -> nn.Module:
    return wrapped(layer())


def _of_first(layer: Make) -> nn.Module:
    return Of(first, layer())


def _recurrent() -> Zoo:
    found = {spec: sequence(partial(_of_first, by(spec, 64))) for spec in RECURRENT}
    for spec in PACKED:
        found[f"{spec} packed"] = sequence(partial(_packed, by(spec, 64), padded=False))
        found[f"{spec} packed, padded again"] = sequence(partial(_packed, by(spec, 64), padded=True))
    return found | {spec: sequence(partial(_celled, by(spec, 64))) for spec in CELLS}


def _packed(layer: Make, *, padded: bool) -> nn.Module:
    return Packed(layer(), padded=padded)


def _celled(layer: Make) -> nn.Module:
    return Cell(layer())


def _attended(layer: Make, **options: Any) -> nn.Module:
    return Attended(layer(), **options)


def _attention() -> Zoo:
    found = {spec: sequence(by(spec, 64)) for spec in ATTENTION}
    found |= {spec: sequence(partial(_attended, by(spec, 64))) for spec in MULTIHEAD}
    masked = {"attn_mask": torch.ones(10, 10).triu(1).bool(), "is_causal": True, "need_weights": False}
    found["MultiheadAttention causal"] = sequence(partial(_attended, by(MULTIHEAD[0], 64), **masked))
    for spec in TWO_INPUTS:
        found[spec] = sequence(partial(_twice, by(spec, 64)))
    return found


def _twice(layer: Make) -> nn.Module:
    return Twice(layer())


def zoo() -> Zoo:
    """Return the nets by what is written of their layer."""
    found: dict[str, Entry] = {spec: featured(by(spec, 96)) for spec in FEATURES}
    for dims, specs in SPACES.items():
        found |= {f"{spec} in {dims}d" if spec in found else spec: spatial(dims, by(spec)) for spec in specs}
        found[f"MaxUnpool{dims}d"] = spatial(dims, partial(Unpooled, dims))
    return {**found, **_recurrent(), **_attention(), **_pairs(), **_tables(), **_parametrized()}
