"""Writes a Plan into a model, and hands back a Receipt; the only place that writes weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import batchnorm

from initwell.apply.memory import check_memory
from initwell.apply.plan import plan
from initwell.apply.receipt import Receipt, ReceiptRow, digest
from initwell.apply.record import Plan, PlanRow
from initwell.apply.rules import Pattern
from initwell.apply.sites import Site, sites_of
from initwell.errors import ArgumentError, ModelError
from initwell.sampling.fill import fill

__all__ = ["Receipt", "init_"]


def init_(
    model: nn.Module,
    scheme: object,
    *,
    example: Any = None,
    seed: int = 0,
    activation: object = None,
    rules: Mapping[Pattern, object] | None = None,
    only: str | Sequence[str] | None = None,
) -> Receipt:
    """Initialize a model in place.

    A weight depends on the seed, its parameter's name and the element's place in it, and on nothing else; the global
    random generators are neither used nor moved. ``requires_grad``, ``.grad`` and buffers stay as they are. The whole
    plan is made and checked before the first weight is written.

    Args:
        model: the model, on any device but meta, of any floating-point type; values are rounded from float32.
        scheme: a name, a scheme such as ``Kaiming(slope=0.25)``, any initializer, or a Plan to be replayed.
        example: a batch, to follow the activation behind each layer through the model; as for ``plan``.
        seed: of the weights, 0 or more; a Plan has its own.
        activation: what follows every layer, instead of what is found; "linear" for none.
        rules: patterns or types → other schemes; as for ``plan``.
        only: patterns of the parameters to write; as for ``plan``.

    Returns:
        The Receipt: the plan's rows, each with the SHA-256 of what now stands in the parameter.

    Raises:
        ArgumentError: as for ``plan``; or a model on meta, sharded, with parameters that share a part of their memory,
            or not the one that the Plan was made for.
        UnknownNameError: an unknown scheme or activation; lists the nearest.
        ShapeError: the scheme has no meaning for a parameter's shape.
        ModelError: the model failed on the example, or a parameter refused to be written; the latter says which were
            written before.

    >>> layers = nn.Sequential(nn.Linear(50, 20), nn.ReLU(), nn.Linear(20, 3))
    >>> receipt = init_(layers, "kaiming", seed=1)
    >>> init_(layers, "kaiming", seed=1) == receipt
    True
    """
    if isinstance(scheme, Plan):
        given = {"example": example, "activation": activation, "rules": rules, "only": only}
        _check_replay(scheme, seed, [name for name, value in given.items() if value is not None])
        decided = scheme
    else:
        decided = plan(model, scheme, example=example, seed=seed, activation=activation, rules=rules, only=only)
    return _write(model, decided)


def _check_replay(replayed: Plan, seed: int, given: Sequence[str]) -> None:
    if given:
        cure = "A Plan is already decided; make another with plan(...)."
        raise ArgumentError(", ".join(given), "given together with a Plan", cure)
    if seed not in (0, replayed.seed):
        raise ArgumentError("seed", seed, f"The Plan has its own seed, {replayed.seed}: leave seed= out.")


def _write(model: nn.Module, decided: Plan) -> Receipt:
    sites = _matched(model, decided)
    check_memory([site for site, row in zip(sites, decided.rows, strict=True) if row.written])
    norms = {row.parameter: _norm(row, decided) for row in decided.rows if row.norm_of}
    done: list[ReceiptRow] = []
    for site, row in zip(sites, decided.rows, strict=True):
        try:
            if row.written:
                _copy(site.tensor, norms.get(row.parameter), row, decided.seed)
        except Exception as error:
            before = [r.parameter for r in done if r.sha256] or ["none"]
            text = f"{row.parameter}: could not be written ({error}). Written before it: {', '.join(before)}."
            raise ModelError(text) from error
        done.append(ReceiptRow.of(row, digest(site.tensor) if row.written else None))
    notes = (*decided.notes, *_stale_statistics(model))
    return Receipt(decided.scheme, decided.seed, tuple(done), notes, decided.citations, decided)


def _matched(model: nn.Module, decided: Plan) -> tuple[Site, ...]:
    """Find the site of each row; refuse a model that has other parameters, other shapes or other ties."""
    sites = sites_of(model)
    there = {frozenset((s.parameter, *s.tied_to)): s for s in sites}
    planned = {frozenset((r.parameter, *r.tied_to)): r for r in decided.rows}
    faults = [f"{_names(group)} {there[group].shape} is not in the plan" for group in there if group not in planned]
    faults += [f"{_names(group)} {planned[group].shape} is not in the model" for group in planned if group not in there]
    for group, row in planned.items():
        if group in there and there[group].shape != row.shape:
            faults.append(f"{row.parameter} is {there[group].shape} in the model and {row.shape} in the plan")
    if faults:
        shown = "; ".join(sorted(faults)[:12]) + (f"; and {len(faults) - 12} more" if len(faults) > 12 else "")
        raise ArgumentError("model", f"not the one of the plan: {shown}", "Make a plan for this model with plan(...).")
    return tuple(there[group] for group in planned)


def _names(group: frozenset[str]) -> str:
    return " = ".join(sorted(group))


def _values(row: PlanRow, seed: int) -> Tensor:
    assert row.distribution is not None
    values = torch.from_numpy(fill(row.distribution, row.shape, seed=seed, name=row.key))
    if row.zero_row is not None:
        values[row.zero_row] = 0
    return values


def _norm(row: PlanRow, decided: Plan) -> Tensor:
    direction = next(r for r in decided.rows if r.parameter == row.norm_of)
    norm = torch.norm_except_dim(_values(direction, decided.seed), 2, row.norm_axis)
    if not bool(norm.all()):
        cure = "weight_norm divides by the norm: give that layer another scheme with rules={...}."
        raise ArgumentError("scheme", f"{direction.initializer} with rows of zeros for {direction.parameter!r}", cure)
    return norm


def _copy(parameter: Tensor, values: Tensor | None, row: PlanRow, seed: int) -> None:
    with torch.no_grad():
        parameter.copy_(_values(row, seed) if values is None else values)


def _stale_statistics(model: nn.Module) -> list[str]:
    counts = [m.num_batches_tracked for m in model.modules() if isinstance(m, batchnorm._NormBase)]
    seen = [c for c in counts if c is not None and not c.is_meta and int(c) > 0]
    if not seen:
        return []
    return [f"{len(seen)} norm layers keep running statistics of the weights before: buffers are left as they are."]
