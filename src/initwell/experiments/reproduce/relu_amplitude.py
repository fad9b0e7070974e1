"""ReLU lets the amplitude run over depth and keeps its gradient, sigmoid the other way round: at which scales."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from initwell.charts import Chart, Panel, Series
from initwell.experiments.reproduce.bands import band, points_over_seeds
from initwell.experiments.reproduce.claim import Claim, Finding, Settings
from initwell.experiments.reproduce.evidence import ratio_over_seeds
from initwell.experiments.reproduce.images import flat_images, of_unit_rms
from initwell.experiments.reproduce.stacks import Array, Moments, chain_of, draw_weights, run_stack
from initwell.experiments.reproduce.wording import capital, clause, grouped, listed
from initwell.experiments.statistics import Verdict, judge, together
from initwell.initializers.base import Initializer
from initwell.initializers.basic import normal
from initwell.initializers.scaling import VarianceScaling

DEPTH, WIDTH, IMAGES = 30, 128, 64
# A size that changes more than tenfold between the first and the last of 30 layers runs: 8 % a layer, well beyond the
# scatter of single draws at this width, exp(±½·√(5·30/128)) = 1.7-fold.
RUN = 10.0

SCALES: Mapping[str, Initializer] = {
    "0.01·randn": normal(std=0.01),
    "Var(w) = 1/n": VarianceScaling(1.0, "fan_in", "normal"),
    "Var(w) = 2/n": VarianceScaling(2.0, "fan_in", "normal"),
    "Var(w) = 4/n": VarianceScaling(4.0, "fan_in", "normal"),
    "1·randn": normal(std=1.0),
}


@dataclass(frozen=True)
class Part:
    """One part of the claim: what it says of one activation in one direction."""

    says: str
    activation: str
    direction: str  # forward: last layer over first; backward: first layer over last


PARTS: Mapping[str, Part] = {
    "amplitude runs": Part("ReLU's amplitude runs", "relu", "forward"),
    "amplitude held": Part("sigmoid's amplitude is held", "sigmoid", "forward"),
    "gradient vanishes": Part("sigmoid's gradient vanishes", "sigmoid", "backward"),
    "gradient survives": Part("ReLU's gradient does not vanish", "relu", "backward"),
}


def judge_part(kind: str, low: float, high: float) -> Verdict:
    """Judge one part at one scale by the interval of the ratio of sizes over the depth.

    Args:
        kind: a key of ``PARTS``.
        low: lower end of the ratio.
        high: upper end.

    Returns:
        Held: all within a factor ``RUN`` of 1. Runs: all outside of it. Vanishes: all below 1/``RUN``; survives: above,
        which a gradient that explodes does as well.
    """
    if kind == "gradient vanishes":
        return judge(low, high, below=1 / RUN)
    if kind == "gradient survives":
        return judge(low, high, above=1 / RUN)
    held = judge(low, high, above=1 / RUN, below=RUN)
    if kind == "amplitude held" or held == "depends":
        return held
    return "refuted" if held == "confirmed" else "confirmed"


def ratio(moments: Sequence[float], direction: str) -> float:
    """Return by what factor the rms changes over the stack: forward, last over first; backward, first over last."""
    first, last = (moments[0], moments[-1]) if direction == "forward" else (moments[-1], moments[0])
    return math.sqrt(last / first) if first > 0 else math.nan


def of_direction(moments: Moments, direction: str) -> tuple[float, ...]:
    """Return the second moments of one direction, layer by layer.

    Backward, layer 1 is left out: its input is the image, and its weight is not square, which is no matter of depth.
    """
    return moments.forward if direction == "forward" else moments.backward[1:]


def predicted(initializer: Initializer, part: Part, widths: Sequence[int]) -> list[float]:
    """Return the chain formula's second moments, layer by layer."""
    rows = chain_of(widths, initializer, part.activation, 1.0).rows
    if part.direction == "forward":
        return [row["forward_second_moment"] for row in rows]
    return [row["gradient_second_moment"] for row in rows[1:]]


Found = Mapping[tuple[str, str], Sequence[Moments]]  # (scale, activation) -> one stack a seed


def measured(x: Array, widths: Sequence[int], seeds: Sequence[int]) -> Found:
    """Run every stack: the same weights under both activations."""
    found: dict[tuple[str, str], list[Moments]] = {}
    for scale, initializer in SCALES.items():
        for seed in seeds:
            weights = draw_weights(widths, initializer, seed)
            for phi in ("relu", "sigmoid"):
                found.setdefault((scale, phi), []).append(run_stack(weights, phi, x, seed))
    return found


