"""What was measured, kept in a folder: predictions change from day to day, measurements do not.

A file holds the rows of one model at one start over all seeds, and by which versions they were measured; it is written
whole or not at all.
"""

import gzip
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

Runs = Sequence[Sequence[Mapping[str, Any]]]
_PLACE = ("path", "call", "op", "shape")
_SIZES = ("forward_rms", "gradient_rms")


def kept(folder: Path | None, key: str, measure: Callable[[], Runs]) -> Runs:
    """Return what was measured before under this key by this version of PyTorch, or measure it and keep it.

    Args:
        folder: where; None keeps nothing.
        key: model, start and seeds.
        measure: gives the rows of each seed.
    """
    if folder is None:
        return measure()
    file = folder / f"{re.sub('[^A-Za-z0-9.-]', '_', key)}.json.gz"
    head = {"key": key, "torch": torch.__version__}
    if file.exists():
        found = json.loads(gzip.decompress(file.read_bytes()))
        if found["head"] == head:
            return [_rows(found["places"], sizes) for sizes in found["sizes"]]
    runs = measure()
    places = [[row[name] for name in _PLACE] for row in runs[0]]
    sizes = [[[row[name] for name in _SIZES] for row in rows] for rows in runs]
    folder.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}")
    partial.write_bytes(gzip.compress(json.dumps({"head": head, "places": places, "sizes": sizes}).encode()))
    partial.replace(file)
    return runs


def _rows(places: Sequence[Sequence[Any]], sizes: Sequence[Sequence[Any]]) -> list[Mapping[str, Any]]:
    names = (*_PLACE, *_SIZES)
    return [dict(zip(names, (*place, *size), strict=True)) for place, size in zip(places, sizes, strict=True)]
