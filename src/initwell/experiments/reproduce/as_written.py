"""The tutorials' mistaken formulas, run as they were written, beside the right ones."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from initwell.apply.write import init_
from initwell.charts import Chart, Panel
from initwell.experiments.preparation import Prepared
from initwell.experiments.reproduce.activity import relu_activity
from initwell.experiments.reproduce.bands import band, points_over_seeds
from initwell.experiments.reproduce.claim import Claim, Finding, Settings
from initwell.experiments.reproduce.evidence import Judgement, ratio_over_seeds, verdict_of, within
from initwell.experiments.reproduce.images import flat_images, of_unit_rms
from initwell.experiments.reproduce.stacks import Array, run_stack
from initwell.experiments.reproduce.wording import listed
from initwell.experiments.statistics import Verdict
from initwell.experiments.train import TrainConfig, train
from initwell.experiments.zoo import build
from initwell.initializers.distributions import Distribution, Normal, Uniform
from initwell.initializers.layout import Layout
from initwell.initializers.prototxt import parse_filler
from initwell.sampling.fill import fill

Rule = Callable[[int, int], Distribution]  # (n_in, n_out) -> what to draw

WIDTHS = (300,) * 9
IMAGES = 50
# Every aim is "this ratio is 1". 10 % per layer is a factor 2.6 over ten layers, and five times the scatter over seeds.
TOLERANCE = 0.1


@dataclass(frozen=True)
class Mistake:
    """A formula as written and as it should be, with the text's aim as a ratio that ought to be 1."""

    mistake: str
    right: str
    aim: str
    as_written: Rule
    as_meant: Rule
    phi: str = "identity"  # of the stack whose factor per layer is the ratio
    fans: tuple[int, int] | None = None  # of the single layer whose variance is the ratio, times ``scale``
    scale: float = 1.0


def _filler(text: str) -> Rule:
    return lambda n_in, n_out: parse_filler(text).recipe(Layout.of((n_out, n_in))).distribution


MISTAKES: tuple[Mistake, ...] = (
    Mistake(
        "randn · 2/(n_in+n_out)",
        "randn · √(2/(n_in+n_out))",
        "factor of E[y²] a layer",
        lambda i, o: Normal(0.0, 2 / (i + o)),
        lambda i, o: Normal(0.0, math.sqrt(2 / (i + o))),
    ),
    Mistake(
        "rand(n)/√n",
        "randn(n)/√n",
        "factor of E[y²] a layer",
        lambda i, o: Uniform(0.0, i**-0.5),
        lambda i, o: Normal(0.0, i**-0.5),
    ),
    Mistake(
        "weights with mean 1",
        "weights with mean 0",
        "factor of E[y²] a layer",
        lambda i, o: Normal(1.0, i**-0.5),
        lambda i, o: Normal(0.0, i**-0.5),
    ),
    Mistake(
        "ReLU with Var(w) = 2/(n_in+n_out)",
        "Var(w) = 2/n_in",
        "factor of E[y²] a layer",
        lambda i, o: Normal(0.0, math.sqrt(2 / (i + o))),
        lambda i, o: Normal(0.0, math.sqrt(2 / i)),
        phi="relu",
    ),
    Mistake(
        "0.01·randn has variance 0.01",
        "0.1·randn",
        "Var(w) / 0.01",
        lambda i, o: Normal(0.0, 0.01),
        lambda i, o: Normal(0.0, 0.1),
        fans=(784, 100),
        scale=1 / 0.01,
    ),
    Mistake(
        'Caffe\'s type: "xavier" averages the fans',
        "variance_norm: AVERAGE",
        "Var(w)·(n_in+n_out)/2",
        _filler('weight_filler { type: "xavier" }'),
        _filler('weight_filler { type: "xavier" variance_norm: AVERAGE }'),
        fans=(784, 100),
        scale=(784 + 100) / 2,
    ),
)


