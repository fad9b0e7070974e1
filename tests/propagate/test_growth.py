"""Growth by block, against what is known of such stacks; and where samples become alike."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import initwell as iw
from initwell.propagate.result.blocks import repeated
from initwell.propagate.result.growth import Growth
from initwell.theory.maps import depth_scales, fixed_points
from initwell.trace.recorder import record


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scaled(model: nn.Module, gain: float) -> nn.Module:
    """Draw every weight N(0, gain²/fan_in), and set the biases to 0."""
    iw.init_(model, iw.normal(std=1.0), seed=3, only="*weight")
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(gain / math.sqrt(p.shape[1]) if p.ndim > 1 else 0.0)
    return model


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.outer(torch.relu(self.inner(x)))
        return x + y


class Stack(nn.Module):
    """Blocks between a stem and a head."""

    def __init__(self, block: Callable[[], nn.Module], depth: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(32, 256), nn.Linear(256, 10)
        self.layers = nn.ModuleList(block() for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        y: Tensor = self.head(x)
        return y


def only(model: nn.Module, batch: object) -> Growth:
    (growth,) = iw.predict(model, batch).growth
    return growth


def test_linear_layers_multiply_by_their_gain() -> None:
    # Weights N(0, g²/n): forward and backward by g a layer, each drawn matrix by 1 ± 1/n = 0.4 % of its own.
    model = scaled(nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(8))), 1.3)
    growth = only(model, normal(64, 256))
    assert [row["block"] for row in growth.rows] == [str(i) for i in range(8)]
    for row in growth.rows:
        assert row["forward_growth"] == pytest.approx(1.3, rel=0.02)
        assert row["backward_growth"] == pytest.approx(1.3, rel=0.02)
    assert growth.forward == pytest.approx(1.3, rel=0.005) and growth.backward == pytest.approx(1.3, rel=0.005)
    assert growth.forward_total == pytest.approx(1.3**8, rel=0.04)


def test_a_block_of_a_plain_stack_holds_its_activation() -> None:
    layers = [m for _ in range(6) for m in (nn.Linear(256, 256, bias=False), nn.ReLU())]
    growth = only(scaled(nn.Sequential(*layers), math.sqrt(2)), normal(64, 256))
    # The first five reach to the next layer's input, past the ReLU; the last ends at its own output.
    assert [row["forward_growth"] for row in growth.rows[:5]] == pytest.approx([1.0] * 5, rel=0.03)
    assert growth.rows[5]["forward_growth"] == pytest.approx(math.sqrt(2), rel=0.03)


def test_residual_blocks_add_their_branch() -> None:
    # x + W₂relu(W₁x) with gains √2 and 1: the second moment doubles, in both directions.
    model = scaled(Stack(lambda: Residual(256), 5), 1.0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("inner.weight"):
                p.mul_(math.sqrt(2))
    growth = only(model, normal(64, 32))
    assert growth.forward_total is not None
    assert growth.module_type.endswith("Residual") and len(growth.rows) == 5
    for row in growth.rows:
        assert row["forward_growth"] == pytest.approx(math.sqrt(2), rel=0.03)
        assert row["backward_growth"] == pytest.approx(math.sqrt(2), rel=0.03)
    assert growth.forward == pytest.approx(growth.forward_total ** (1 / 5))
    assert "layers.0 to layers.4 multiplies the signal by 1.4" in growth.said()


SUMS: dict[str, Callable[[Tensor, nn.Module, Tensor], Tensor]] = {
    "sum": lambda x, block, size: x + block(x),
    "scaled": lambda x, block, size: size * block(x) + x,
    "by a view": lambda x, block, size: x + block(x.view(8, 8, 256)).view_as(x),
    "product and sum": lambda x, block, size: torch.addcmul(x, size, block(x)),
}


class Outside(nn.Module):
    """Blocks that are added to the stream where they are called."""

    def __init__(self, depth: int, how: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(256, 256), nn.Tanh()) for _ in range(depth))
        self.size, self.how = nn.Parameter(torch.full((256,), 0.5)), SUMS[how]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.how(x, layer, self.size)
        return x


@pytest.mark.parametrize("how", SUMS)
def test_what_leaves_the_last_block_is_the_stream_that_it_is_added_to(how: str) -> None:
    model = Outside(4, how)
    scaled(model.layers, 1.0)
    found = iw.predict(model, normal(64, 256))
    (growth,) = found.growth
    assert all(row["forward_growth"] > 1 and row["backward_growth"] > 1 for row in growth.rows)
    assert growth.forward_total == pytest.approx(found.rows[-1]["forward_rms"] / found.inputs[0]["forward_rms"])


def test_growth_telescopes_to_the_total_and_measures_what_measure_finds() -> None:
    torch.manual_seed(0)
    model, batch = Stack(lambda: Residual(256), 6), normal(64, 32)
    growth, real = only(model, batch), iw.measure(model, batch)
    assert math.prod(row["forward_growth"] for row in growth.rows) == pytest.approx(growth.forward_total, rel=1e-9)
    rows = [row for row in real.rows if row["op"] == "aten.add"]
    for row, entered, left in zip(growth.rows[1:], rows, rows[1:], strict=False):
        assert row["forward_growth"] == pytest.approx(left["forward_rms"] / entered["forward_rms"], rel=0.03)
        assert row["backward_growth"] == pytest.approx(entered["gradient_rms"] / left["gradient_rms"], rel=0.03)


class Attention(nn.Module):
    """A block that reads a bias made outside before it reads the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(256, 256)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        y: Tensor = self.mix(x)
        return torch.tanh(bias) + y


