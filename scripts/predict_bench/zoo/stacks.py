"""Deep stacks and small nets on flat inputs, and recurrent nets."""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from predict_bench.zoo.entry import VOCABULARY, Entry, Zoo, normal, tokens
from predict_bench.zoo.first import mlp


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.branch(x)
        return y


class Highway(nn.Module):
    """t·h + (1 − t)·x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.change, self.gate = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x))
        y: Tensor = gate * torch.relu(self.change(x)) + (1 - gate) * x
        return y


class Recurrent(nn.Module):
    """Embedding, a recurrent net, and a linear layer on what it said last, or everywhere."""

    def __init__(
        self, kind: Callable[..., nn.Module], width: int, *, everywhere: bool = False, **options: object
    ) -> None:
        super().__init__()
        self.everywhere = everywhere
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.net = kind(width, width, batch_first=True, **options)
        self.head = nn.Linear(width * (2 if options.get("bidirectional") else 1), 10)

    def forward(self, t: Tensor) -> Tensor:
        h = self.net(self.tokens(t))[0]
        y: Tensor = self.head(h if self.everywhere else h[:, -1])
        return y


class Cells(nn.Module):
    """An LSTM cell unrolled by hand over measured series."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(inputs, width), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        state = (x.new_zeros(x.shape[0], self.cell.hidden_size), x.new_zeros(x.shape[0], self.cell.hidden_size))
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        y: Tensor = self.head(state[0])
        return y


class Causal(nn.Module):
    """A dilated causal convolution in a residual block, as in temporal convolutional nets."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.reach = 2 * dilation
        self.conv1 = nn.Conv1d(width, width, 3, dilation=dilation)
        self.conv2 = nn.Conv1d(width, width, 3, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.conv1(F.pad(x, (self.reach, 0))))
        h = F.relu(self.conv2(F.pad(h, (self.reach, 0))))
        return F.relu(x + h)


def temporal() -> nn.Module:
    blocks = (Causal(64, 2**i) for i in range(4))
    return nn.Sequential(nn.Conv1d(8, 64, 1), *blocks, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 10))


def residual(depth: int = 12, width: int = 192) -> nn.Module:
    def block() -> nn.Module:
        return Residual(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    return nn.Sequential(
        nn.Linear(64, width), *(block() for _ in range(depth)), nn.LayerNorm(width), nn.Linear(width, 10)
    )


def autoencoder() -> nn.Module:
    widths = (64, 256, 128, 32, 128, 256)
    layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.LeakyReLU(0.1))]
    return nn.Sequential(*layers, nn.Linear(256, 64), nn.Sigmoid())


def dropped(depth: int = 8, width: int = 256) -> nn.Module:
    layers = [p for i in range(depth) for p in (nn.Linear(64 if i == 0 else width, width), nn.ReLU(), nn.Dropout(0.3))]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def normed(norm: Callable[[int], nn.Module], depth: int = 10, width: int = 256) -> nn.Module:
    layers = [p for i in range(depth) for p in (nn.Linear(64 if i == 0 else width, width), norm(width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def highway(depth: int = 10, width: int = 192) -> nn.Module:
    return nn.Sequential(nn.Linear(64, width), *(Highway(width) for _ in range(depth)), nn.Linear(width, 10))


def zoo() -> Zoo:
    """Return name → entry."""
    flat, text = normal(64), tokens(16)
    return {
        "stack tanh 50": Entry(lambda: mlp(nn.Tanh, 50), flat),
        "stack relu 50": Entry(lambda: mlp(nn.ReLU, 50), flat),
        "stack gelu 50": Entry(lambda: mlp(nn.GELU, 50), flat),
        "stack selu 20": Entry(lambda: mlp(nn.SELU, 20), flat),
        "stack leaky relu 20": Entry(lambda: mlp(lambda: nn.LeakyReLU(0.2), 20), flat),
        "stack hardtanh 20": Entry(lambda: mlp(nn.Hardtanh, 20), flat),
        "stack prelu 20": Entry(lambda: mlp(nn.PReLU, 20), flat),
        "stack relu dropout 8": Entry(dropped, flat),
        "stack relu layernorm 10": Entry(lambda: normed(nn.LayerNorm), flat),
        "residual mlp": Entry(residual, flat),
        "highway": Entry(highway, flat),
        "autoencoder": Entry(autoencoder, flat),
        "lstm": Entry(lambda: Recurrent(nn.LSTM, 96), text),
        "lstm, two layers, both ways": Entry(
            lambda: Recurrent(nn.LSTM, 64, everywhere=True, num_layers=2, bidirectional=True), text
        ),
        "gru": Entry(lambda: Recurrent(nn.GRU, 96), text),
        "gru, two layers, everywhere": Entry(lambda: Recurrent(nn.GRU, 96, everywhere=True, num_layers=2), text),
        "rnn tanh": Entry(lambda: Recurrent(nn.RNN, 96), text),
        "lstm cell by hand": Entry(lambda: Cells(8, 96), normal(12, 8)),
        "temporal convolutions": Entry(temporal, normal(8, 48)),
    }
