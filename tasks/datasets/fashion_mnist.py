"""Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017, arXiv:1708.07747) from its official idx files."""

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, BinaryIO, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from pydantic import BaseModel, Field, PositiveInt, field_validator, model_validator
from torch import Tensor
from torch.utils.data import Dataset

from tasks.datasets.protocol import Example, Split, TaskName
from tasks.datasets.splits import choose

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SUBSET_FOLDER = Path(__file__).with_name("fashion_mnist_subset")
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
_STEMS = {"train": "train", "val": "train", "test": "t10k"}


class FashionMNISTConfig(BaseModel, frozen=True, extra="forbid"):
    """Fashion-MNIST.

    Attributes:
        name: Registered name.
        source: "subset" is a class-balanced choice of 8,000 train and 2,000 test images that comes with the
            project; "full" are the 70,000 images, looked for in `root`, then where Debian's package
            dataset-fashion-mnist puts them, then, with `download`, fetched into `root`.
        root: Folder with the official idx files, compressed or not; torchvision's layout will do.
        download: Whether torchvision may fetch the full set into `root`.
        pad: Height and width in pixels after padding 28x28 with zeros on all sides. None leaves 28x28.
        val_size: Number of train images held out as "val", the same number of each class.
        limit: At most this many images per class, the first ones. None keeps all.
        seed: Seed of the hold-out.
    """

    task: ClassVar[TaskName] = "classification"
    name: Literal["fashion_mnist"] = "fashion_mnist"
    source: Literal["subset", "full"] = "subset"
    root: Path | None = None
    download: bool = False
    pad: PositiveInt | None = 32
    val_size: Annotated[int, Field(ge=0)] = 500
    limit: PositiveInt | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @field_validator("val_size")
    @classmethod
    def _is_balanced(cls, val_size: int) -> int:
        if val_size % len(CLASSES):
            raise ValueError(f"must be a multiple of the {len(CLASSES)} classes, got {val_size}")
        return val_size

    @field_validator("pad")
    @classmethod
    def _pads_evenly(cls, pad: int | None) -> int | None:
        if pad is not None and (pad < 28 or pad % 2):
            raise ValueError(f"must be an even number of at least 28 pixels, got {pad}")
        return pad

    @model_validator(mode="after")
    def _has_a_use_for_root(self) -> "FashionMNISTConfig":
        if self.source == "subset" and (self.root is not None or self.download):
            raise ValueError("root and download are for source: full; the subset comes with the project")
        if self.download and self.root is None:
            raise ValueError("download needs a root, the folder to put the files in")
        return self

    def build(self, split: Split) -> "FashionMNIST":
        """Reads a split.

        Raises:
            ValueError: If the files are missing, corrupt or something else, or `val_size` leaves nothing.
        """
        folder = SUBSET_FOLDER if self.source == "subset" else _find_full_set(self.root, self.download)
        images, labels = read_pair(folder, _STEMS[split])
        held: tuple[Split, ...] = () if split == "test" else ("val",)
        shares = {"val": self.val_size // len(CLASSES)}
        chosen = choose(labels, CLASSES, split, held, shares, self.seed, self.limit)
        images = images[chosen]
        if self.pad is not None:
            margin = (self.pad - 28) // 2
            images = np.pad(images, ((0, 0), (margin, margin), (margin, margin)))
        return FashionMNIST(
            torch.from_numpy(images), torch.from_numpy(labels[chosen]), torch.from_numpy(chosen)
        )


class FashionMNIST(Dataset[Example]):
    """Fashion-MNIST in memory, one byte per pixel; items are grey images as three equal channels.

    Attributes:
        name: Registered name.
        task: "classification".
        classes: The ten class names.
        labels: All labels.
        ids: Positions in the idx file, so train and val images never share an id.
    """

    def __init__(
        self, images: UInt8[Tensor, "n h w"], labels: Int64[Tensor, " n"], ids: Int64[Tensor, " n"]
    ) -> None:
        self.name = "fashion_mnist"
        self.task: TaskName = "classification"
        self.classes = CLASSES
        self.labels = labels
        self.ids = ids
        self._images = images

    @property
    def grey(self) -> UInt8[np.ndarray, "n h w"]:
        """All images, one byte per pixel."""
        return self._images.numpy()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        image = self._images[index].expand(3, -1, -1) / 255
        return {"images": image, "labels": int(self.labels[index]), "ids": int(self.ids[index])}

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Reads many at once, as DataLoader does; the same as `[self[i] for i in indices]`, only faster."""
        rows = torch.as_tensor(indices)
        images = self._images[rows].unsqueeze(1).expand(-1, 3, -1, -1) / 255
        columns = zip(images.unbind(), self.labels[rows].tolist(), self.ids[rows].tolist(), strict=True)
        return [{"images": image, "labels": label, "ids": id_} for image, label, id_ in columns]


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """Reads an array of bytes in idx format (http://yann.lecun.com/exdb/mnist), gzip-compressed or not.

    The header is two zero bytes, the type (8: unsigned bytes), the number of dimensions, and each dimension
    as a big-endian uint32; the values follow, last dimension fastest.

    Raises:
        ValueError: If the file is missing, truncated, too long, or not such an array.
    """
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream: BinaryIO | gzip.GzipFile = gzip.GzipFile(fileobj=raw) if compressed else raw
            magic = stream.read(4)
            if len(magic) < 4 or magic[:3] != b"\0\0\x08":
                raise ValueError(
                    f"{path} is no idx file of bytes: wanted magic 00 00 08 nn, got {magic.hex(' ')}"
                )
            sizes = stream.read(4 * magic[3])
            if len(sizes) < 4 * magic[3]:
                raise ValueError(f"{path} is truncated: it ends inside its header")
            shape = struct.unpack(f">{magic[3]}I", sizes)
            values = stream.read()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read, fetch it again ({error})") from error
    if len(values) != math.prod(shape):
        raise ValueError(
            f"{path} is truncated or corrupt: its header announces {shape}, {math.prod(shape)} bytes, but "
            f"{len(values)} follow"
        )
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


def read_pair(folder: Path, stem: str) -> tuple[UInt8[np.ndarray, "n 28 28"], Int64[np.ndarray, " n"]]:
    """Reads the images and labels of the official part "train" or "t10k".

    Raises:
        ValueError: If a file is missing or corrupt, or the two do not fit together.
    """
    images_path, labels_path = (_idx_file(folder, stem, kind) for kind in ("images-idx3", "labels-idx1"))
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or images.shape[1:] != (28, 28):
        raise ValueError(f"{images_path}: wanted images of shape (n, 28, 28), got {images.shape}")
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"{labels_path}: wanted {len(images)} labels as {images_path.name} has, got {labels.shape}"
        )
    if labels.size and labels.max() >= len(CLASSES):
        raise ValueError(f"{labels_path}: wanted labels 0 to {len(CLASSES) - 1}, got {labels.max()}")
    return images, labels.astype(np.int64)


def _idx_file(folder: Path, stem: str, kind: str) -> Path:
    uncompressed = folder / f"{stem}-{kind}-ubyte"
    return uncompressed if uncompressed.exists() else folder / f"{stem}-{kind}-ubyte.gz"


def _find_full_set(root: Path | None, download: bool) -> Path:
    in_root: list[Path] = []
    if root is not None:
        root = root.expanduser()
        in_root = [root, root / "FashionMNIST" / "raw", root / "raw"]
    for folder in (*in_root, DEBIAN_FOLDER):
        if all(
            _idx_file(folder, stem, kind).exists()
            for stem in ("train", "t10k")
            for kind in ("images-idx3", "labels-idx1")
        ):
            return folder
    if download and root is not None:
        from torchvision.datasets import FashionMNIST as Downloader

        try:
            Downloader(str(root), download=True)
        except (RuntimeError, OSError) as error:
            raise ValueError(f"Fashion-MNIST could not be downloaded into {root}: {error}") from error
        return root / "FashionMNIST" / "raw"
    tried = ", ".join(map(str, (*in_root, DEBIAN_FOLDER)))
    raise ValueError(
        "the full Fashion-MNIST (train- and t10k-, images-idx3-ubyte and labels-idx1-ubyte, .gz or not) was "
        f"not found in {tried}. Set root to the folder that has it, or install Debian's package "
        "dataset-fashion-mnist, or set download: true and a root, or use source: subset, which comes with "
        "the project."
    )
