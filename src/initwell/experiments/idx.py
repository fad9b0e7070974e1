"""The idx files of MNIST and its kin (http://yann.lecun.com/exdb/mnist/), plain or gzip, read strictly."""

import gzip
import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from initwell.errors import DataFormatError

_CHUNK = 1 << 20
_UBYTE = 0x08
_Stream = gzip.GzipFile | io.BufferedReader
_PARTS = {"train": "train", "test": "t10k"}


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one idx file of unsigned bytes.

    Args:
        path: the file; a name that ends in ``.gz`` is decompressed.

    Returns:
        The array with the shape that the file's header states, uint8.

    Raises:
        DataFormatError: wrong magic number, another element type, or more or fewer bytes than the header states.

    Source: LeCun, Cortes and Burges, "The MNIST database", section "FILE FORMATS".
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            shape = _read_header(stream, path)
            count = math.prod(shape)
            body = _read_at_most(stream, count + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataFormatError(f"{path}: cannot be read ({error}). Fetch the file again, whole.") from error
    if len(body) != count:
        found = f"only {len(body)}" if len(body) < count else "more"
        raise DataFormatError(
            f"{path}: the header states {'×'.join(map(str, shape))} = {count} bytes, the file holds {found}. "
            "It is truncated or not what it says; fetch it again."
        )
    return np.frombuffer(body, dtype=np.uint8).reshape(shape)


def _read_header(stream: _Stream, path: Path) -> tuple[int, ...]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] != _UBYTE or magic[3] == 0:
        raise DataFormatError(
            f"{path}: the first four bytes are {magic.hex(' ') or 'missing'}, an idx file of unsigned bytes starts "
            "00 00 08 and its number of axes. Give the idx file as it was published (.gz or plain)."
        )
    sizes = stream.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise DataFormatError(f"{path}: ends inside its header. It is truncated; fetch it again.")
    shape = struct.unpack(f">{magic[3]}I", sizes)
    if 0 in shape:
        raise DataFormatError(f"{path}: states the shape {shape}, which holds nothing. Give a file with images.")
    return shape


def _read_at_most(stream: _Stream, count: int) -> bytes:
    # In chunks, for a forged header may state more bytes than there is memory.
    body = bytearray()
    while len(body) < count and (chunk := stream.read(min(_CHUNK, count - len(body)))):
        body += chunk
    return bytes(body)


def find_idx(directory: Path, part: str, what: str) -> Path | None:
    """Find the idx file of a part of the data.

    Args:
        directory: where to look.
        part: ``train`` or ``test``.
        what: ``images`` or ``labels``.

    Returns:
        The path, the plain file before the compressed one, or None.
    """
    axes = 3 if what == "images" else 1
    for separator in "-.":
        for suffix in ("", ".gz"):
            path = directory / f"{_PARTS[part]}-{what}{separator}idx{axes}-ubyte{suffix}"
            if path.is_file():
                return path
    return None


def read_idx_part(directory: Path, part: str, classes: int = 10) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Read the images and labels of one part and hold them against each other.

    Args:
        directory: a folder with the idx files under their published names.
        part: ``train`` or ``test``.
        classes: labels run from 0 to one less.

    Returns:
        Images (N, 1, H, W) uint8 and labels (N,) int64.

    Raises:
        DataFormatError: a file is missing, images and labels differ in number, or a label is out of range.
    """
    files = {what: find_idx(directory, part, what) for what in ("images", "labels")}
    for what, path in files.items():
        if path is None:
            axes = 3 if what == "images" else 1
            name = f"{_PARTS[part]}-{what}-idx{axes}-ubyte"
            raise DataFormatError(f"{directory}: has no {name}(.gz). Put all four idx files into one folder.")
    images_path, labels_path = files["images"], files["labels"]
    assert images_path is not None
    assert labels_path is not None
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or labels.ndim != 1:
        wrong, axes, wanted = (images_path, images.ndim, 3) if images.ndim != 3 else (labels_path, labels.ndim, 1)
        raise DataFormatError(f"{wrong}: has {axes} axes where {wanted} were expected. Were two files swapped?")
    if len(images) != len(labels):
        raise DataFormatError(
            f"{labels_path}: {len(labels)} labels for the {len(images)} images of {images_path.name}. "
            "The two files do not belong together."
        )
    if labels.max() >= classes:
        where = int(np.argmax(labels >= classes))
        raise DataFormatError(
            f"{labels_path}: label {labels[where]} at position {where}; labels run from 0 to {classes - 1}."
        )
    return images[:, None], labels.astype(np.int64)
