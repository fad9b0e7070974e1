"""The walk: what it writes down, for every kind of model, and that nothing of it stays behind."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from initwell.errors import ArgumentError, ModelError
from initwell.trace.failure import NeedsValuesError
from initwell.trace.recorder import record
from initwell.trace.trace import Op, Trace, Value


class Residual(nn.Module):
    """One ReLU, in place, used three times; BatchNorm; a residual add."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        z = self.bn2(self.conv2(y))
        z += y
        return self.fc(F.dropout(self.relu(z), 0.25, self.training).mean((2, 3)))  # type: ignore[no-any-return]


class Tied(nn.Module):
    """A language model's head that is its embedding; takes keyword arguments; returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.block = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.1)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        hidden = self.block(self.embed(input_ids))
        return {"logits": self.head(hidden), "ids": input_ids}


class Functional(nn.Module):
    """Parameters of its own, everything else functional; writes into a view and into its input."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        x.mul_(0.5)
        y = F.gelu(x @ self.w) * scale
        y[0] = 0
        y[:, 1].add_(x[:, 1])
        return F.linear(y.sigmoid_(), self.w.t()).tanh()


MODELS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "mlp": lambda: (nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(3, 5)),
    "residual": lambda: (Residual(), torch.randn(2, 3, 6, 6)),
    "tied": lambda: (Tied(), {"input_ids": torch.randint(0, 7, (2, 3))}),
    "functional": lambda: (Functional(), (torch.randn(4, 3), 2.0)),
    "attention": lambda: (nn.MultiheadAttention(4, 2, batch_first=True), (torch.randn(2, 3, 4),) * 3),
    "lstm": lambda: (nn.LSTM(3, 4, batch_first=True), torch.randn(2, 3, 3)),
}