def test_the_stream_is_what_came_through_the_block_before() -> None:
    class Biased(Stack):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            bias = x * 3.0
            for layer in self.layers:
                x = layer(x, bias)
            return x

    growth = only(Biased(Attention, 4), normal(8, 32))
    assert len(growth.rows) == 4
    shown = [row["forward_rms"] for row in growth.rows[1:]]
    assert all(a != growth.rows[0]["forward_rms"] for a in shown)
    assert math.prod(row["forward_growth"] for row in growth.rows) == pytest.approx(growth.forward_total)


def test_the_blocks_of_stages_are_one_chain_and_stages_are_no_blocks() -> None:
    class Stages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            stages = [nn.Sequential(*(Residual(w) for _ in range(n))) for w, n in ((32, 2), (64, 3))]
            self.stage1, self.stage2 = stages
            self.between = nn.Linear(32, 64)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.stage2(self.between(self.stage1(x)))
            return y

    growth = only(Stages(), normal(8, 32))
    assert [row["block"] for row in growth.rows] == ["stage1.0", "stage1.1", "stage2.0", "stage2.1", "stage2.2"]


def test_an_encoder_and_a_decoder_are_two_chains() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = (nn.ModuleList(Residual(32) for _ in range(n)) for n in (3, 2))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            for layer in self.encoder:
                x = layer(x)
            for layer in self.decoder:
                y = layer(y)
            return x * y

    found = iw.predict(Both(), (normal(8, 32), normal(8, 32, seed=1))).growth
    assert [[row["block"] for row in growth.rows] for growth in found] == [
        ["encoder.0", "encoder.1", "encoder.2"],
        ["decoder.0", "decoder.1"],
    ]


def test_what_a_decoder_looks_up_in_the_encoder_is_not_its_stream() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.cross = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
            x = x + torch.tanh(self.own(x))
            return x if memory is None else x + torch.tanh(self.cross(memory))

    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = (nn.ModuleList(Crossed() for _ in range(3)) for _ in range(2))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            for layer in self.encoder:
                x = layer(x)
            for layer in self.decoder:
                y = layer(y, x)
            return y

    batch = (normal(8, 32), 3 * normal(8, 32, seed=1))
    found = iw.predict(Translator(), batch).growth
    assert [growth.rows[0]["block"] for growth in found] == ["encoder.0", "decoder.0"]
    assert found[1].rows[0]["forward_rms"] == pytest.approx(3.0, rel=0.2)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for i in range(1, 7):
            self.add_module(f"branch{i}", nn.Sequential(nn.Linear(32, 32), nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.children()], 1)


@pytest.mark.parametrize("model", [nn.Linear(32, 4), nn.Sequential(nn.Linear(32, 8), nn.ReLU()), Branches()])
def test_models_without_a_chain_of_blocks_have_no_growth(model: nn.Module) -> None:
    found = iw.predict(model, normal(8, 32))
    assert found.growth == () and len(found.charts()) == 1


def test_what_is_unknown_stays_unknown() -> None:
    model = Stack(lambda: Residual(256), 4)
    found = iw.predict(model, normal(8, 32), rules={"aten.relu": lambda call: (None,)})
    (growth,) = found.growth
    assert growth.rows[0]["forward_rms"] is not None and growth.rows[0]["forward_growth"] is None
    assert growth.forward is None and growth.backward is None and growth.said() == ""
    assert [chart.name for chart in found.charts()] == ["predicted-by-depth"]


