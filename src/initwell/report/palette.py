"""Colours, marks and fonts of the figures: safe for colour-blind readers, on white and on dark pages alike."""

import re
from collections.abc import Sequence
from typing import Any

INK, FAINT, GRID, PAPER = "#24292f", "#57606a", "#d8dee4", "#ffffff"

# Okabe and Ito's colours (Color Universal Design, 2008) without yellow and black, which vanish on white or on dark;
# beside each, a lighter twin for dark pages.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#b5579a", "#c08a00", "#3a9bd9", "#7a5c3e", "#6b6f76")
SERIES_DARK = ("#58a9e0", "#ff8a47", "#2cc79a", "#e08cc6", "#e8b339", "#8cc9f2", "#c4a07a", "#a9b0b8")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")

# What the two names of one thing may end in: the line of theory and the points that were measured share a colour.
_WITNESS = re.compile(
    r"[\s,:(\[–—-]*\b(theory|theoretical|predicted|prediction|chain|formula|measured)\b[)\]]*\s*$", re.I
)


def stem(label: str) -> str:
    """Return what a label is about, without the word that says whether it was derived or measured.

    >>> stem("kaiming, theory"), stem("kaiming (measured)"), stem("theory"), stem("xavier")
    ('kaiming', 'kaiming', '', 'xavier')
    """
    return _WITNESS.sub("", label)


def series_colours(stems: Sequence[str]) -> dict[str, str]:
    """Give every stem its colour: a qualitative palette up to eight, then an ordered ramp (layers, depths)."""
    names = list(dict.fromkeys(stems))
    if len(names) <= len(SERIES):
        return dict(zip(names, SERIES, strict=False))
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    ramp = colormaps["plasma"]
    return {name: to_hex(ramp(0.25 + 0.6 * i / (len(names) - 1))) for i, name in enumerate(names)}


def themed(svg: str) -> str:
    """Replace the fixed colours of an SVG by CSS variables, so that it follows the page's light or dark theme."""
    names = {INK: "ink", FAINT: "faint", GRID: "grid", PAPER: "paper"}
    names |= {colour: f"c{i}" for i, colour in enumerate(SERIES)}
    return re.sub("|".join(names), lambda m: f"var(--{names[m.group().lower()]},{m.group()})", svg, flags=re.IGNORECASE)


def style_rc() -> dict[Any, Any]:
    """Return the figures' matplotlib settings, a change of the defaults and of nothing that the user set."""
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    wanted = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Microsoft YaHei", "PingFang SC", "WenQuanYi Micro Hei", "SimHei")
    return {
        "font.family": ["DejaVu Sans", *(name for name in wanted if name in installed)],
        "font.size": 10.0,
        "text.parse_math": False,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": FAINT,
        "axes.titlesize": 11.0,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.unicode_minus": True,
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "lines.linewidth": 1.8,
        "lines.markersize": 5.0,
        "legend.frameon": False,
        "legend.fontsize": 9.5,
        "svg.fonttype": "none",
        "svg.hashsalt": "initwell",
        "figure.facecolor": PAPER,
        "axes.facecolor": "none",
        "savefig.facecolor": "auto",
        "path.simplify": True,
    }