def draw_stack(widths: Sequence[int], rule: Rule, seed: int) -> list[Array]:
    """Draw the (out, in) weights of a stack by a bare formula of the fans, as the tutorials' code does."""
    return [
        fill(rule(i, o), (o, i), seed=seed, name=f"layers.{k}.weight")
        for k, (i, o) in enumerate(pairwise(widths), start=1)
    ]


def one_curve(x: Array, job: tuple[int, str, int]) -> list[float]:
    """Return E[y²] after every layer of one stack, by (index in ``MISTAKES``, ``written`` or ``meant``, seed)."""
    index, which, seed = job
    mistake = MISTAKES[index]
    rule = mistake.as_written if which == "written" else mistake.as_meant
    return list(run_stack(draw_stack((x.shape[1], *WIDTHS), rule, seed), mistake.phi, x, seed).forward)


def growth(curve: Sequence[float]) -> float:
    """Return the geometric mean factor of E[y²] per layer.

    >>> growth([1.0, 2.0, 4.0])
    2.0
    """
    return float((curve[-1] / curve[0]) ** (1 / (len(curve) - 1)))


def drawn_ratios(mistake: Mistake, rule: Rule, seeds: int) -> list[float]:
    """Return the scaled variance of one drawn layer, one a seed."""
    n_in, n_out = mistake.fans or (1, 1)
    drawn = [fill(rule(n_in, n_out), (n_out, n_in), seed=seed, name="weight") for seed in range(seeds)]
    return [mistake.scale * float(np.var(w, dtype=np.float64)) for w in drawn]


def positive_shares(data: Prepared, job: tuple[int, int]) -> tuple[list[float], list[float]]:
    """Train one ReLU MLP by (seed, epochs); return P(y > 0) by layer, before and after."""
    seed, epochs = job
    model = build("mlp", data.shape, data.classes, depth=4, width=100, activation="relu")
    init_(model, "kaiming", seed=seed)

    def shares() -> list[float]:
        return [layer.active for layer in relu_activity(model, data.test_x[:500])]

    before = shares()
    config = TrainConfig(epochs=epochs, batch_size=50, optimizer="momentum", learning_rate=0.01, seed=seed)
    train(model, data, config)
    return before, shares()


def _share_row(runs: Sequence[tuple[list[float], list[float]]]) -> dict[str, Any]:
    # "In every layer" is what is meant. The first is taken, whatever the run shows: the layer that ends furthest from
    # 1/2 would be picked by the outcome, and lean towards "fails". The claim half-active follows them all.
    after, before = [2 * end[0] for _, end in runs], [2 * start[0] for start, _ in runs]
    aim = "P(y > 0) / ½, layer 1"
    return _row("P(y > 0) = 1/2 in every layer, trained or not", "only before training", aim, after, before)


def judge_row(written: Mapping[str, float], meant: Mapping[str, float]) -> Judgement:
    """Judge one formula as written by its aim; open where not even the right one meets it, or neither is sure."""
    control = within(meant["low"], meant["high"], 1 - TOLERANCE, 1 + TOLERANCE)
    if control != "holds":
        return "open"
    return within(written["low"], written["high"], 1 - TOLERANCE, 1 + TOLERANCE)


def judge(rows: Sequence[Mapping[str, Any]]) -> Verdict:
    """Give the verdict on "as written they do what the text says": over all formulas."""
    return verdict_of([r["judgement"] for r in rows])


