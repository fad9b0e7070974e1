"""How signal and gradient travel through a plain network: what the chain formula says, and what is measured."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from initwell.apply.layouts import layout_of
from initwell.apply.plan import plan
from initwell.apply.write import init_
from initwell.charts import Chart, Panel, Series
from initwell.errors import ArgumentError
from initwell.measurement.probe import measure
from initwell.records import Record
from initwell.theory.chain import ChainLayer, chain

Build = Callable[[], nn.Sequential]
# The forward and the backward, by the names of the fields that hold them.
DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True)
class Travel(Record):
    """Second moments by layer, in the order of the forward.

    Attributes:
        layers: names of the layers with weights, the output layer last.
        forward: E[z²] of each layer's output before its activation.
        backward: E[g²] of the gradient with respect to each layer's input, the first layer's left out.
        overlap: of two samples at the last layer, E[z·z′]/E[z²]: at 1 the network has forgotten which image it saw;
            None where it was not measured.
    """

    layers: tuple[str, ...]
    forward: tuple[float, ...]
    backward: tuple[float, ...]
    overlap: float | None = None

    @property
    def forward_factor(self) -> float:
        """Return what is left of the signal's size (rms) at the last layer, as a share of the first layer's."""
        return _ratio(self.forward[-1], self.forward[0])

    @property
    def backward_factor(self) -> float:
        """Return what is left of the gradient's size (rms) at the second layer, as a share of the last layer's."""
        return _ratio(self.backward[0], self.backward[-1])


def _ratio(end: float, start: float) -> float:
    # A network of zeros has nothing to take a share of: nothing is left.
    return math.sqrt(end / start) if start > 0 else 0.0


def weighted(model: nn.Sequential) -> list[tuple[str, nn.Module]]:
    """Return the layers of a plain network that have weights, by name, in order."""
    return [(name, module) for name, module in model.named_children() if isinstance(module, (nn.Linear, nn.Conv2d))]


def predicted(model: nn.Sequential, scheme: str, batch: Tensor) -> Travel:
    """Return what the chain formula says of a plain network under a scheme.

    Args:
        model: layers and ReLUs in a row; not touched.
        scheme: an initialization.
        batch: (N, …) input, of which the second moment counts.

    Returns:
        Second moments by layer, for a gradient of unit variance on every output.

    Raises:
        ArgumentError: a model with fewer than two layers.
    """
    decided = {row.parameter: row for row in plan(model, scheme).rows}
    layers = weighted(model)
    if len(layers) < 2:
        raise ArgumentError("model", f"{len(layers)} layers with weights", "Give a network of at least two.")
    links = []
    for index, (name, module) in enumerate(layers):
        layout = layout_of(module, "weight")
        bias = decided.get(f"{name}.bias")
        links.append(
            ChainLayer(
                layout.fan_in,
                layout.fan_out,
                (decided[f"{name}.weight"].std or 0.0) ** 2,
                (bias.std or 0.0) ** 2 if bias else 0.0,
                "relu" if index < len(layers) - 1 else "identity",
            )
        )
    rows = chain(links, q0=float(batch.double().square().mean())).rows
    names = tuple(name for name, _ in layers)
    forward = tuple(float(row["forward_second_moment"]) for row in rows)
    return Travel(names, forward, tuple(float(row["gradient_second_moment"]) for row in rows[1:]))


def measured(build: Build, scheme: str, batch: Tensor, seed: int) -> Travel:
    """Initialize a network, send one batch forward and a unit gradient back, and return what was measured.

    Args:
        build: makes the network.
        scheme: an initialization.
        batch: (N, …) input.
        seed: of the weights and of the gradient.
    """
    model = build()
    init_(model, scheme, seed=seed)
    found = measure(model, batch, seed=seed)
    last = {row["path"]: row for row in found.rows}
    names = tuple(name for name, _ in weighted(model))
    forward = tuple(float(last[name]["forward_rms"]) ** 2 for name in names)
    # A layer's input is what the activation before it put out.
    children = [name for name, _ in model.named_children()]
    sources = [_source(children, name, last) for name in names[1:]]
    backward = tuple(float(last[source]["gradient_rms"] or 0.0) ** 2 for source in sources)
    return Travel(names, forward, backward, last[names[-1]]["overlap"])


def _source(children: Sequence[str], name: str, rows: Mapping[str, object]) -> str:
    # The nearest module before this one that made new numbers; a flattening made none.
    return next(child for child in reversed(children[: children.index(name)]) if child in rows)


def travel_chart(name: str, title: str, runs: Mapping[str, tuple[Travel, Sequence[Travel]]], remark: str = "") -> Chart:
    """Build the chart of second moments by depth: theory as a line through the measured points.

    Args:
        name: the chart's file name.
        title: the line above it.
        runs: scheme → (what the formula says, what each seed measured).
        remark: a sentence to end the caption with.
    """
    words = {
        "forward": ("Signal, forward", "E[z²] of the layer's output"),
        "backward": ("Gradient, backward", "E[g²] at the layer's input"),
    }
    panels = []
    for direction in DIRECTIONS:
        series: list[Series] = []
        for scheme, (theory, seeds) in runs.items():
            first = 1 if direction == "forward" else 2
            formula = getattr(theory, direction)
            x = tuple(float(k) for k in range(first, first + len(formula)))
            by_layer = list(zip(*(getattr(one, direction) for one in seeds), strict=True))
            middle = tuple(sum(values) / len(values) for values in by_layer)
            low, high = tuple(map(min, by_layer)), tuple(map(max, by_layer))
            series += [
                Series(f"{scheme}, theory", x, formula),
                Series(f"{scheme}, measured", x, middle, low, high, "points"),
            ]
        panels.append(Panel(words[direction][0], "layer", words[direction][1], tuple(series), y_log=True))
    count = len(next(iter(runs.values()))[1])
    caption = (
        f"Second moments by layer for one batch of real images and a gradient of unit variance on the outputs. The "
        f"line is the chain formula, points are the mean of {count} seeds, whiskers their range. Level is healthy."
    )
    return Chart(name, title, f"{caption} {remark}".strip(), tuple(panels))


def magnitudes(
    build: Build, scheme: str, batch: Tensor, layers: Sequence[str], seed: int
) -> dict[str, dict[str, Tensor]]:
    """Return the values behind the histograms: |z| of some layers' outputs, and |g| of the gradients that reach them.

    Args:
        build: makes the network.
        scheme: an initialization.
        batch: (N, …) input.
        layers: names of modules.
        seed: of the weights and of the unit gradient on the outputs.

    Returns:
        Direction → layer → flat tensor of magnitudes.
    """
    model = build()
    init_(model, scheme, seed=seed)
    kept: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        output.retain_grad()
        kept[name] = output

    def hook(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _module, _inputs, output: keep(name, output)

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_children() if name in layers]
    try:
        output = model(batch)
        start = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed))
        output.backward(start)
    finally:
        for handle in handles:
            handle.remove()
    gradients = {name: value.grad for name, value in kept.items()}
    return {
        "forward": {name: value.detach().abs().flatten() for name, value in kept.items()},
        "backward": {name: grad.abs().flatten() for name, grad in gradients.items() if grad is not None},
    }


def histogram_chart(
    name: str, title: str, build: Build, schemes: Sequence[str], batch: Tensor, layers: Sequence[str], direction: str
) -> Chart:
    """Build histograms by layer of the magnitudes of signal or gradient, one panel a scheme.

    Args:
        name: the chart's file name.
        title: the line above it.
        build: makes the network.
        schemes: one panel each.
        batch: (N, …) input.
        layers: names of modules, one histogram each.
        direction: ``forward`` or ``backward``.
    """
    what = "|z|, output before ReLU" if direction == "forward" else "|g|, gradient of that output"
    panels, left_out = [], []
    for scheme in schemes:
        values = magnitudes(build, scheme, batch, layers, 0)[direction]
        series = [Series(layer, *_histogram(found), style="bars") for layer, found in values.items() if found.any()]
        if series:
            panels.append(Panel(scheme, what, "share of all values", tuple(series), x_log=True))
        else:
            left_out.append(scheme)
    caption = "Each histogram is one layer, on a logarithmic axis. Where they lie over one another the size is kept."
    if left_out:
        caption += f" Not shown, for every value is exactly zero: {', '.join(left_out)}."
    return Chart(name, title, caption, tuple(panels))


def _histogram(values: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    # Exact zeros have no logarithm; they stay in the denominator, so the bars of a dying layer are lower.
    logs = values[values > 0].double().log10()
    middle = float(logs.median())
    low, high = max(float(logs.min()), middle - 3.0), float(logs.max()) + 1e-9
    counts = torch.histc(logs.clamp(min=low), bins=40, min=low, max=high)
    step = (high - low) / 40
    centres = tuple(10.0 ** (low + (i + 0.5) * step) for i in range(40))
    return centres, tuple((counts / values.numel()).tolist())
