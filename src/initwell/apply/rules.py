"""Which scheme holds for which parameter: rules by pattern or type, and the choice of parameters to write at all."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from initwell.apply.schemes.base import Scheme
from initwell.apply.schemes.registry import scheme
from initwell.apply.sites import Site
from initwell.errors import ArgumentError

Pattern = str | type

_ONLY = "Give one pattern of parameter names, or a sequence of them."


@dataclass(frozen=True)
class Rule:
    """One rule of the caller's.

    Attributes:
        pattern: a glob over module paths or parameter names, or a type of module.
        scheme: what holds there; None leaves it alone.
    """

    pattern: Pattern
    scheme: Scheme | None

    @property
    def text(self) -> str:
        """The pattern as a table shows it."""
        return self.pattern if isinstance(self.pattern, str) else self.pattern.__name__

    def covers(self, site: Site) -> bool:
        """Whether it holds for a parameter: its own module, or any module around that, matches."""
        if isinstance(self.pattern, type):
            return any(isinstance(module, self.pattern) for module in site.chain)
        return any(fnmatchcase(name, self.pattern) for name in (*_paths(site), site.parameter, *site.tied_to))

    def names(self, site: Site) -> bool:
        """Whether the pattern names the parameter itself, as "*.bias" does and "head.*" does not."""
        if isinstance(self.pattern, type) or self.pattern.rpartition(".")[2].strip("*") == "":
            return False
        return any(fnmatchcase(name, self.pattern) for name in (site.parameter, *site.tied_to))


def _paths(site: Site) -> Sequence[str]:
    """Return the path of the owner and of every module around it; of a tied parameter, of all its owners."""
    owners = {site.path, *(name.rpartition(".")[0] for name in site.tied_to)}
    found = {""}
    for owner in owners:
        steps = owner.split(".") if owner else []
        found |= {".".join(steps[: i + 1]) for i in range(len(steps))}
    return sorted(found)


def rules_from(rules: Mapping[Pattern, object] | None, sites: Iterable[Site]) -> tuple[Rule, ...]:
    """Check the caller's rules against a model.

    Args:
        rules: pattern or module type → scheme, or None to leave it alone; the first that matches holds.
        sites: the model's parameters.

    Returns:
        The rules, in order.

    Raises:
        ArgumentError: a pattern of another type, a type that is no module's, or a rule that matches nothing.
        UnknownNameError: an unknown scheme.
    """
    if rules is None:
        return ()
    if not isinstance(rules, Mapping):
        raise ArgumentError("rules", repr(rules), "Give a mapping, such as {'head': 'zeros', nn.Embedding: 'normal'}.")
    made = []
    sites = tuple(sites)
    for pattern, spec in rules.items():
        if not isinstance(pattern, str) and not (isinstance(pattern, type) and issubclass(pattern, nn.Module)):
            raise ArgumentError("rules", repr(pattern), "Give a module-path pattern or a torch.nn.Module type.")
        rule = Rule(pattern, None if spec is None else scheme(spec))
        if not any(rule.covers(site) for site in sites):
            raise ArgumentError("rules", f"{rule.text!r}, which matches nothing", _nearest(rule.pattern, sites))
        made.append(rule)
    return tuple(made)


def idle(rules: Sequence[Rule], sites: Sequence[Site]) -> tuple[str, ...]:
    """Name the rules that hold nowhere, since earlier ones cover all that they match.

    Args:
        rules: in order.
        sites: the model's parameters.

    Returns:
        A sentence for each such rule.
    """
    used = {next((r.text for r in rules if r.covers(site)), "") for site in sites}
    return tuple(
        f"The rule {rule.text!r} holds nowhere: earlier rules cover all that it matches; put it before them."
        for rule in rules
        if rule.text not in used
    )


def _nearest(pattern: Pattern, sites: Sequence[Site]) -> str:
    if isinstance(pattern, type):
        kinds = sorted({type(module).__name__ for site in sites for module in site.chain})
        return f"The model has {', '.join(kinds[:12])}."
    known = sorted({path for site in sites for path in _paths(site) if path} | {site.parameter for site in sites})
    near = difflib.get_close_matches(pattern, known, n=4, cutoff=0.3) or known[:4]
    return f"The nearest there are: {', '.join(map(repr, near))}."


def _nearest_parameter(pattern: str, sites: Sequence[Site]) -> str:
    if any(fnmatchcase(path, pattern) for site in sites for path in _paths(site)):
        return f"It names a module: write {pattern + '.*'!r} for all that is in it."
    known = sorted({name for site in sites for name in (site.parameter, *site.tied_to)})
    near = difflib.get_close_matches(pattern, known, n=4, cutoff=0.3) or known[:4]
    return f"The nearest there are: {', '.join(map(repr, near))}."


def chosen(only: str | Sequence[str] | None, sites: Sequence[Site]) -> frozenset[str] | None:
    """Find the parameters that the caller means with ``only``.

    Args:
        only: one glob over parameter names, or several; None for all.
        sites: the model's parameters.

    Returns:
        Their names; None for all.

    Raises:
        ArgumentError: not text, or a pattern that matches nothing.
    """
    if only is None:
        return None
    if not isinstance(only, Iterable):
        raise ArgumentError("only", repr(only), _ONLY)
    patterns = (only,) if isinstance(only, str) else tuple(only)
    found: set[str] = set()
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ArgumentError("only", repr(only), _ONLY)
        matched = {s.parameter for s in sites if any(fnmatchcase(n, pattern) for n in (s.parameter, s.key, *s.tied_to))}
        if not matched:
            raise ArgumentError("only", f"{pattern!r}, which matches no parameter", _nearest_parameter(pattern, sites))
        found |= matched
    if not found:
        raise ArgumentError("only", repr(only), "Give at least one pattern, or leave it out for all parameters.")
    return frozenset(found)
