"""Decides for every parameter of a model what is to be drawn, and why; writes nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from initwell.apply.activations import Finder
from initwell.apply.record import Plan, PlanRow
from initwell.apply.rules import Pattern, Rule, chosen, idle, rules_from
from initwell.apply.schemes.base import Choice, Scheme, from_initializer, kept
from initwell.apply.schemes.everywhere import Everywhere
from initwell.apply.schemes.registry import scheme as scheme_of
from initwell.apply.sites import Site, sites_of
from initwell.errors import ArgumentError
from initwell.sampling.stream import checked_seed
from initwell.theory.activations import activation as activation_of

__all__ = ["Plan", "PlanRow", "plan"]


def plan(
    model: nn.Module,
    scheme: object,
    *,
    example: Any = None,
    seed: int = 0,
    activation: object = None,
    rules: Mapping[Pattern, object] | None = None,
    only: str | Sequence[str] | None = None,
) -> Plan:
    """Decide what ``init_`` would write into a model, and why, without touching it.

    Args:
        model: the model; on any device, meta included. It comes back as it was.
        scheme: a name, a scheme such as ``Kaiming(slope=0.25)``, or any initializer.
        example: a batch; with it the activation behind each layer is followed through the model's own forward, on
            meta tensors. Without it the modules tell as far as they can.
        seed: of the weights, from 0 to 2**64 - 1.
        activation: what follows every layer, instead of what is found; "linear" for none.
        rules: module-path pattern, parameter-name pattern or module type → another scheme, or None to leave that
            alone; the first that matches holds. A pattern for a module holds for the modules within it.
        only: pattern or patterns of parameter names; the others are left alone. A frozen parameter (that takes no
            gradient) is written only when it is named here.

    Returns:
        The Plan: one row for every parameter, those left alone included.

    Raises:
        ArgumentError: no module, no parameters, lazy ones, rules or patterns that match nothing, a bad seed.
        UnknownNameError: an unknown scheme or activation; lists the nearest.
        ShapeError: the scheme has no meaning for a parameter's shape.
        ModelError: the model failed on the example.

    >>> layers = nn.Sequential(nn.Linear(50, 20), nn.ReLU(), nn.Linear(20, 3))
    >>> [(row.parameter, round(row.std, 3)) for row in plan(layers, "kaiming").rows]
    [('0.weight', 0.2), ('0.bias', 0.0), ('2.weight', 0.224), ('2.bias', 0.0)]
    """
    seed = checked_seed(seed)
    default = _scheme(scheme)
    sites = sites_of(model)
    made = rules_from(rules, sites)
    wanted = chosen(only, sites)
    given = None if activation is None else activation_of(activation)
    asked = [s for s in (default, *(r.scheme for r in made)) if s is not None and s.needs_activation]
    finder = Finder(model, sites, example=example, given=given) if asked else None
    decide = _Decision(default, made, wanted, finder)
    choices = [(site, *decide(site)) for site in sites]
    drawn = {site.parameter for site, choice, _ in choices if choice.distribution is not None}
    rows = tuple(_norm_row(s) if s.norm_of in drawn else _row(s, choice, because) for s, choice, because in choices)
    cited = tuple(dict.fromkeys(c.citation for _, c, _ in choices if c.citation and c.distribution is not None))
    notes = (*_notes(rows, finder, {"activation=": given, "example=": example}), *idle(made, sites))
    return Plan(default.describe(), seed, rows, notes, cited)


def _scheme(spec: object) -> Scheme:
    if isinstance(spec, Plan):
        raise ArgumentError("scheme", "a Plan", "It is decided already: hand it to init_(model, plan).")
    return scheme_of(spec)


@dataclass(frozen=True)
class _Decision:
    default: Scheme
    rules: tuple[Rule, ...]
    wanted: frozenset[str] | None
    finder: Finder | None

    def __call__(self, site: Site) -> tuple[Choice, str]:
        """Return the choice for one parameter, and which rule it comes from."""
        left = self._left(site)
        if left:
            return kept(left), ""
        rule = next((r for r in self.rules if r.covers(site)), None)
        because = "" if rule is None else f"by the rule {rule.text!r}"
        used = self.default if rule is None else rule.scheme
        if used is None:
            return kept("asked to be left alone"), because
        if rule is not None and rule.names(site):
            return _direct(used, self._informed(site, used)), because
        if site.role in ("weight", "embedding"):
            return used.weight(self._informed(site, used)), because
        return used.rest(site), because

    def _left(self, site: Site) -> str:
        if self.wanted is not None and site.parameter not in self.wanted:
            return "not among only="
        if site.frozen and self.wanted is None:
            return "frozen (requires_grad is False); name it with only= to have it written"
        if not site.tensor.is_floating_point():
            return site.note
        return "empty" if site.tensor.numel() == 0 else ""

    def _informed(self, site: Site, used: Scheme) -> Site:
        if self.finder is None or not used.needs_activation:
            return site
        found = self.finder(site)
        return replace(site, activation=found.activation, activation_from=found.why)


def _direct(used: Scheme, site: Site) -> Choice:
    # A rule that names a bias means the bias: the scheme's own rule for it, not the convention.
    if isinstance(used, Everywhere) and site.layout is None:
        return from_initializer(used.initializer, _as_vector(site))
    return used.weight(site)


def _as_vector(site: Site) -> Site:
    from initwell.apply.layouts import vector

    return replace(site, layout=vector(site.tensor))


def _row(site: Site, choice: Choice, because: str) -> PlanRow:
    written = choice.distribution
    reason = [choice.reason, because]
    if written is not None:
        reason.append(site.note)
    skip = site.zero_row if written is not None else None
    if skip is not None:
        reason.append(f"row {skip} (padding_idx) at 0")
    return PlanRow(
        parameter=site.parameter,
        shape=site.shape,
        initializer=choice.initializer,
        fan=choice.fan,
        gain=choice.gain,
        std=None if written is None else float(written.std),
        reason="; ".join(part for part in reason if part),
        distribution=written,
        key=site.key,
        tied_to=site.tied_to,
        zero_row=skip,
    )


def _norm_row(site: Site) -> PlanRow:
    # Follows the direction that it belongs to, whatever rules say of itself: the two are one weight.
    row = _row(site, Choice("norm", None, site.note), "")
    return replace(row, norm_of=site.norm_of, norm_axis=site.norm_axis)


def _notes(rows: Sequence[PlanRow], finder: Finder | None, given: Mapping[str, object]) -> tuple[str, ...]:
    notes = [] if finder is None else list(finder.notes)
    unasked = [name for name, value in given.items() if value is not None]
    if unasked and finder is None:
        notes.append(f"{' and '.join(unasked)} not looked at: this scheme does not depend on what follows a layer.")
    left = [row.parameter for row in rows if not row.written]
    if left:
        shown = ", ".join(left[:8]) + (f" and {len(left) - 8} more" if len(left) > 8 else "")
        notes.append(f"Left alone: {shown}; the reasons are in the rows.")
    return tuple(notes)
