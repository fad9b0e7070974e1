"""Recurrent layers step by step, against PyTorch's own: outputs, states, gradients, dropout masks."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from initwell.trace.batch import tensors
from initwell.trace.keep import random_kept
from initwell.trace.recorder import record
from initwell.trace.route import same_route
from initwell.trace.trace import Trace

LAYERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two layers": {"num_layers": 2},
    "both ways": {"bidirectional": True},
    "no bias": {"bias": False},
    "batch first": {"batch_first": True},
    "two layers, both ways, dropout": {"num_layers": 2, "bidirectional": True, "dropout": 0.4},
}
KINDS = ("LSTM", "GRU", "RNN")


def layer(kind: str, **options: Any) -> nn.RNNBase:
    torch.manual_seed(0)
    made: nn.RNNBase = getattr(nn, kind)(5, 6, **options)
    return made.double()


def results(model: nn.Module, *given: Any) -> list[Tensor]:
    """Every output, then the gradient of all parameters and given tensors from fixed gradients at the outputs."""
    leaves = [t.requires_grad_() for _, t in tensors(given, "input") if t.is_floating_point()]
    found = [t for _, t in tensors(model(*given), "output") if t.is_floating_point()]
    starts = [torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view_as(t) for t in found]
    return [*found, *torch.autograd.grad(found, [*model.parameters(), *leaves], starts)]


def both(model: nn.Module, *given: Any) -> tuple[list[Tensor], list[Tensor]]:
    with random_kept(3):
        expected = results(model, *given)
    with random_kept(3), same_route():
        return results(model, *given), expected


def check(model: nn.Module, *given: Any) -> None:
    found, expected = both(model, *given)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def names(trace: Trace) -> list[Any]:
    return [(op.name, op.phase, op.of, op.inputs, op.outputs, op.path) for op in trace.ops]


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_computes_what_pytorch_computes(kind: str, options: dict[str, Any]) -> None:
    check(layer(kind, **options), torch.randn(4, 3, 5, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_with_a_given_state_and_without_samples(kind: str) -> None:
    model = layer(kind, num_layers=2)
    for shape in ((4, 3, 5), (4, 5)):
        h = torch.randn(2, *shape[1:-1], 6, dtype=torch.float64)
        check(model, torch.randn(shape, dtype=torch.float64), (h, h.flip(-1)) if kind == "LSTM" else h)


def test_a_projected_lstm_and_a_rectified_net() -> None:
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    check(layer("LSTM", proj_size=3, bidirectional=True), x)
    check(layer("RNN", nonlinearity="relu"), x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_computes_what_pytorch_computes(kind: str, bias: bool) -> None:
    torch.manual_seed(0)
    cell = getattr(nn, kind + "Cell")(5, 6, bias=bias).double()
    h = torch.randn(3, 6, dtype=torch.float64)
    check(cell, torch.randn(3, 5, dtype=torch.float64), (h, h.flip(0)) if kind == "LSTM" else h)


class Sentences(nn.Module):
    """Packs its input by lengths that it is given, and pads the output again."""

    def __init__(self, inner: nn.RNNBase, *, ordered: bool) -> None:
        super().__init__()
        self.inner, self.ordered = inner, ordered

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        packed = pack_padded_sequence(x, lengths, enforce_sorted=self.ordered)
        out, state = self.inner(packed)
        return pad_packed_sequence(out)[0], state


@pytest.mark.parametrize("lengths", [[4, 4, 4], [4, 3, 1], [2, 4, 3]])
@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences(kind: str, options: dict[str, Any], lengths: list[int]) -> None:
    model = Sentences(layer(kind, **{**options, "batch_first": False}), ordered=lengths == sorted(lengths)[::-1])
    check(model, torch.randn(4, 3, 5, dtype=torch.float64), torch.tensor(lengths))


def test_the_check_notices_another_dropout_mask() -> None:
    model = layer("LSTM", num_layers=2, dropout=0.5)
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    with random_kept(3), same_route():
        found = results(model, x)
    with random_kept(4):
        expected = results(model, x)
    assert not torch.allclose(found[0], expected[0])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_meta_and_real_take_the_same_route(kind: str, options: dict[str, Any], training: bool) -> None:
    model = layer(kind, **options).float().train(training)
    meta, real = (record(model, torch.randn(4, 3, 5), device=device) for device in ("meta", "real"))
    assert names(meta) == names(real)
    assert [v.shape for v in meta.values] == [v.shape for v in real.values]


@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences_are_walked_without_numbers(kind: str) -> None:
    for lengths in ([4, 3, 1], [2, 4, 3]):
        model = Sentences(layer(kind).float(), ordered=lengths[0] == 4)
        batch = (torch.randn(4, 3, 5), torch.tensor(lengths))
        meta, real = (record(model, batch, device=device) for device in ("meta", "real"))
        assert names(meta) == names(real)
        # Every step has the samples that are left.
        bent = {meta.values[op.outputs[0]].shape[0] for op in meta.forward_ops if op.packet == "aten.tanh"}
        assert bent == {sum(n > t for n in lengths) for t in range(4)}


def test_a_packed_batch_is_walked_without_numbers() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.randn(4, 5), torch.randn(2, 5)])
    assert isinstance(packed, PackedSequence)
    meta, real = (record(layer("GRU").float(), (packed,), device=device) for device in ("meta", "real"))
    assert names(meta) == names(real)


def test_every_gate_is_a_value_of_its_own() -> None:
    trace = record(layer("LSTM").float(), torch.randn(2, 3, 5))
    made = [op.packet for op in trace.forward_ops if op.packet in ("aten.sigmoid", "aten.tanh", "aten.mul")]
    assert {name: made.count(name) for name in set(made)} == {"aten.sigmoid": 6, "aten.tanh": 4, "aten.mul": 6}


def test_pytorch_gets_its_own_functions_back() -> None:
    before = dict(vars(torch._VF))
    with same_route():
        assert vars(torch._VF) != before
    assert vars(torch._VF) == before