def evidence(found: Found, widths: Sequence[int]) -> list[dict[str, Any]]:
    """Give one row for each part and scale."""
    rows = []
    for kind, part in PARTS.items():
        for scale, initializer in SCALES.items():
            runs = [of_direction(m, part.direction) for m in found[scale, part.activation]]
            spread = ratio_over_seeds([ratio(run, part.direction) for run in runs])
            rows.append({"claim": part.says, "kind": kind, "scheme": scale, "seeds": len(runs), **spread,
                         "theory": ratio(predicted(initializer, part, widths), part.direction),
                         "judgement": judge_part(kind, spread["low"], spread["high"])})  # fmt: skip
    return rows


def decide(rows: Sequence[Mapping[str, Any]]) -> Verdict:
    """Give the verdict over all parts and scales."""
    return together(row["judgement"] for row in rows)


def conclusion(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in one sentence which parts hold at every weight scale, at none, or at some."""
    parts = {r["claim"]: together(o["judgement"] for o in rows if o["claim"] == r["claim"]) for r in rows}
    of = grouped(parts)
    if len(of["confirmed"]) == len(parts):
        return f"At every weight scale tried {listed(parts)}."
    if len(of["refuted"]) == len(parts):
        return f"At no weight scale tried is it so that {listed(parts)}."
    told = clause("{} at every weight scale tried", of["confirmed"])
    told += clause("at no weight scale tried is it so that {}", of["refuted"])
    told += clause("whether {} depends on n·Var(w), not on the activation alone", of["depends"])
    return f"{capital('; '.join(told))}."


def statement(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say part by part at which scales it holds, with the factors over the depth."""
    told = []
    for says in dict.fromkeys(row["claim"] for row in rows):
        words = {"confirmed": "yes", "refuted": "no", "depends": "undecided"}
        of_part = [row for row in rows if row["claim"] == says]
        lines = [
            f"{word} with "
            + ", ".join(f"{r['scheme']} (×{r['value']:.2g})" for r in of_part if r["judgement"] == judged)
            for judged, word in words.items()
            if any(r["judgement"] == judged for r in of_part)
        ]
        told.append(f"{capital(says)}: {'; '.join(lines)}")
    return f"{conclusion(rows)} Change of the rms over {DEPTH} layers of {WIDTH} units: {'. '.join(told)}."


def _chart(found: Found, widths: Sequence[int]) -> Chart:
    panels = []
    for kind in ("amplitude runs", "amplitude held", "gradient survives", "gradient vanishes"):
        part = PARTS[kind]
        layers = tuple(range(1 if part.direction == "forward" else 2, len(widths)))
        series = []
        for scale, initializer in SCALES.items():
            theory = tuple(math.sqrt(v) for v in predicted(initializer, part, widths))
            runs = [of_direction(m, part.direction) for m in found[scale, part.activation]]
            points = points_over_seeds(([math.sqrt(v) for v in run[::2]] for run in runs), ratios=True)
            series.append(Series(f"{scale}, theory", layers, theory))
            series.append(band(f"{scale}, measured", layers[::2], points, "points"))
        name = "ReLU" if part.activation == "relu" else "sigmoid"
        what = "rms of the output" if part.direction == "forward" else "rms of the gradient"
        panels.append(Panel(f"{name}, {part.direction}", "layer", what, tuple(series), y_log=True))
    return Chart(
        "relu-amplitude",
        "Amplitude and gradient over depth, ReLU and sigmoid",
        f"Outputs before the activation; the gradient of each layer's input, from rms 1 at the end. {WIDTH} units. "
        "Whiskers: 95 % interval over seeds. ReLU's lines fan out around 2/n; sigmoid's amplitude is level at every "
        "scale, its gradient is not.",
        tuple(panels),
    )


def run(settings: Settings) -> Finding:
    """Measure stacks on real images at every scale, and set them beside the chain formula."""
    x = of_unit_rms(flat_images(settings, "standardize", IMAGES)).astype("float32")
    widths = (x.shape[1], *(WIDTH,) * DEPTH)
    seeds = settings.seed_list() if settings.quick else tuple(range(4 * settings.seeds))
    found = measured(x, widths, seeds)
    rows = evidence(found, widths)
    return Finding(
        verdict=decide(rows),
        statement=statement(rows),
        rows=tuple({key: value for key, value in row.items() if key != "kind"} for row in rows),
        charts=(_chart(found, widths),),
        conditions={"seeds": len(seeds), "images": IMAGES, "layers": DEPTH, "width": WIDTH, "runs": f"beyond ×{RUN:g}"},
    )


CLAIM = Claim(
    name="relu-amplitude",
    title="What ReLU and sigmoid do to amplitude and gradient",
    claim="Over depth ReLU lets the amplitude run, as its output is unbounded, where sigmoid holds it; sigmoid's "
    "gradient vanishes, ReLU's does not.",
    source="Tutorials on ReLU's strengths and weaknesses; Glorot & Bengio, AISTATS 2010, for sigmoid's gradient",
    run=run,
)