def build(name: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    return MODELS[name]()


def state(model: nn.Module, batch: Any) -> list[Any]:
    """Everything that a walk must leave alone, as comparable bytes and identities."""
    tensors = [*model.state_dict().values(), *torch.utils._pytree.tree_leaves(batch)]
    modules = list(model.named_modules())
    return [
        *(t.detach().numpy().tobytes() if isinstance(t, Tensor) else t for t in tensors),
        [(n, id(p), p.requires_grad, id(p.grad), p._version) for n, p in model.named_parameters()],
        [(n, id(b)) for n, b in model.named_buffers()],
        [(n, m.training, sorted(m.__dict__), len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in modules],
        torch.get_rng_state().numpy().tobytes(),
        np.random.get_state()[1].tobytes(),  # type: ignore[index] # noqa: NPY002
        random.getstate(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),  # type: ignore[no-untyped-call]
        torch._C._get_mkldnn_enabled(),
        len(torch.nn.modules.module._global_forward_hooks),
        len(torch.nn.modules.module._global_forward_pre_hooks),
    ]


@pytest.mark.parametrize("device", ["meta", "real"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_the_model_is_left_as_it_was(name: str, training: bool, device: Any) -> None:
    model, batch = build(name)
    model.train(training)
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    before = state(model, batch)
    record(model, batch, device=device)
    assert state(model, batch) == before
    assert first.grad is not None
    assert bool((first.grad == 1).all())


def test_the_state_check_notices_a_plain_forward() -> None:
    # The check above must be able to fail: a forward in training mode moves BatchNorm's statistics and the generator.
    model, batch = build("residual")
    before = state(model, batch)
    model(batch)
    assert state(model, batch) != before


@pytest.mark.parametrize("name", MODELS)
def test_every_value_is_accounted_for(name: str) -> None:
    model, batch = build(name)
    trace = record(model, batch)
    for op in trace.ops:
        assert trace.ops[op.index] is op
        for value in (*op.inputs, *op.outputs):
            assert trace.values[value].id == value
        for value in op.inputs:
            made = trace.producer(value)
            # SSA: what an op reads was made before it, and it is among the readers of what it reads.
            assert made is None or made.index < op.index
            assert op in trace.consumers(value)
    # Nothing that a backward op reads is a stranger: saved tensors are recognised when autograd unpacks them.
    strangers = [v for op in trace.backward_ops for v in op.inputs if trace.values[v].kind == "constant"]
    assert strangers == []
    assert set(trace.parameters) == {n for n, _ in model.named_parameters(remove_duplicate=False)}


@pytest.mark.parametrize("name", ["mlp", "residual", "tied", "attention", "lstm"])
def test_meta_and_real_take_the_same_route(name: str) -> None:
    model, batch = build(name)
    walks = [record(model, batch, device=device) for device in ("meta", "real")]
    meta, real = ([(op.name, op.path, op.call, op.phase, op.inputs, op.outputs) for op in w.ops] for w in walks)
    assert meta == real
    assert [v.shape for v in walks[0].values] == [v.shape for v in walks[1].values]


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_a_gradient_of_its_shape(name: str) -> None:
    model, batch = build(name)
    trace = record(model, batch)
    for parameter, value in trace.parameters.items():
        gradient = trace.values[trace.gradients[value]]
        assert gradient.shape == trace.values[value].shape, parameter


def test_reused_modules_count_their_calls() -> None:
    model, batch = build("residual")
    ops = record(model, batch).forward_ops
    assert [(op.path, op.call) for op in ops if op.packet == "aten.relu_"] == [("relu", 0), ("relu", 1)]
    assert [op.path for op in ops if op.packet == "aten.add_" and op.name == "aten.add_.Tensor"][-1] == ""


def test_backward_ops_know_their_module_and_their_forward_op() -> None:
    model, batch = build("residual")
    trace = record(model, batch)
    found = [op for op in trace.backward_ops if op.packet == "aten.threshold_backward"]
    assert [(op.path, op.call) for op in found] == [("relu", 1), ("relu", 0)]
    assert [trace.ops[op.of].name for op in found if op.of is not None] == ["aten.relu_.default"] * 2
    assert [op.path for op in trace.backward_ops if op.packet == "aten.convolution_backward"] == ["conv2", "conv1"]


def test_writing_in_place_makes_new_versions_of_the_tensor_its_base_and_its_views() -> None:
    def forward(x: Tensor) -> Tensor:
        y = x + 1
        row, column = y[0], y[:, 0]
        row.mul_(2)
        return column + y.sum()

    trace = record(as_module(forward), torch.zeros(2, 2))
    plus, first, second, write, total, add = (op for op in trace.forward_ops)
    (y,), (row,), (column,) = plus.outputs, first.outputs, second.outputs
    assert trace.values[row].base == trace.values[column].base == y
    (new_row,) = write.outputs
    new = dict(write.mutates)
    assert new[row] == new_row
    assert total.inputs == (new[y],)
    assert add.inputs == (new[column], total.outputs[0])
    assert trace.values[new[column]].base == trace.values[new_row].base == new[y]
    assert trace.producer(new[column]) == write


def test_the_gradient_of_a_view_that_was_written_whole_is_that_of_the_tensor() -> None:
    """A linear layer's output is a view of addmm's, and an activation in place writes all of it."""
    linear = nn.Linear(4, 6)
    trace = record(as_module(lambda x: linear(x).relu_() * 2), torch.zeros(2, 3, 4))
    (relu,) = (op for op in trace.forward_ops if op.packet == "aten.relu_")
    gradient = trace.values[trace.gradients[relu.outputs[0]]]
    assert gradient.producer is not None


def as_module(function: Callable[..., Any]) -> nn.Module:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

    return Wrapped()


def test_arguments_are_named_and_defaults_filled_in() -> None:
    (op,) = record(as_module(lambda x: F.leaky_relu(x, 0.3)), torch.zeros(2)).forward_ops
    assert (op.packet, op.arguments["negative_slope"]) == ("aten.leaky_relu", 0.3)
    (op,) = record(as_module(F.gelu), torch.zeros(2)).forward_ops
    assert op.arguments["approximate"] == "none"


def test_tied_parameters_are_one_value() -> None:
    model, batch = build("tied")
    trace = record(model, batch)
    assert trace.parameters["embed.weight"] == trace.parameters["head.weight"]
    assert trace.tied == {"embed.weight": ("head.weight",), "head.weight": ("embed.weight",)}
    assert {op.packet for op in trace.consumers(trace.parameters["head.weight"])} >= {"aten.embedding", "aten.t"}


def test_outputs_without_a_gradient_and_unused_parameters_are_named() -> None:
    model, batch = build("tied")
    trace = record(model, batch)
    assert any("output.1 (int64) is not differentiable" in note for note in trace.notes)
    trace = record(as_module(lambda x: x * 2), torch.zeros(2))
    assert any("unused" in note for note in trace.notes)
    frozen, x = build("mlp")
    frozen[0].weight.requires_grad_(False)  # type: ignore[index]
    assert any("Frozen" in note and "0.weight" in note for note in record(frozen, x).notes)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (torch.zeros(1), "Tensor"),
        ((torch.zeros(1), torch.zeros(2)), "Tensor Tensor"),
        ([torch.zeros(1), 3], "list"),
        ({"x": torch.zeros(1), "y": 3}, "x=Tensor y=int"),
        (torch.nn.utils.rnn.pack_sequence([torch.zeros(2, 1)]), "PackedSequence"),
    ],
)
def test_batches_reach_the_model_as_it_takes_them(batch: Any, expected: str) -> None:
    seen: list[str] = []

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        named = [f"{k}={type(v).__name__}" for k, v in kwargs.items()]
        seen.append(" ".join([*(type(a).__name__ for a in args), *named]))
        return torch.zeros(1)

    record(as_module(forward), batch)
    assert seen == [expected]


def test_a_dict_that_forward_does_not_take_apart_is_one_argument() -> None:
    class Takes(nn.Module):
        def forward(self, inputs: dict[str, Tensor]) -> Tensor:
            return inputs["a"] + 1

    assert record(Takes(), {"a": torch.zeros(2)}).inputs == {"input.0.a": 0}


def test_a_loss_is_walked_too() -> None:
    model, batch = build("mlp")
    target = torch.tensor([0, 1, 1])
    trace = record(model, batch, loss=lambda out: F.cross_entropy(out, target))
    assert trace.loss is not None
    assert [op.packet for op in trace.forward_ops if op.path == "(loss)"][:1] == ["aten._log_softmax"]
    assert trace.values[trace.gradients[trace.outputs["output.0"]]].shape == (3, 2)


def test_a_failing_forward_names_its_module_and_keeps_the_original() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(5, 2)))
    with pytest.raises(ModelError, match=r"module '1\.1'") as caught:
        record(model, torch.zeros(2, 3))
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert state(model, None) == state(model, None)
    assert not model[0].weight.is_meta


