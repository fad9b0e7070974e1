"""1/n, 2/(n_in+n_out) and 2/n: second moments per layer, forward and backward, against the chain formula."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from initwell.charts import Chart, Panel, Series
from initwell.experiments.reproduce.bands import band, points_over_seeds
from initwell.experiments.reproduce.claim import Claim, Finding, Settings
from initwell.experiments.reproduce.evidence import ratio_over_seeds, verdict_of, within
from initwell.experiments.reproduce.images import flat_images, of_unit_rms
from initwell.experiments.reproduce.stacks import (
    Array,
    Moments,
    chain_of,
    draw_weights,
    rescaled,
    run_stack,
    weight_variance,
)
from initwell.experiments.reproduce.wording import listed
from initwell.experiments.statistics import Verdict
from initwell.initializers.base import Initializer
from initwell.initializers.scaling import kaiming, lecun, xavier

SCHEMES: Mapping[str, Callable[[], Initializer]] = {
    "1/n": lambda: lecun(distribution="normal"),
    "2/(n_in+n_out)": lambda: xavier(distribution="normal"),
    "2/n": lambda: kaiming(distribution="normal"),
}
ACTIVATIONS = ("identity", "relu", "tanh")
HIDDEN = (500, 400)
LAYERS = 10
IMAGES = 100
# The formula's factor per layer must be right within 5 %: over 10 layers that is a factor 1.6, over 50 a factor 11,
# where a rule stops being one. Seeds scatter it by about 2 %.
TOLERANCE = 0.05

Runs = Mapping[tuple[str, str], list[Moments]]


def one_draw(x: Array, seed: int) -> dict[tuple[str, str], Moments]:
    """Draw one stack and measure it under every scheme and activation."""
    base = SCHEMES["1/n"]()
    drawn = draw_weights(_widths(x.shape[1]), base, seed)
    found: dict[tuple[str, str], Moments] = {}
    for scheme, make in SCHEMES.items():
        weights = rescaled(drawn, base, make())
        found |= {(scheme, phi): run_stack(weights, phi, x, seed) for phi in ACTIVATIONS}
    return found


def _widths(pixels: int) -> tuple[int, ...]:
    return (pixels, *(HIDDEN[k % 2] for k in range(LAYERS)))


def formula_factor(widths: Sequence[int], scheme: str, phi: str, direction: str) -> float:
    """Return the tutorials' factor per layer: n·Var(w), halved by ReLU, with tanh taken for the identity.

    Args:
        widths: successive widths, input first.
        scheme: a key of ``SCHEMES``.
        phi: activation's name.
        direction: ``forward`` counts layers 2 … L with n_in, ``backward`` layers 1 … L−1 with n_out: those which have
            φ on the side where the signal enters them.

    Returns:
        The geometric mean over those layers.
    """
    pairs = list(pairwise(widths))
    half = 0.5 if phi == "relu" else 1.0
    counted = pairs[1:] if direction == "forward" else pairs[:-1]
    factors = [
        half * (i if direction == "forward" else o) * weight_variance(SCHEMES[scheme](), i, o) for i, o in counted
    ]
    return float(np.exp(np.mean(np.log(factors))))


def factor_of(values: Sequence[float], direction: str) -> float:
    """Return the geometric mean factor per layer of one stack's second moments, in the direction of travel.

    >>> factor_of([8.0, 4.0, 2.0], "forward"), factor_of([8.0, 4.0, 2.0], "backward")
    (0.5, 2.0)
    """
    ends = values[-1] / values[0] if direction == "forward" else values[0] / values[-1]
    return float(ends ** (1 / (len(values) - 1)))


def judge(rows: Sequence[Mapping[str, Any]]) -> Verdict:
    """Give the verdict on the tutorials' formula over all schemes, activations and directions."""
    return verdict_of([r["judgement"] for r in rows])


