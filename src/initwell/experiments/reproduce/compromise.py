"""Forward-only, backward-only and averaged variance where layers are not square: which side pays, and how much."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from initwell.charts import Chart, Panel, Series
from initwell.experiments.reproduce.bands import band, points_over_seeds
from initwell.experiments.reproduce.claim import Claim, Finding, Settings
from initwell.experiments.reproduce.evidence import Judgement, judged, over_seeds, verdict_of
from initwell.experiments.reproduce.images import flat_images, of_unit_rms
from initwell.experiments.reproduce.stacks import Array, Moments, chain_of, draw_weights, rescaled, run_stack
from initwell.experiments.reproduce.wording import clause, listed
from initwell.experiments.statistics import Verdict
from initwell.initializers.scaling import VarianceScaling

# One entry a hidden layer; the image's pixels come before. All end as they are: no 10-unit head, whose few outputs
# would scatter the backward pass more than any rule does.
SHAPES: Mapping[str, tuple[int, ...]] = {
    "square": (400,) * 12,
    "tapering": (800, 700, 600, 520, 450, 390, 340, 290, 250, 210, 180, 150),
    "alternating": (100, 800) * 6,
}
RULES: Mapping[str, str] = {"forward only": "fan_in", "backward only": "fan_out", "average": "average"}
SCALES: Mapping[str, float] = {"identity": 1.0, "relu": 2.0}
IMAGES = 50
# A rule's cost is its worst side's drift. A tie is a difference within 0.1 decades (a factor 1.26 of the rms): less
# than one unlucky draw of twelve layers, and too little to see in training.
TIE = 0.1

Runs = Mapping[tuple[str, str, str], list[Moments]]  # by shape, activation, rule


def one_draw(x: Array, job: tuple[str, int]) -> dict[tuple[str, str, str], Moments]:
    """Draw one stack by (shape, seed) and measure it under every activation and rule."""
    shape, seed = job
    base = _scheme("identity", "forward only")
    drawn = draw_weights((x.shape[1], *SHAPES[shape]), base, seed)
    return {
        (shape, phi, rule): _without_unused(run_stack(rescaled(drawn, base, _scheme(phi, rule)), phi, x, seed), phi)
        for phi in SCALES
        for rule in RULES
    }


def _scheme(phi: str, rule: str) -> VarianceScaling:
    return VarianceScaling(SCALES[phi], mode=RULES[rule], distribution="normal")


def _without_unused(moments: Moments, phi: str) -> Moments:
    # Images are not rectified, nor is the gradient that comes in at the top: one factor 2 of ReLU's rule, the same
    # for all three rules and depths, has nothing to make up for on either side.
    unused = SCALES[phi]
    return Moments(
        tuple(v / unused for v in moments.forward),
        tuple(v / unused for v in moments.spread),
        tuple(v / unused for v in moments.backward),
    )


def drift(values: Sequence[float]) -> float:
    """Return how far the rms strays over a stack: the largest |log₁₀ rms| relative to where the signal came in.

    >>> drift([1.0, 100.0, 1.0])
    1.0
    """
    return max(abs(0.5 * math.log10(v)) for v in values)


def worse_side(moments: Moments) -> float:
    """Return the drift of the side that pays more."""
    return max(drift(moments.forward), drift(moments.backward))


def judge_shape(low: float, high: float) -> Judgement:
    """Judge the average on one shape by the interval of its worse side's drift minus the better one-sided rule's.

    As a compromise it holds if it is no worse than a tie, fails if it is worse than one, and is open in between.
    """
    return judged(low, high, below=TIE)


def judge(rows: Sequence[Mapping[str, Any]]) -> Verdict:
    """Give the verdict over all shapes and activations, from the rows of the average."""
    return verdict_of([r["judgement"] for r in rows if r["rule"] == "average"])


def conclusion(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in one sentence on which shapes the average is as good as the better one-sided rule."""
    shapes: dict[str, list[Judgement]] = {}
    for row in rows:
        if row["rule"] == "average":
            shapes.setdefault(row["shape"], []).append(row["judgement"])
    good = [shape for shape, found in shapes.items() if set(found) == {"holds"}]
    worse = [shape for shape, found in shapes.items() if set(found) == {"fails"}]
    other = [shape for shape in shapes if shape not in (*good, *worse)]
    if len(worse) == len(shapes):
        return "On every shape the average's worse side drifts further than that of the better one-sided rule."
    told = clause("as good as the better one-sided rule, or better, on {} stacks", good)
    told += clause("worse than the better one-sided rule on {} stacks", worse)
    told += clause("one or the other, or not settled, on {} stacks", other)
    return f"The average is {listed(told)}."


