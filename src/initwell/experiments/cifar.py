"""CIFAR-10 in its binary layout (Krizhevsky, https://www.cs.toronto.edu/~kriz/cifar.html), read strictly."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from initwell.errors import DataFormatError

SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32
CLASSES = 10


def read_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read one batch file: records of one label byte and 3×1024 pixel bytes, channel first.

    Args:
        path: ``data_batch_1.bin`` and the like.

    Returns:
        Images (N, 3, 32, 32) uint8 and labels (N,) int64.

    Raises:
        DataFormatError: the size is not a whole number of records, or a label exceeds 9.
    """
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataFormatError(f"{path}: cannot be read ({error}). Fetch the file again, whole.") from error
    if content.size == 0 or content.size % RECORD:
        raise DataFormatError(
            f"{path}: {content.size} bytes are not a whole number of records of {RECORD} bytes (1 label + 3×1024 "
            "pixels). It is truncated or not the binary version of CIFAR-10; fetch cifar-10-binary.tar.gz again."
        )
    records = content.reshape(-1, RECORD)
    labels = records[:, 0].astype(np.int64)
    if labels.max() >= CLASSES:
        where = int(np.argmax(labels >= CLASSES))
        raise DataFormatError(
            f"{path}: record {where} has the label {labels[where]}; labels run from 0 to {CLASSES - 1}. "
            "It is mislabelled or of another layout (CIFAR-100 has two label bytes)."
        )
    return np.ascontiguousarray(records[:, 1:]).reshape(-1, *SHAPE), labels


def training_files(directory: Path) -> tuple[Path, ...]:
    """List ``data_batch_N.bin`` by number."""
    numbered = [(p.stem.removeprefix("data_batch_"), p) for p in directory.glob("data_batch_*.bin")]
    return tuple(p for _, p in sorted((int(number), p) for number, p in numbered if number.isdigit()))


def read_names(directory: Path) -> tuple[str, ...]:
    """Read the class names of ``batches.meta.txt``, or number the classes where there is no such file."""
    path = directory / "batches.meta.txt"
    if not path.is_file():
        return tuple(str(k) for k in range(CLASSES))
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataFormatError(f"{path}: cannot be read ({error}). It should be ten lines of text.") from error
    if len(names) != CLASSES:
        raise DataFormatError(f"{path}: {len(names)} names, ten are expected. Mend or remove the file.")
    return names