def conclusion(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in one sentence for which activations the product gives the sizes."""
    product = "The product n·Var(w), halved for ReLU, gives"
    of = {phi: {r["judgement"] for r in rows if r["activation"] == phi} for phi in [r["activation"] for r in rows]}
    good = [phi for phi, found in of.items() if found == {"holds"}]
    off = [phi for phi in of if phi not in good]
    if not off:
        return f"{product} every layer's size, forward and backward, for {listed(good)}."
    if set().union(*of.values()) == {"fails"}:
        return f"{product} the sizes in no stack tried."
    if not good:
        return f"{product} the sizes in some stacks alone: for {listed(off)} it is off in others."
    return f"{product} every layer's size, forward and backward, for {listed(good)}, but not always for {listed(off)}."


def statement(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in words what the numbers say."""
    flat = [
        f"{r['scheme']} with {r['activation']} {r['direction']} {r['value']:.3f} a layer"
        for r in rows
        if (r["scheme"], r["activation"]) in {("1/n", "identity"), ("1/n", "relu"), ("2/n", "relu")}
        and r["direction"] == "forward"
    ]
    worst = {
        phi: max((abs(r["value"] / r["formula"] - 1) for r in rows if r["activation"] == phi), default=0.0)
        for phi in dict.fromkeys(r["activation"] for r in rows)
    }
    exact = max(abs(r["value"] / r["chain"] - 1) for r in rows)
    errors = ", ".join(f"{phi} {100 * w:.1f} %" for phi, w in worst.items())
    return (
        f"{conclusion(rows)} Largest error of the factor per layer: {errors}. Measured: {'; '.join(flat)}. With E[φ²] "
        f"and E[φ′²] at each layer's own size in place of ½ and 1, the error is {100 * exact:.1f} % at most."
    )


def _rows(widths: Sequence[int], runs: Runs) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for (scheme, phi), found in runs.items():
        chain = chain_of(widths, SCHEMES[scheme](), phi, 1.0)
        for direction in ("forward", "backward"):
            measured = ratio_over_seeds([factor_of(getattr(m, direction), direction) for m in found])
            formula = formula_factor(widths, scheme, phi, direction)
            edge = within(measured["low"] / formula, measured["high"] / formula, 1 - TOLERANCE, 1 + TOLERANCE)
            key = "forward_second_moment" if direction == "forward" else "gradient_second_moment"
            exact = factor_of([r[key] for r in chain.rows], direction)
            rows.append(
                {
                    "scheme": scheme,
                    "activation": phi,
                    "direction": direction,
                    "n": len(found),
                    **measured,
                    "formula": formula,
                    "chain": exact,
                    "judgement": edge,
                }
            )
    return rows


def _panel(widths: Sequence[int], runs: Runs, phi: str, direction: str) -> Panel:
    series: list[Series] = []
    layers = tuple(range(1, len(widths)))
    for scheme in SCHEMES:
        chain = chain_of(widths, SCHEMES[scheme](), phi, 1.0)
        key = "forward_second_moment" if direction == "forward" else "gradient_second_moment"
        series.append(Series(f"{scheme}, theory", layers, tuple(r[key] for r in chain.rows)))
        points = points_over_seeds((getattr(m, direction) for m in runs[scheme, phi]), ratios=True)
        series.append(band(f"{scheme}, measured", layers, points, "points"))
    if phi == "tanh":
        pairs = list(pairwise(widths))
        factors = [i * weight_variance(SCHEMES["1/n"](), i, o) for i, o in pairs]
        if direction == "backward":
            factors = [o * weight_variance(SCHEMES["1/n"](), i, o) for i, o in reversed(pairs)]
        linear = np.cumprod(factors) if direction == "forward" else np.cumprod(factors)[::-1]
        series.append(Series("1/n, were tanh linear", layers, tuple(linear.tolist()), style="dashed"))
    what = "E[y²] of its output" if direction == "forward" else "E[g²] at its input"
    return Panel(f"{phi}, {direction}", "layer", what, tuple(series), y_log=True)


def run(settings: Settings) -> Finding:
    """Push real images and unit gradients through stacks of unequal layers under the three rules."""
    seeds = 2 * settings.seeds if settings.quick else 6 * settings.seeds
    x = of_unit_rms(flat_images(settings, "standardize", IMAGES)).astype(np.float32)
    widths = _widths(x.shape[1])
    found = settings.map(one_draw, range(seeds), shared=x)
    runs = {(scheme, phi): [f[scheme, phi] for f in found] for phi in ACTIVATIONS for scheme in SCHEMES}
    rows = _rows(widths, runs)
    chart = Chart(
        "calibrated",
        "Three rules through ten layers of 500 and 400 units",
        "Real images in at the left, a unit gradient in at the right. Lines: the chain formula with E[φ²] at each "
        "layer's own size.",
        tuple(_panel(widths, runs, phi, d) for d in ("forward", "backward") for phi in ACTIVATIONS),
    )
    return Finding(
        judge(rows),
        statement(rows),
        tuple(rows),
        (chart,),
        conditions={
            "seeds": seeds,
            "images": len(x),
            "widths": "-".join(map(str, widths)),
            "tolerance": TOLERANCE,
        },
    )


CLAIM = Claim(
    name="calibrated",
    title="Three rules and the chain formula",
    claim="Under Var(w) = 1/n, 2/(n_in+n_out) or 2/n the size of the signal at layer k is q₀·Π n_in·Var(w), that of "
    "the gradient Π n_out·Var(w), each factor halved by ReLU and left alone by tanh.",
    source="Glorot & Bengio (2010), equations 5 to 12; He et al. (2015), equations 9 and 13; CS231n notes",
    run=run,
)