def conclusion(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in one sentence how many of the formulas do what their text says."""
    count = {judgement: sum(r["judgement"] == judgement for r in rows) for judgement in ("holds", "fails", "open")}
    if count["holds"] == len(rows):
        return f"As printed, all {len(rows)} formulas do what the text beside them says."
    if count["fails"] == len(rows):
        return f"As printed, none of the {len(rows)} formulas does what the text beside it says."
    words = {
        "fails": f"of the {len(rows)} formulas miss what the text beside them says",
        "holds": "give it",
        "open": "stays undecided" if count["open"] == 1 else "stay undecided",
    }
    told = [f"{count[judgement]} {said}" for judgement, said in words.items() if count[judgement]]
    return f"As printed, {listed(told)}."


def statement(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in words what the numbers say."""
    undecided = [r["mistake"] for r in rows if r["judgement"] == "open"]
    more = f" Not decided: {', '.join(undecided)}." if undecided else ""
    each = "; ".join(
        f"{r['mistake']}: {r['aim']} is {r['value']:.3g} (right: {r['right']}, {r['right_value']:.3g})" for r in rows
    )
    return f"{conclusion(rows)}{more} Each figure ought to be 1: {each}."


def _row(mistake: str, right: str, aim: str, written: Sequence[float], meant: Sequence[float]) -> dict[str, Any]:
    a, b = ratio_over_seeds(written), ratio_over_seeds(meant)
    return {
        "mistake": mistake,
        "aim": aim,
        "n": len(written),
        **a,
        "right": right,
        **{f"right_{key}": v for key, v in b.items()},
        "judgement": judge_row(a, b),
    }


def _panel(mistake: Mistake, curves: Mapping[str, Sequence[Sequence[float]]]) -> Panel:
    series = []
    layers = tuple(range(1, len(WIDTHS) + 1))
    for which in ("written", "meant"):
        series.append(band(f"as {which}", layers, points_over_seeds(curves[which], ratios=True), "both"))
    return Panel(mistake.mistake, "layer", "E[y²]", tuple(series), y_log=True)


def _all_curves(settings: Settings, x: Array, seeds: int) -> dict[tuple[int, str], list[list[float]]]:
    stacks = [index for index, m in enumerate(MISTAKES) if m.fans is None]
    jobs = [(index, which, seed) for index in stacks for which in ("written", "meant") for seed in range(seeds)]
    curves: dict[tuple[int, str], list[list[float]]] = {}
    for (index, which, _), curve in zip(jobs, settings.map(one_curve, jobs, shared=x), strict=True):
        curves.setdefault((index, which), []).append(curve)
    return curves


def _rows(curves: Mapping[tuple[int, str], Sequence[Sequence[float]]], seeds: int) -> list[dict[str, Any]]:
    rows = []
    for index, m in enumerate(MISTAKES):
        if m.fans is None:
            written, meant = ([growth(c) for c in curves[index, which]] for which in ("written", "meant"))
        else:
            written, meant = (drawn_ratios(m, rule, seeds) for rule in (m.as_written, m.as_meant))
        rows.append(_row(m.mistake, m.right, m.aim, written, meant))
    return rows


def run(settings: Settings) -> Finding:
    """Run every formula as written and as meant: in stacks on real images, as drawn weights, and in training."""
    seeds, epochs = (2 * settings.seeds, 5) if settings.quick else (6 * settings.seeds, 50)
    x = of_unit_rms(flat_images(settings, "standardize", IMAGES)).astype(np.float32)
    curves = _all_curves(settings, x, seeds)
    rows = _rows(curves, seeds)
    jobs = [(seed, epochs) for seed in range(seeds)]
    rows.append(_share_row(settings.map(positive_shares, jobs, shared=settings.prepared("standardize"))))
    chart = Chart(
        "as-written",
        "Formulas as written and as meant",
        f"E[y²] by layer on real images, {WIDTHS[0]} units a layer; flat is what the text promises.",
        tuple(
            _panel(m, {which: curves[index, which] for which in ("written", "meant")})
            for index, m in enumerate(MISTAKES)
            if m.fans is None
        ),
    )
    return Finding(
        judge(rows),
        statement(rows),
        tuple(rows),
        (chart,),
        conditions={
            "seeds": seeds,
            "images": len(x),
            "widths": "-".join(map(str, (x.shape[1], *WIDTHS))),
            "training": f"ReLU MLP of 4 layers of 100, Kaiming, {epochs} epochs",
            "tolerance": TOLERANCE,
        },
    )


CLAIM = Claim(
    name="as-written",
    title="The formulas as they stand in the tutorials",
    claim="The tutorials' formulas, typed in as printed, do what the text beside them says.",
    source="Seven passages of the tutorials on Xavier and Kaiming initialization and of Caffe's users",
    run=run,
)