def test_data_dependent_control_flow_says_so_on_meta_and_runs_on_real_tensors() -> None:
    model = as_module(lambda x: x * 2 if x.sum().item() > 0 else x)
    with pytest.raises(NeedsValuesError, match="use device='real'"):
        record(model, torch.ones(2))
    assert any(op.packet == "aten.mul" for op in record(model, torch.ones(2), device="real").ops)


def test_constants_of_the_model_meet_meta_tensors() -> None:
    table = torch.arange(4.0)
    trace = record(as_module(lambda x: x + table), torch.zeros(2, 4))
    assert [v.kind for v in trace.values if v.shape == (4,)] == ["constant"]


def test_what_a_forward_caches_or_writes_is_undone() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(2))
            self.seen: list[Tensor] = []
            self.total = torch.zeros(2)

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(x)
            self.cache = x * 2
            self.total += 1
            self.w.data.mul_(3)
            return x * self.w

    for device in ("meta", "real"):
        model = Caching()
        record(model, torch.ones(2), device=device)
        assert (model.seen, hasattr(model, "cache")) == ([], False)
        assert model.total.tolist() == [0, 0]
        assert model.w.tolist() == [1, 1]


def test_observer_sees_real_tensors_and_whole_gradients() -> None:
    class Sees:
        def __init__(self) -> None:
            self.values: dict[int, Tensor] = {}
            self.gradients: dict[int, Tensor] = {}

        def restarted(self) -> None:
            raise AssertionError("nothing here needs a second walk")

        def given(self, value: Value, tensor: Tensor) -> None:
            self.values[value.id] = tensor.detach().clone()

        def replaced(self, old: int, new: int) -> None:
            pass

        def value(self, value: Value, op: Op, tensor: Tensor) -> None:
            self.values[value.id] = tensor.detach().clone()

        def gradient(self, value: int, tensor: Tensor) -> None:
            self.gradients[value] = tensor.clone()

    model, batch = build("mlp")
    sees = Sees()
    trace: Trace = record(model, batch, device="real", observer=sees, loss=lambda y: y.square().sum())
    y = model(batch)
    out = trace.outputs["output.0"]
    torch.testing.assert_close(sees.values[out], y.detach())
    torch.testing.assert_close(sees.gradients[out], 2 * y.detach())
    expected = torch.autograd.grad(y.square().sum(), list(model.parameters()))
    for name, gradient in zip(dict(model.named_parameters()), expected, strict=True):
        torch.testing.assert_close(sees.gradients[trace.parameters[name]], gradient)


def test_it_prints_as_a_table() -> None:
    model, batch = build("mlp")
    text = str(record(model, batch))
    assert "aten.addmm.default" in text
    assert text.startswith("Trace: ")


untyped: Any = record


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x: record(m, x[:0]), ArgumentError, "at least one sample"),
        (lambda m, x: untyped(lambda y: y, x), ArgumentError, "model: got a function"),
        (lambda m, x: untyped(m, x, device="gpu"), ArgumentError, "Use 'meta' or 'real'"),
        (lambda m, x: record(m, x, loss=lambda y: y), ArgumentError, "differentiable scalar"),
        (lambda m, x: untyped(m, x, loss=lambda y: 1.0), ArgumentError, "returns float"),
        (lambda m, x: record(m, x, loss=lambda y: y[9]), ModelError, "loss failed"),
        (lambda m, x: record(m.to("meta"), x, device="real"), ModelError, "no numbers"),
        (lambda m, x: record(nn.LazyLinear(2), x), ModelError, "lazy"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_bad_input(call: Callable[[nn.Module, Tensor], Any], error: type[Exception], message: str) -> None:
    model, batch = build("mlp")
    with pytest.raises(error, match=message):
        call(model, batch)
