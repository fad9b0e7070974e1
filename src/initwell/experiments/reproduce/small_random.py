"""0.01·randn dies out with depth: how deep, for which activation and width."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from initwell.charts import Chart, Panel, Series
from initwell.experiments.reproduce.bands import band, points_over_seeds
from initwell.experiments.reproduce.claim import Claim, Finding, Settings
from initwell.experiments.reproduce.evidence import (
    Judgement,
    over_seeds,
    ratio_over_seeds,
    verdict_of,
)
from initwell.experiments.reproduce.images import flat_images, of_unit_rms
from initwell.experiments.reproduce.wording import listed
from initwell.experiments.statistics import Verdict
from initwell.initializers.distributions import Normal
from initwell.sampling.fill import fill
from initwell.theory.activations import activation as find_activation
from initwell.theory.moments import derivative_second_moment, overlap, second_moment

STD = 0.01
ACTIVATIONS = ("tanh", "relu", "sigmoid")
WIDTHS = (100, 300, 1000, 10_000)
# Deeper than the plain networks that anyone trained by hand; a signal that is alive here has not died out.
DEPTH = 50
# Ten units in the last place of a float32 of order one: beside a bias, or the 0.5 of a sigmoid, less is rounding.
DEAD = 1e-6
IMAGES = 10


@dataclass(frozen=True)
class Job:
    """One activation, one width, one seed."""

    activation: str
    width: int
    seed: int


def signal_by_layer(x: NDArray[np.float64], job: Job) -> list[float]:
    """Measure, layer by layer, the rms of what differs from image to image, until it is dead or ``DEPTH`` is reached.

    Given the images at its input, a unit with Gaussian weights N(0, σ²) gives outputs that are jointly Gaussian over
    the images with covariance σ²·x·xᵀ. Drawing those outputs is therefore the same as drawing the weights, exactly
    and at any width, without the 10⁸ weights of a layer of 10,000 units.

    Args:
        x: images, shape (samples, pixels).
        job: activation, units in every layer, and the seed of all draws.

    Returns:
        The root of the mean over units of the variance over images of the pre-activations, one value a layer.
    """
    act = find_activation(job.activation)
    found: list[float] = []
    for layer in range(1, DEPTH + 1):
        name = f"{job.activation}.{job.width}.{layer}"
        z = fill(Normal(0.0, 1.0), (len(x), job.width), seed=job.seed, name=name).astype(np.float64)
        y = STD * _root(x @ x.T) @ z
        found.append(float(np.sqrt(np.var(y, axis=0, ddof=1).mean())))
        if found[-1] < DEAD:
            break
        x = act.fn(y)
    return found


def _root(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    # Symmetric root by eigenvalues: a Gram matrix of outputs that have become equal is singular, and Cholesky fails.
    values, vectors = np.linalg.eigh(gram)
    return np.asarray(vectors * np.sqrt(np.clip(values, 0.0, None)))


def theory_by_layer(phi: str, width: int, q0: float, p0: float, pixels: int) -> list[float]:
    """Predict the same by mean-field theory from the images' mean square q0 and mean overlap p0."""
    act = find_activation(phi)
    q, p = pixels * STD**2 * q0, pixels * STD**2 * p0
    found: list[float] = []
    for _ in range(DEPTH):
        found.append(math.sqrt(max(q - p, 0.0)))
        if found[-1] < DEAD:
            break
        gap = _next_gap(phi, q, p)
        q = width * STD**2 * second_moment(act, q).value
        p = q - width * STD**2 * gap
    return found


def _next_gap(phi: str, q: float, p: float) -> float:
    """E[φ(u)²] − E[φ(u)φ(v)], by slope where q − p is so small beside q that the difference would be rounding."""
    act = find_activation(phi)
    if (q - p) / q < 1e-6:
        return (q - p) * derivative_second_moment(act, q).value
    return second_moment(act, q).value - overlap(act, q, p / q).value


def died_at(signal: Sequence[float]) -> int | None:
    """Return the first layer (from 1) whose signal is below ``DEAD``, or None."""
    return next((k for k, s in enumerate(signal, start=1) if s < DEAD), None)


def judge_row(layers: Sequence[int | None]) -> Judgement:
    """Judge one activation and width over seeds: dead within ``DEPTH`` in all, in none, or in some."""
    dead = sum(layer is not None for layer in layers)
    return "holds" if dead == len(layers) else "fails" if dead == 0 else "open"


def judge(rows: Sequence[Mapping[str, Any]]) -> Verdict:
    """Give the verdict over all activations and widths."""
    return verdict_of([r["judgement"] for r in rows])


