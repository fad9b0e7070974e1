"""The gains of an activation: what the standard deviation of the weights is multiplied by to make up for it."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from initwell.errors import ArgumentError
from initwell.records import Record, number
from initwell.theory.activation import Activation
from initwell.theory.activations import activation
from initwell.theory.moments import Method, check_q, derivative_second_moment, growth, second_moment

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Gain(Record):
    """What to multiply the standard deviation 1/√fan of the weights by, next to an activation.

    Attributes:
        activation: its name and parameters.
        forward: √(q/E[φ²]); with std forward/√fan_in the forward second moment q is kept.
        backward: 1/√E[φ′²]; with std backward/√fan_out the gradient's second moment is kept. Infinite if φ is flat.
        compromise: √(2/(E[φ²]/q + E[φ′²])); forward and backward factor then have the mean 1.
        chi: χ = q·E[φ′²]/E[φ²], the factor of the gradient's second moment per square layer under the forward gain.
        stability: Q′(q), slope of the variance map at q under the forward gain; above 1 q is an unstable fixed point.
        method: "closed-form", or "quadrature" if any of the moments was integrated.
        error: estimated relative error of the moments it came from.
    """

    activation: str
    forward: float
    backward: float
    compromise: float
    chi: float
    stability: float
    method: Method
    error: float
    _q: float = 1.0
    _notes: tuple[str, ...] = ()

    @property
    def q(self) -> float:
        """Return the variance of the pre-activation that the gains keep."""
        return self._q

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what the figures alone do not say."""
        return self._notes

    def _rows(self) -> list[tuple[str, str, str]]:
        error = f"relative error {number(self.error)}"
        return [
            ("forward", f"{self.forward:.9g}", f"keeps the second moment of the signal at q = {number(self._q)}"),
            ("backward", f"{self.backward:.9g}", "keeps the second moment of the gradient"),
            ("compromise", f"{self.compromise:.9g}", "splits the difference: the two factors have mean 1"),
            ("chi", f"{self.chi:.6g}", "gradient factor per square layer under the forward gain"),
            ("stability", f"{self.stability:.6g}", _stability_in_words(self.stability)),
            ("method", self.method, error),
        ]

    def __rich__(self) -> "RenderableType":
        """Render for a Rich console."""
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        title = Text(f"Gain of {self.activation}")
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_header=False)
        for row in self._rows():
            table.add_row(*(Text(c) for c in row))
        return Group(table, *(Text(n) for n in self._notes))

    def __str__(self) -> str:
        """Render as plain text."""
        lines = [f"Gain of {self.activation}"]
        lines += [f"  {name:<11}{value:<17}{meaning}" for name, value, meaning in self._rows()]
        return "\n".join([*lines, *(f"  {n}" for n in self._notes)])

    def _repr_html_(self) -> str:
        import html

        body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in self._rows())
        notes = "".join(f"<p>{html.escape(n)}</p>" for n in self._notes)
        return f"<table><caption>Gain of {html.escape(self.activation)}</caption>{body}</table>{notes}"


def _stability_in_words(slope: float) -> str:
    if abs(abs(slope) - 1) < 1e-9:
        return "Q′: marginal, a deviation of q stays as it is"
    verdict = "unstable" if abs(slope) > 1 else "stable"
    return f"Q′: {verdict}, a deviation of q is multiplied by this at every layer"


def _notes(phi: Activation, backward_moment: float, error: float) -> tuple[str, ...]:
    notes = list(phi.notes)
    if error > 1e-6:
        notes.append(
            f"The integrals did not settle: digits beyond a relative {error:.1g} mean nothing, χ's least of all."
        )
    if phi.gate is not None:
        notes.append(
            f"A gate a·{phi.gate.name}(b) of independent halves: E[φ²] = q·E[{phi.gate.name}²]. Count fan_in of the "
            "layer after it at the gate's output; fan_out of the layer before it covers both halves, and backward is "
            "for that. χ counts both ways back."
        )
    if phi.jumps:
        nearest = sorted(sorted(phi.jumps, key=abs)[:6])
        at = ", ".join(f"{j:g}" for j in nearest)
        at += f" and {len(phi.jumps) - 6} places further out" if len(phi.jumps) > 6 else ""
        notes.append(f"It jumps at {at}: backward takes φ′ almost everywhere, as autograd does; nearby inputs part.")
    if backward_moment == 0:
        notes.append("It is flat almost everywhere: no gradient comes back, and no weights can change that.")
    return tuple(notes)


def gain(spec: Any, q: float = 1.0, **parameters: float) -> Gain:
    """Compute the gains of an activation, of any name, module or callable.

    The compromise generalizes Xavier's. With weight variance c²/n a square layer multiplies the signal's second moment
    by f = c²·E[φ²]/q and the gradient's by b = c²·E[φ′²]; the two wanted variances are q/E[φ²] and 1/E[φ′²], and
    their harmonic mean c² = 2/(E[φ²]/q + E[φ′²]) makes f + b = 2, as 2/(n_in + n_out) does for 1/n_in and 1/n_out.
    What it leaves is f = 2/(1 + χ) and b = 2χ/(1 + χ): unless χ = 1 no one number holds both.

    Args:
        spec: anything ``activation()`` takes: "gelu", ``nn.PReLU()``, ``F.silu``, ``lambda x: np.clip(x, -0.3, 0.7)``.
        q: variance of the pre-activation at which to hold the signal; matters unless φ(ax) = aφ(x) for a > 0.
        **parameters: parameters of a named activation, such as ``slope=0.25``.

    Returns:
        The gains; prints as a table, and gives its figures by ``to_dict()``.

    Raises:
        UnknownNameError: no such activation or parameter; lists the nearest.
        ArgumentError: a callable that is not pointwise or not finite, a ``q`` that is not a variance, or a φ that is
            0 or has no second moment at this q.

    Source: He et al., ICCV 2015, eq. 7 to 14 for ReLU; Poole et al., NIPS 2016, eq. 3 and Schoenholz et al., ICLR
    2017, eq. 5 for χ and Q′.

    >>> g = gain("relu")
    >>> round(g.forward, 9), round(g.backward, 9), g.chi, g.method
    (1.414213562, 1.414213562, 1.0, 'closed-form')
    """
    phi = activation(spec, **parameters)
    q = check_q(q)
    forward, backward, slope = second_moment(phi, q), derivative_second_moment(phi, q), growth(phi, q)
    if forward.value <= 0:
        cure = f"It is 0 for inputs of variance {q:g}: no weights can make up for it. Use a larger q."
        raise ArgumentError("activation", str(phi), cure)
    methods = {forward.method, backward.method, slope.method}
    errors = [m.error / m.value for m in (forward, backward) if m.value]
    ways = phi.inputs * backward.value
    error = max(*errors, slope.error / forward.value)
    return Gain(
        activation=str(phi),
        forward=math.sqrt(q / forward.value),
        backward=1 / math.sqrt(backward.value) if backward.value else math.inf,
        compromise=math.sqrt(2 / (forward.value / q + ways)),
        chi=ways * q / forward.value,
        stability=slope.value / forward.value,
        method="closed-form" if methods == {"closed-form"} else "quadrature",
        error=error,
        _q=q,
        _notes=_notes(phi, backward.value, error),
    )
