"""What a model may read of its tensors while it is walked on meta ones: all that depends on nothing random."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from initwell.trace import fold
from initwell.trace.failure import NeedsValuesError
from initwell.trace.recorder import record
from initwell.trace.trace import Trace

COUNTS = torch.tensor([3, 1, 2])


class Reads(nn.Module):
    """A function as a module, with a weight, buffers and a tensor of its own."""

    places: Tensor
    rates: Tensor

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function, self.w, self.own = function, nn.Parameter(torch.ones(4)), torch.tensor([1, 2, 0])
        self.register_buffer("places", torch.arange(3))
        self.register_buffer("rates", torch.linspace(0, 0.5, 3))

    def forward(self, x: Tensor, counts: Tensor) -> Any:
        return self.function(self, x * self.w, counts)


def written(x: Tensor, index: Any, value: Any) -> Tensor:
    x = x.clone()
    x[index] = value
    return x


def packed(x: Tensor, lengths: Tensor) -> Tensor:
    y = pack_padded_sequence(x[:, :3, None].expand(3, 3, 2), lengths, batch_first=True, enforce_sorted=False)
    out: Tensor = pad_packed_sequence(y, batch_first=True)[0]
    return out


def late_view(x: Tensor, n: Tensor) -> Tensor:
    mask = torch.zeros(3, 3, dtype=torch.bool, device=x.device)
    row = mask[1]
    mask[:, 1:] = n[:, None] > 1
    mask[0] = True
    return x if bool(row.any()) else x[mask.sum(1) > 1]


Case = Callable[[Reads, Tensor, Tensor], Any]
NUMBERS: dict[str, Case] = {
    "item": lambda m, x, n: x * {1: 2.0}[int(n[1].item())],
    "item of floats": lambda m, x, n: x * (1 - (n > 1).to(x.dtype)).mean().item(),
    "item of a cumulative sum": lambda m, x, n: x[: int(n.cumsum(0)[-1]) - 4],
    "truth": lambda m, x, n: x if n[0] else x * 2,
    "all and any": lambda m, x, n: x[0] if (n == 3).any() and not (n == 7).all() else x[1:],
    "in": lambda m, x, n: x if 7 in n[[0, -1]] else x * 2,
    "list": lambda m, x, n: torch.split(x, n.tolist()[1:]),
    "array": lambda m, x, n: x[: int(n.cpu().numpy().min())],
    "array without a move": lambda m, x, n: x[: int(np.asarray(n).min()) + int(n.numpy().min())],
    "as an index": lambda m, x, n: x[: n[1]] + x[n[2]],
    "range": lambda m, x, n: sum(x[i] for i in range(n[0])),
    "as a size": lambda m, x, n: x.sum() + x.new_zeros((2, n[0])),  # type: ignore[arg-type]
    "formatted": lambda m, x, n: x if f"{n[0]:d}" == "3" else x * 2,
    "equal": lambda m, x, n: x if torch.equal(n, m.own.to(x.device)) else x * 2,
    "close": lambda m, x, n: x if torch.allclose(n.float(), m.own.to(x.device).float() + 1) else x * 2,
    "buffers": lambda m, x, n: x[: int(m.places.max())] * float(m.rates[1]),
    "made on the way": lambda m, x, n: x * torch.linspace(0, 1, 5, device=x.device)[2].item(),
    "moved to where the batch is": lambda m, x, n: x * m.rates.to(n.device)[1] + m.rates.cpu()[2],
    "longest": lambda m, x, n: x[: int((m.places[None] < n[:, None]).sum(1).max())],
    "a list of scalars": lambda m, x, n: x * torch.tensor([n[0], n[1], n[2], n[0]], device=x.device),
    "positions in a row": lambda m, x, n: x if (torch.diff(n, prepend=n[:1] - 1) != 1).cumsum(-1)[-1] == 0 else x * 2,
    "a view written later": lambda m, x, n: late_view(x, n),
    "searched": lambda m, x, n: x[: int(torch.searchsorted(m.rates, m.rates[:2] + 0.1).max())],
}
SHAPES: dict[str, Case] = {
    "nonzero": lambda m, x, n: x[(n > 1).nonzero().squeeze(1)],
    "nonzero, by axis": lambda m, x, n: x[(n > 1).nonzero(as_tuple=True)],
    "where": lambda m, x, n: x[torch.where(n > 1)[0]],
    "mask": lambda m, x, n: x[n > 1] * 2,
    "mask of two axes": lambda m, x, n: x[(n > 1)[:, None].expand(3, 4)],
    "mask as a list": lambda m, x, n: x[[True, False, True]],
    "masked select": lambda m, x, n: x.masked_select((n > 1)[:, None]) * 2,
    "masked scatter": lambda m, x, n: x.masked_scatter((n > 1)[:, None], x[:2] * 2),
    "written under a mask": lambda m, x, n: written(x, n > 1, x[:2]),
    "a number under a mask": lambda m, x, n: written(x, n > 1, 0.0),
    "written at a list": lambda m, x, n: written(x, [0, 1], 0.0),
    "indexed by an array": lambda m, x, n: x[:, np.array([0, 2])],
    "unique": lambda m, x, n: x[: len(torch.unique(n)) - 1],
    "unique, counted": lambda m, x, n: x[: len(torch.unique_consecutive(n, return_counts=True)[1]) - 1],
    "counted": lambda m, x, n: x * n.bincount(),
    "repeated": lambda m, x, n: x.repeat_interleave(n, 0),
    "is in": lambda m, x, n: x[torch.isin(n, torch.tensor([1, 2], device=x.device))],
    "sorted": lambda m, x, n: x[n.sort()[1].tolist()],
    "one-hot": lambda m, x, n: x * F.one_hot(n).float(),
    "parts at": lambda m, x, n: x.tensor_split(n[1:].cpu()),
    "packed": lambda m, x, n: packed(x, n.cpu()),
    "packed without a move": lambda m, x, n: packed(x, n),
    "padded": lambda m, x, n: pad_sequence([x[: int(k)] for k in n]),
}
CASES = NUMBERS | SHAPES


def route(trace: Trace) -> list[Any]:
    return [(op.name, op.phase, op.inputs, [(v, trace.values[v].shape) for v in op.outputs]) for op in trace.ops]


@pytest.mark.parametrize("name", CASES)
def test_what_is_read_is_what_the_model_would_read(name: str) -> None:
    # The witness is the walk on real tensors: the same ops on the same values of the same shapes, backward included.
    batch = torch.randn(3, 4), COUNTS
    meta, real = (record(Reads(CASES[name]), batch, device=device) for device in ("meta", "real"))
    assert route(meta) == route(real)
    assert meta.gradients == real.gradients and meta.inputs["input.0"] in meta.gradients


UNKNOWN: dict[str, Case] = {
    "signal": lambda m, x, n: x if x.sum() > 0 else x * 2,
    "weight": lambda m, x, n: x if m.w.sum() > 0 else x * 2,
    "chance": lambda m, x, n: x if torch.rand(1, device=x.device) > 2 else x * 2,
    "shuffle": lambda m, x, n: x[: int(torch.randperm(3, device=x.device)[0]) + 1],
    "mask of the signal": lambda m, x, n: x[x.sum(1) > 0],
    "select by the signal": lambda m, x, n: x.masked_select(x > 0),
    "moved signal": lambda m, x, n: x * x.cpu().mean(),
    "array of the signal": lambda m, x, n: x * float(x.detach().numpy().mean()),
    "list of signals": lambda m, x, n: x * torch.tensor([x[0, 0], x[0, 1], x[0, 2], x[0, 3]], device=x.device),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_depends_on_more_is_refused(name: str) -> None:
    before = torch.get_rng_state()
    with pytest.raises(NeedsValuesError, match=r"test_reads\.py:\d+.* looks at the numbers"):
        record(Reads(UNKNOWN[name]), (torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), COUNTS))
    assert torch.equal(before, torch.get_rng_state())


def test_nothing_of_the_model_or_the_batch_is_written() -> None:
    def forward(m: Reads, x: Tensor, n: Tensor) -> Tensor:
        m.places += 1
        m.rates.mul_(2)
        n[0] = 1
        m.own.to(n.device)[0] += 1
        return x[: int(m.places[0] + n[0])] * float(m.rates[2])

    model, counts = Reads(forward), COUNTS.clone()
    kept = [t.clone() for t in (model.places, model.rates, model.own, counts)]
    trace = record(model, (torch.randn(3, 4), counts))
    (out,) = trace.outputs.values()
    assert trace.values[out].shape == (2, 4)
    assert all(torch.equal(a, b) for a, b in zip(kept, (model.places, model.rates, model.own, counts), strict=True))


def test_no_mask_beyond_the_limit_is_made_of_real_numbers() -> None:
    # A terabyte, which no machine that runs this has.
    def causal(m: Reads, x: Tensor, n: Tensor) -> Tensor:
        mask = torch.ones(2**20, 2**20, dtype=torch.bool, device=n.device).tril()
        return x * mask[:3, :4]

    trace = record(Reads(causal), (torch.randn(3, 4), COUNTS))
    assert trace.folded.notes == ("Too large to be computed as real numbers: aten.ones of shape 1048576×1048576 (1×).",)


def test_inputs_beyond_the_limit_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold, "MOST", 2)
    trace = record(Reads(lambda m, x, n: x + n[:, None]), (torch.randn(3, 4), COUNTS))
    assert trace.inputs["input.1"] not in trace.folded.tensors
    assert trace.folded.notes[0].startswith("Too large to be computed as real numbers: input of shape 3 (1×)")


def test_memory_that_is_drawn_into_takes_none_here(monkeypatch: pytest.MonkeyPatch) -> None:
    # A dropout mask begins as empty memory of the activation's size; were it made, it would use up the limit.
    monkeypatch.setattr(fold, "MOST_BYTES", 64)
    trace = record(nn.Sequential(nn.Dropout(), nn.Dropout()), torch.randn(64, 64))
    drawn = [op.outputs[0] for op in trace.forward_ops if op.packet == "aten.bernoulli_"]
    assert len(drawn) == 2 and set(drawn) <= trace.folded.drawn
    assert trace.folded.notes == ()


def test_a_real_walk_may_do_without() -> None:
    batch = torch.randn(3, 4), COUNTS
    with_numbers, without = (record(Reads(NUMBERS["item"]), batch, device="real", fold=f) for f in (True, False))
    assert with_numbers.folded.tensors and not without.folded.tensors


@pytest.mark.parametrize("kind", ["GPT2", "Llama", "GPTJ"])
def test_language_models_that_look_at_their_positions_are_walked(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "GPT2": {"n_layer": 1, "n_head": 2, "n_embd": 8},
        "GPTJ": {"n_layer": 1, "n_head": 2, "n_embd": 8, "rotary_dim": 2},
        "Llama": {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2},
    }
    config = getattr(transformers, f"{kind}Config")(vocab_size=20, attn_implementation="eager", **sizes[kind])
    config.use_cache = False
    model = getattr(transformers, f"{kind}{'LMHeadModel' if kind == 'GPT2' else 'ForCausalLM'}")(config)
    meta, real = (record(model, torch.arange(10).view(2, 5), device=device) for device in ("meta", "real"))
    assert any(op.packet == "aten._local_scalar_dense" for op in meta.ops)
    assert route(meta) == route(real)