def statement(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in words what the numbers say."""
    parts = []
    for row in rows:
        if row["rule"] != "average" or row["activation"] != "identity":
            continue
        others = {r["rule"]: r for r in rows if r["shape"] == row["shape"] and r["activation"] == "identity"}
        sides = ", ".join(f"{name} {r['forward']:+.2f}/{r['backward']:+.2f}" for name, r in others.items())
        parts.append(f"{row['shape']}: {sides}")
    return (
        f"{conclusion(rows)} The log₁₀ rms at the far end, forward/backward: {'; '.join(parts)}. One-sided rules pay "
        "n_out/n_in, whose product over layers is only last width over first; the average pays 2·n_in/(n_in+n_out) on "
        "both sides, and where widths go up and down again those factors multiply to less than 1."
    )


def _rows(runs: Runs, pixels: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for (shape, phi, rule), found in runs.items():
        worst = over_seeds([worse_side(m) for m in found])
        theory_forward, theory_backward = _theory(shape, phi, rule, pixels)
        row = {
            "shape": shape,
            "activation": phi,
            "rule": rule,
            "n": len(found),
            **worst,
            "forward": float(np.mean([0.5 * math.log10(m.forward[-1]) for m in found])),
            "backward": float(np.mean([0.5 * math.log10(m.backward[0]) for m in found])),
            "theory_forward": 0.5 * math.log10(theory_forward[-1]),
            "theory_backward": 0.5 * math.log10(theory_backward[0]),
            "over_best": None,
            "over_best_low": None,
            "over_best_high": None,
            "judgement": None,
        }
        if rule == "average":
            gap = over_seeds(_gaps(runs, shape, phi))
            row |= {
                "over_best": gap["value"],
                "over_best_low": gap["low"],
                "over_best_high": gap["high"],
                "judgement": judge_shape(gap["low"], gap["high"]),
            }
        rows.append(row)
    return rows


def _gaps(runs: Runs, shape: str, phi: str) -> list[float]:
    # Seed by seed: the rules scale the same normal numbers, so that their common scatter cancels.
    sides = {rule: [worse_side(m) for m in runs[shape, phi, rule]] for rule in RULES}
    best = min(("forward only", "backward only"), key=lambda rule: float(np.mean(sides[rule])))
    return [a - b for a, b in zip(sides["average"], sides[best], strict=True)]


def _theory(shape: str, phi: str, rule: str, pixels: int) -> tuple[list[float], list[float]]:
    chain = chain_of((pixels, *SHAPES[shape]), _scheme(phi, rule), phi, 1.0)
    unused = SCALES[phi]
    forward = [r["forward_second_moment"] / unused for r in chain.rows]
    return forward, [r["gradient_second_moment"] / unused for r in chain.rows]


def _panel(runs: Runs, shape: str, side: str, pixels: int) -> Panel:
    series: list[Series] = []
    layers = tuple(range(1, len(SHAPES[shape]) + 1))
    for rule in RULES:
        theory = _theory(shape, "identity", rule, pixels)[side == "backward"]
        found = [[math.sqrt(v) for v in getattr(m, side)] for m in runs[shape, "identity", rule]]
        series.append(Series(f"{rule}, theory", layers, tuple(map(math.sqrt, theory))))
        series.append(band(f"{rule}, measured", layers, points_over_seeds(found, ratios=True), "points"))
    what = "rms of the output" if side == "forward" else "rms of the gradient at the input"
    return Panel(f"{shape}, {side}", "layer", what, tuple(series), y_log=True)


def run(settings: Settings) -> Finding:
    """Push real images and unit gradients through stacks of three shapes under the three rules."""
    seeds = 2 * settings.seeds if settings.quick else 8 * settings.seeds
    x = of_unit_rms(flat_images(settings, "standardize", IMAGES)).astype(np.float32)
    found = settings.map(one_draw, [(shape, seed) for shape in SHAPES for seed in range(seeds)], shared=x)
    runs: dict[tuple[str, str, str], list[Moments]] = {}
    for measured in found:
        for key, moments in measured.items():
            runs.setdefault(key, []).append(moments)
    rows = _rows(runs, x.shape[1])
    chart = Chart(
        "compromise",
        "Where layers are not square, which side pays",
        "Linear stacks on real images, twelve layers. Each one-sided rule lets the other side stray by the ratio of "
        "widths; the average shares that where widths only fall, and loses on both sides where they alternate.",
        tuple(_panel(runs, shape, side, x.shape[1]) for side in ("forward", "backward") for shape in SHAPES),
    )
    shapes = "; ".join(f"{name} {x.shape[1]}-{'-'.join(map(str, hidden))}" for name, hidden in SHAPES.items())
    return Finding(
        judge(rows),
        statement(rows),
        tuple(rows),
        (chart,),
        conditions={
            "seeds": seeds,
            "images": len(x),
            "shapes": shapes,
            "tie": f"{TIE} decades of rms",
        },
    )


CLAIM = Claim(
    name="compromise",
    title="The compromise 2/(n_in+n_out)",
    claim="Where n_in and n_out differ, Var(w) = 2/(n_in+n_out) is the better choice: a compromise between keeping the "
    "signal (1/n_in) and keeping the gradient (1/n_out).",
    source="Glorot & Bengio (2010), equations 10 to 12, and the tutorials that derive it",
    run=run,
)
