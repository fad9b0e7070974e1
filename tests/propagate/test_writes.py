"""What becomes of a whole whose parts are written to, forward and backward, by measurement."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import initwell as iw
from initwell.propagate.writes import box


class Shifted(nn.Module):
    """Moves a sequence on by one place, and makes some of its channels three times as large."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 96), nn.Linear(96, 64)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        moved = torch.zeros_like(h)
        moved[:, 1:] = h[:, :-1]
        moved[:, :, 2:34] *= 3
        y: Tensor = self.last(moved)
        return y


class Cleared(Shifted):
    """Sets a third of its channels to 0, and a place of the sequence to 2."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        h = h.clone()
        h[:, :, 64:].zero_()
        h[:, 0] = 2.0
        y: Tensor = self.last(h)
        return y


MODELS = {
    "parts set to numbers": (Cleared, (32, 6, 64)),
    "a sequence moved on": (Shifted, (32, 6, 64)),
    "circular padding": (
        lambda: nn.Sequential(nn.Conv2d(3, 32, 3, padding=1, padding_mode="circular"), nn.Conv2d(32, 8, 1)),
        (16, 3, 10, 10),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_parts_that_are_written_to_by_measurement(name: str) -> None:
    build, shape = MODELS[name]
    model = build()
    batch = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    found = iw.predict(model, batch, plan=iw.plan(model, "kaiming"))
    assert not found.unsupported
    squares = np.zeros((len(found.rows), 2))
    for seed in range(8):
        iw.init_(model, "kaiming", seed=seed)
        for i, row in enumerate(iw.measure(model, batch, seed=seed).rows):
            squares[i] += np.array([row["forward_rms"], row["gradient_rms"] or 0.0]) ** 2 / 8
    # Linear maps of 27 to 96 terms, 8 draws of 32 channels or more: about 2 %. The zeros alone are 1/6 of a sequence,
    # 9 % of its rms; three times a third of the channels, 90 %.
    for i, row in enumerate(found.rows):
        if row["op"] in ("aten.addmm", "aten.convolution", "aten.tanh"):
            assert row["forward_rms"] == pytest.approx(np.sqrt(squares[i, 0]), rel=0.05), row["path"]
            assert row["gradient_rms"] == pytest.approx(np.sqrt(squares[i, 1]), rel=0.05), row["path"]


@pytest.mark.parametrize(
    ("shape", "part"),
    [
        ((4, 5, 8), np.s_[:, 1:4, 2:6]),
        ((4, 5, 8), np.s_[:, 2]),
        ((4, 5, 8), np.s_[..., 3]),
        ((4, 5, 8), np.s_[1:3]),
        ((4, 5, 8), np.s_[0, 2:4, :]),
    ],
)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_a_box_of_memory_is_where_its_strides_say(
    shape: tuple[int, ...], part: tuple[slice | int, ...], order: tuple[int, ...]
) -> None:
    memory = torch.arange(160).reshape([shape[d] for d in order])
    whole = memory.permute([order.index(d) for d in range(3)])
    view = whole[part]
    found = box(shape, whole.stride(), view.shape, view.stride(), int(view.storage_offset()))
    assert found is not None
    laid = whole.permute(found.memory).reshape(found.lengths)
    kept = laid[tuple(slice(s, s + n) for s, n in zip(found.starts, found.extent, strict=True))]
    assert sorted(kept.flatten().tolist()) == sorted(view.flatten().tolist())


def test_strides_that_show_no_box() -> None:
    assert box((4, 5), (5, 1), (4, 4), (6, 1), 0) is None
    assert box((4, 5), (6, 1), (4, 5), (6, 1), 0) is None
