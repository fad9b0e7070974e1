"""What ``init_`` hands back: what was written, and a digest of every tensor as it stands."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from initwell.apply.record import COLUMNS, Plan, PlanRow, TableRow
from initwell.records import TableRecord


@dataclass(frozen=True)
class ReceiptRow(TableRow):
    """What was done to one parameter.

    Attributes:
        parameter: its dotted name.
        shape: its shape.
        initializer: what was drawn; "left alone" for nothing.
        fan: the fan that the standard deviation was made from, if any.
        gain: the gain it was made from, if any.
        std: of the entries, as planned; None where nothing was drawn.
        reason: why, in plain words.
        sha256: of the tensor's bytes, in C order and its own dtype; None where nothing was written.
    """

    columns: ClassVar[tuple[str, ...]] = (*COLUMNS, "sha256")

    parameter: str
    shape: tuple[int, ...]
    initializer: str
    fan: float | None
    gain: float | None
    std: float | None
    reason: str
    sha256: str | None

    @classmethod
    def of(cls, row: PlanRow, sha256: str | None) -> Self:
        """Take over the row of the plan."""
        return cls(**dict(row), sha256=sha256)


@dataclass(frozen=True)
class Receipt(TableRecord):
    """What ``init_`` wrote into a model.

    Attributes:
        scheme: what was asked for.
        seed: of the weights.
        rows: one for every parameter, those left alone included.
        notes: what must not stay silent.
        citations: BibTeX entries of what was used.
    """

    scheme: str
    seed: int
    rows: tuple[ReceiptRow, ...]
    notes: tuple[str, ...]
    citations: tuple[str, ...]
    _plan: Plan

    @property
    def plan(self) -> Plan:
        """The plan that was carried out, to be saved or replayed."""
        return self._plan

    def citation(self) -> str:
        """Return BibTeX of the papers behind what was written; "" where there is none."""
        return self._plan.citation()

    def table_title(self) -> str:
        """Say what was done."""
        written = sum(row.sha256 is not None for row in self.rows)
        return f"Receipt: {self.scheme}, seed {self.seed}, {written} of {len(self.rows)} parameters written"

    def table_columns(self) -> Sequence[str]:
        """Name the columns."""
        return ReceiptRow.columns

    def table_rows(self) -> Sequence[Mapping[str, Any]]:
        """Return the rows, digests cut to their first twelve digits."""
        return [dict(row) | {"sha256": row.sha256 and row.sha256[:12]} for row in self.rows]

    def table_notes(self) -> Sequence[str]:
        """Return the notes."""
        return self.notes


def digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes, in C order and its own dtype, wherever it lies.

    Args:
        tensor: any dense tensor with memory.

    Returns:
        64 hexadecimal digits.

    >>> digest(torch.zeros(2)) == digest(torch.zeros(4)[::2])
    True
    """
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()
