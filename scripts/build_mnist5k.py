"""Build src/initwell/experiments/mnist5k.npz from a folder of the four MNIST idx files (.gz or plain).

The first 500 training and 100 test images of each class, in the files' order: nothing is drawn, so the file is the
same whoever builds it. Usage: python scripts/build_mnist5k.py FOLDER [OUTPUT]
"""

import sys
from pathlib import Path

import numpy as np

from initwell.experiments.data import Dataset
from initwell.experiments.idx import read_idx_part

OUTPUT = Path(__file__).parents[1] / "src" / "initwell" / "experiments" / "mnist5k.npz"


def build(folder: Path, output: Path) -> None:
    train_x, train_y = read_idx_part(folder, "train")
    test_x, test_y = read_idx_part(folder, "test")
    whole = Dataset("mnist", train_x, train_y, test_x, test_y, tuple("0123456789"))
    part = whole.subset(train=5000, test=1000)
    np.savez_compressed(
        output,
        train_x=part.train_x[:, 0],
        train_y=part.train_y.astype(np.uint8),
        test_x=part.test_x[:, 0],
        test_y=part.test_y.astype(np.uint8),
    )


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    target = Path(sys.argv[2]) if len(sys.argv) == 3 else OUTPUT
    build(Path(sys.argv[1]), target)
    print(f"{target}: {target.stat().st_size} bytes")
