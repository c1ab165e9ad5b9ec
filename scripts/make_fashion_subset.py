"""Makes the part of Fashion-MNIST that comes with the project: class-balanced, seeded, official idx format.

Command: python scripts/make_fashion_subset.py
Needs the full set: Debian's package dataset-fashion-mnist, or --full FOLDER. Running it again gives the same
bytes (with the same zlib; the arrays inside are the same with any).
"""

import argparse
import gzip
import hashlib
import struct
import sys
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from gat.cli.exit_codes import exit_code
from tasks.datasets.fashion_mnist import CLASSES, DEBIAN_FOLDER, SUBSET_FOLDER, read_pair


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--full", type=Path, default=DEBIAN_FOLDER, help="folder of the full set (%(default)s)"
    )
    parser.add_argument("--out", type=Path, default=SUBSET_FOLDER, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-per-class", type=int, default=800)
    parser.add_argument("--test-per-class", type=int, default=200)
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    rng = np.random.RandomState(args.seed)  # its stream is frozen across versions of numpy
    for stem, per_class in (("train", args.train_per_class), ("t10k", args.test_per_class)):
        images, labels = read_pair(args.full, stem)
        chosen = choose_balanced(labels, per_class, rng)
        write_idx(args.out / f"{stem}-images-idx3-ubyte.gz", images[chosen])
        write_idx(args.out / f"{stem}-labels-idx1-ubyte.gz", labels[chosen].astype(np.uint8))


def choose_balanced(
    labels: Int64[np.ndarray, " n"], per_class: int, rng: np.random.RandomState
) -> Int64[np.ndarray, " m"]:
    """Draws the same number of examples of each class; returns their positions in the official order."""
    chosen = [rng.permutation(np.flatnonzero(labels == label))[:per_class] for label in range(len(CLASSES))]
    if short := [name for name, drawn in zip(CLASSES, chosen, strict=True) if len(drawn) < per_class]:
        raise ValueError(f"wanted {per_class} examples of each class, there are fewer of {', '.join(short)}")
    return np.sort(np.concatenate(chosen))


def write_idx(path: Path, array: UInt8[np.ndarray, "..."]) -> None:
    """Writes bytes in idx format, gzip-compressed, without a time stamp; prints the digest of the content."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    content = header + array.tobytes()
    path.write_bytes(gzip.compress(content, compresslevel=9, mtime=0))
    digest = hashlib.sha256(content).hexdigest()
    print(f"{path.name}: {path.stat().st_size} bytes, sha256 of the uncompressed content {digest}")


if __name__ == "__main__":
    sys.exit(exit_code("make_fashion_subset.py", main))