def conclusion(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in one sentence where the signal dies and where it does not."""
    alive = [f"{r['activation']} at width {r['width']:,}" for r in rows if r["judgement"] != "holds"]
    return {
        "confirmed": f"From 0.01·randn the signal dies out within {DEPTH} layers for every activation and width tried.",
        "refuted": f"From 0.01·randn the signal survives {DEPTH} layers for every activation and width tried.",
        "depends": "Whether the signal dies out from 0.01·randn depends on activation and width: it surely "
        f"does within {DEPTH} layers in every case but {listed(alive or ['none'])}.",
    }[judge(rows)]


def statement(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in words what the numbers say."""
    dead = [r for r in rows if r["judgement"] == "holds"]
    parts = [
        f"{phi} at layer "
        + ", ".join(f"{r['value']:.0f} (width {r['width']:,})" for r in dead if r["activation"] == phi)
        for phi in dict.fromkeys(r["activation"] for r in dead)
    ]
    said = f" What tells two images apart falls below {DEAD:g} with " + "; ".join(parts) + "." if dead else ""
    why = (
        " So 0.01 is neither small nor large by itself: only σ·√width·slope beside 1 counts, and 0.01·√10,000 = 1."
        if len(dead) < len(rows)
        else ""
    )
    return f"{conclusion(rows)}{said}{why}"


def _row(phi: str, width: int, runs: Sequence[Sequence[float]], theory: Sequence[float]) -> dict[str, Any]:
    layers = [died_at(r) for r in runs]
    reached = [k for k in layers if k is not None]
    factors = [(r[-1] / r[0]) ** (1 / (len(r) - 1)) for r in runs]
    factor = ratio_over_seeds(factors)
    found = over_seeds(reached) if len(reached) == len(layers) else {"value": None, "low": None, "high": None}
    return {
        "activation": phi,
        "width": width,
        "n": len(runs),
        **found,
        "theory": died_at(theory),
        "factor": factor["value"],
        "factor_low": factor["low"],
        "factor_high": factor["high"],
        "factor_theory": (theory[-1] / theory[0]) ** (1 / (len(theory) - 1)),
        "judgement": judge_row(layers),
    }


def _panel(phi: str, curves: Mapping[int, tuple[list[list[float]], list[float]]]) -> Panel:
    series: list[Series] = []
    deepest = 1
    for width, (runs, theory) in curves.items():
        shared = min(len(r) for r in runs)
        deepest = max(deepest, shared, len(theory))
        series.append(Series(f"width {width:,}, theory", tuple(range(1, len(theory) + 1)), tuple(theory)))
        points = points_over_seeds(runs, ratios=True)
        series.append(band(f"width {width:,}, measured", range(1, shared + 1), points, "points"))
    series.append(Series(f"{DEAD:g}", (1, deepest), (DEAD, DEAD), style="dashed"))
    return Panel(phi, "layer", "rms between images", tuple(series), y_log=True)


def run(settings: Settings) -> Finding:
    """Follow the signal of real images through 0.01·randn for every activation and width."""
    seeds = settings.seeds if settings.quick else 4 * settings.seeds
    x = of_unit_rms(flat_images(settings, "standardize", IMAGES))
    gram = x @ x.T / x.shape[1]
    p0 = float((gram.sum() - np.trace(gram)) / (len(x) * (len(x) - 1)))
    jobs = [Job(phi, width, seed) for phi in ACTIVATIONS for width in WIDTHS for seed in range(seeds)]
    signals = settings.map(signal_by_layer, jobs, shared=x)
    rows, panels = [], []
    for phi in ACTIVATIONS:
        curves = {}
        for width in WIDTHS:
            runs = [s for j, s in zip(jobs, signals, strict=True) if (j.activation, j.width) == (phi, width)]
            curves[width] = (runs, theory_by_layer(phi, width, 1.0, p0, x.shape[1]))
            rows.append(_row(phi, width, *curves[width]))
        panels.append(_panel(phi, curves))
    chart = Chart(
        "small-random",
        "0.01·randn: how deep the signal gets",
        "Every layer multiplies what differs between images by 0.01·√width·slope, the slope 1 for tanh near 0, √½ for "
        "ReLU, ¼ for sigmoid: a straight line down, level only where that product is 1.",
        tuple(panels),
    )
    return Finding(
        judge(rows),
        statement(rows),
        tuple(rows),
        (chart,),
        conditions={
            "seeds": seeds,
            "images": len(x),
            "dead below": DEAD,
        },
    )


CLAIM = Claim(
    name="small-random",
    title="0.01·randn dies out with depth",
    claim="With weights 0.01·randn the signal dies out on its way through a deep network.",
    source="CS231n, notes on weight initialization, and the tutorials that follow it",
    run=run,
)