def test_a_dead_stack_has_growth_zero_and_then_none() -> None:
    model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(3)))
    nn.init.zeros_(next(model.parameters()))
    assert [row["forward_growth"] for row in only(model, normal(8, 64)).rows] == [0.0, None, None]


def test_the_repeated_modules_are_found() -> None:
    trace = record(Stack(lambda: Residual(256), 3), normal(2, 32))
    assert repeated(trace) == {"layers.0", "layers.1", "layers.2"}


def tanh_stack(depth: int, variance: float) -> nn.Module:
    layers = [m for _ in range(depth) for m in (nn.Linear(512, 512), nn.Tanh())]
    model = scaled(nn.Sequential(*layers), math.sqrt(variance))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.copy_(normal(512, seed=len(name) + int(name.split(".")[0])) * math.sqrt(0.05))
    return model


@pytest.mark.parametrize(("variance", "depth"), [(0.5, 14), (0.8, 20), (1.0, 30)])
def test_the_depth_scale_is_that_of_mean_field_theory(variance: float, depth: int) -> None:
    # Ordered phase: 1 − c falls by χ₁ a layer near 1, so ξ = −1/ln χ₁ (Schoenholz et al. 2017, eq. 10). Each layer of
    # width 512 has its variance off by √(2/512) = 6 % at random, which moves ln χ₁ = −0.28 to −0.84 by 2 % on average
    # over the ten layers and more of the fit. Neighbouring cases differ by 60 %.
    (point,) = fixed_points("tanh", variance, 0.05)
    found = only(tanh_stack(depth, variance), normal(16, 512) * math.sqrt(point.q))
    assert found.depth_scale == pytest.approx(depth_scales("tanh", variance, 0.05).xi_c, rel=0.06)


def test_where_samples_stay_apart_there_is_no_depth() -> None:
    # Chaotic phase: the overlap goes to a fixed point below 1.
    found = iw.predict(tanh_stack(12, 4.0), normal(16, 512))
    assert found.overlap_depth is None and found.growth[0].depth_scale is None
    assert not any("indistinguishable" in note for note in found.notes)


def test_the_depth_where_samples_become_alike_is_a_layers_and_in_words() -> None:
    found = iw.predict(tanh_stack(12, 0.5), normal(16, 512))
    depth = found.overlap_depth
    assert depth is not None
    row = found.rows[depth - 1]
    assert row["op"] == "aten.addmm" and row["overlap"] >= 0.99
    layers = [r for r in found.rows if r["op"] == "aten.addmm"]
    assert all(r["overlap"] < 0.99 for r in layers[: layers.index(row)])
    (note,) = (n for n in found.notes if n.startswith("Samples become indistinguishable"))
    assert f"from {row['path']} (aten.addmm, row {depth} of {len(found.rows)}) on" in note
    assert found.to_dict()["overlap_depth"] == depth
    panel = found.charts()[0].panels[2]
    assert panel.series[-1].x == (float(depth), float(depth)) and panel.series[-1].style == "dashed"


def test_a_gate_that_is_alike_for_all_samples_in_passing_is_no_depth() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = (nn.Linear(64, 64, bias=False) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x)
            y: Tensor = self.three(x * torch.sigmoid(self.two(0.01 * x)))
            return torch.softmax(0.01 * y, -1)

    found = iw.predict(Gated(), normal(16, 64))
    overlaps = [row["overlap"] for row in found.rows]
    assert overlaps[-1] > 0.99 and found.overlap_depth is None


def test_update_ratios_have_the_words_and_numbers_of_measure() -> None:
    torch.manual_seed(0)
    model, batch = Stack(lambda: Residual(256), 3), normal(64, 32)
    with torch.no_grad():
        model.head.bias.zero_()
    predicted = iw.predict(model, batch, learning_rate=0.1)
    runs = [iw.measure(model, batch, learning_rate=0.1, seed=seed).parameters for seed in range(12)]
    for row, *there in zip(predicted.parameters, *runs, strict=True):
        ratios = [found["update_ratio"] for found in there]
        if row["parameter"] == "head.bias":
            assert row["update_ratio"] is None and set(ratios) == {None}
            continue
        assert row["update_ratio"] == 0.1 * row["gradient_rms"] / row["weight_rms"]
        # Of a bias all gradients are sums with the 10 numbers of the head's, 1/√(2·10·12) = 6 % over 12 starts.
        assert row["update_ratio"] == pytest.approx(math.sqrt(sum(r * r for r in ratios) / 12), rel=0.2)
    assert any("learning rate 0.1 changes a weight by" in note for note in predicted.notes)
    assert {row["update_ratio"] for row in iw.predict(model, batch).parameters} == {None}
