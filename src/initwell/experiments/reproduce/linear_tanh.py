"""Near 0 tanh is linear: how far the linear theory holds as the input's scale grows."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from initwell.charts import Chart, Panel, Series
from initwell.experiments.reproduce.claim import Claim, Finding, Settings
from initwell.experiments.reproduce.evidence import (
    Judgement,
    over_seeds,
    ratio_over_seeds,
    verdict_of,
    within,
)
from initwell.experiments.reproduce.images import flat_images, of_unit_rms
from initwell.experiments.reproduce.stacks import Array, Moments, chain_of, draw_weights, run_stack
from initwell.experiments.reproduce.wording import capital, listed
from initwell.experiments.statistics import Verdict
from initwell.initializers.scaling import lecun

SCALES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
DEPTHS = (1, 5, 20)
WIDTH = 600
IMAGES = 50
# 5 % of the rms is 10 % of the variance: what an initializer's own rounding of gains (5/3 for 1.593) leaves undecided.
TOLERANCE = 0.05


def judge_row(low: float, high: float) -> Judgement:
    """Judge one scale and depth: the linear theory's relative error of the rms against the tolerance."""
    return within(low, high, -TOLERANCE, TOLERANCE)


def judge(rows: Sequence[Mapping[str, Any]]) -> Verdict:
    """Give the verdict over all scales and depths."""
    return verdict_of([r["judgement"] for r in rows])


def reach(rows: Sequence[Mapping[str, Any]], depth: int) -> float | None:
    """Return the largest scale up to which the linear theory holds without a break at this depth, or None."""
    largest = None
    for row in sorted((r for r in rows if r["depth"] == depth), key=lambda r: float(r["scale"])):
        if row["judgement"] != "holds":
            break
        largest = float(row["scale"])
    return largest


def conclusion(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in one sentence up to which input the linear theory holds, by depth."""
    verdict, band = judge(rows), f"within {100 * TOLERANCE:.0f} %"
    if verdict == "confirmed":
        return f"Through tanh the linear theory holds {band} at every scale and depth tried."
    if verdict == "refuted":
        return f"Through tanh the linear theory holds {band} at no scale and depth tried."
    limits = {depth: reach(rows, depth) for depth in sorted({r["depth"] for r in rows})}
    ends = [limit or 0.0 for limit in limits.values()]
    shrinks = ends[0] > ends[-1] and ends == sorted(ends, reverse=True)
    told = listed(
        f"{'at no scale' if limit is None else f'up to rms {limit:g}'} through {depth} tanh"
        for depth, limit in limits.items()
    )
    deeper = ", the smaller the deeper the net" if shrinks else ""
    return f"{capital(band)} tanh is linear only for small inputs{deeper}: {told}."


def statement(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say in words what the numbers say."""
    unit = [r for r in rows if r["scale"] == 1.0]
    at_one = ", ".join(f"{100 * r['value']:+.0f} % after {r['depth']} tanh" for r in unit)
    exact = max(abs(r["exact_error"]) for r in rows)
    return (
        f"{conclusion(rows)} At rms 1, where standardized images are, the linear theory is off by {at_one}. The exact "
        f"mean-field map stays within {100 * exact:.1f} % throughout. The error adds up over layers: near 0 a layer "
        "turns q into q − 2q², so what counts is depth times q, not q."
    )


def one_draw(x: Array, seed: int) -> tuple[list[Moments], Moments]:
    """Return what tanh makes of the images at every scale, and what the same weights make of them without it."""
    weights = draw_weights(_widths(x.shape[1]), lecun(distribution="normal"), seed)
    bent = [run_stack(weights, "tanh", x * np.float32(scale), seed) for scale in SCALES]
    return bent, run_stack(weights, "identity", x, seed)


def _widths(pixels: int) -> tuple[int, ...]:
    return (pixels, *([WIDTH] * (max(DEPTHS) + 1)))


def _rows(runs: Sequence[tuple[list[Moments], Moments]], pixels: int) -> list[dict[str, Any]]:
    rows = []
    for index, scale in enumerate(SCALES):
        found = [(bent[index], straight) for bent, straight in runs]
        chain = chain_of(_widths(pixels), lecun(distribution="normal"), "tanh", scale**2)
        for depth in DEPTHS:
            # Over the same weights without tanh: their own scatter, which the linear theory has too, cancels.
            error = ratio_over_seeds([math.sqrt(t.forward[depth] / s.forward[depth]) / scale for t, s in found])
            exact = math.sqrt(chain.rows[depth]["forward_second_moment"])
            plain = over_seeds([math.sqrt(t.forward[depth]) for t, _ in found])
            low, high = error["low"] - 1, error["high"] - 1
            rows.append(
                {
                    "depth": depth,
                    "scale": scale,
                    "n": len(found),
                    "value": error["value"] - 1,
                    "low": low,
                    "high": high,
                    "theory": exact / scale - 1,
                    "exact_error": plain["value"] / exact - 1,
                    "judgement": judge_row(low, high),
                }
            )
    return rows


def _chart(rows: Sequence[Mapping[str, Any]]) -> Chart:
    error, size = [], []
    for depth in DEPTHS:
        found = [r for r in rows if r["depth"] == depth]
        scales = tuple(r["scale"] for r in found)
        label = f"after {depth} tanh"
        theory = tuple(-100 * r["theory"] for r in found)
        low, value, high = (tuple(-100 * r[key] for r in found) for key in ("high", "value", "low"))
        error.append(Series(f"{label}, theory", scales, theory))
        error.append(Series(f"{label}, measured", scales, value, low, high, "points"))
        size.append(
            Series(f"{label}, theory", scales, tuple(s * (1 + r["theory"]) for s, r in zip(scales, found, strict=True)))
        )
        size.append(
            Series(
                f"{label}, measured",
                scales,
                tuple(s * (1 + r["value"]) for s, r in zip(scales, found, strict=True)),
                style="points",
            )
        )
    size.append(Series("linear theory", SCALES, SCALES, style="dashed"))
    error.append(Series(f"{100 * TOLERANCE:.0f} %", (SCALES[0], SCALES[-1]), (100 * TOLERANCE,) * 2, style="dashed"))
    return Chart(
        "linear-tanh",
        "Where tanh stops being linear",
        "Weights of variance 1/n, real images of one rms each. Left: what comes out. Right: how far it is below the "
        "linear theory. Lines: the exact mean-field map.",
        (
            Panel("rms after the layers", "rms of the input", "rms of the output", tuple(size), True, True),
            Panel("shortfall of the linear theory", "rms of the input", "% below linear", tuple(error), True, True),
        ),
    )


def run(settings: Settings) -> Finding:
    """Push real images of growing scale through tanh stacks whose weights keep the variance of a linear one."""
    seeds = settings.seeds if settings.quick else 4 * settings.seeds
    x = of_unit_rms(flat_images(settings, "standardize", IMAGES)).astype(np.float32)
    rows = _rows(settings.map(one_draw, range(seeds), shared=x), x.shape[1])
    return Finding(
        judge(rows),
        statement(rows),
        tuple(rows),
        (_chart(rows),),
        conditions={
            "seeds": seeds,
            "images": len(x),
            "width": WIDTH,
            "tolerance": TOLERANCE,
        },
    )


CLAIM = Claim(
    name="linear-tanh",
    title="Near 0 tanh is linear",
    claim="tanh is linear near 0, so with Var(w) = 1/n the size of the signal stays what it was, layer after layer.",
    source="Glorot & Bengio (2010), section 4.2.1: 'we are in a linear regime at the initialization'",
    run=run,
)
