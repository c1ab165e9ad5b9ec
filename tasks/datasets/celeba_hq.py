"""Gender in CelebA-HQ (Karras et al., 2018, arXiv:1710.10196), in the four layouts in which it goes round."""

import json
import logging
import re
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from tasks.datasets.handles import process_handle
from tasks.datasets.image_folder import PART_NAMES, class_folders, find_parts, list_class_folders
from tasks.datasets.images import (
    FolderStore,
    ImageDataset,
    ImageFilesConfig,
    Listing,
    Store,
    UnreadableImageError,
    build_dataset,
)
from tasks.datasets.protocol import Split
from tasks.datasets.splits import part_to_read

logger = logging.getLogger(__name__)

CLASSES = ("female", "male")
PARTITION_FILE = "list_eval_partition.txt"
LAYOUTS = """\
  folders        {train,val,test}/{female,male}/*.jpg, or {female,male}/ alone
  celebamask_hq  CelebA-HQ-img/*.jpg, CelebAMask-HQ-attribute-anno.txt, CelebA-HQ-to-CelebA-mapping.txt; with
                 CelebA's list_eval_partition.txt beside them, its official splits
  stylegan_zip   a .zip or folder with dataset.json {"labels": [[file, 0 or 1], ...]}; train.zip, val.zip, ...
  parquet        {train,validation,test}-*.parquet with the columns image (struct of bytes, path) and label"""

Layout = Literal["folders", "celebamask_hq", "stylegan_zip", "parquet"]
Parts = Mapping[str, Callable[[], Listing]]  # how to list each official part


class CelebAHQConfig(ImageFilesConfig, frozen=True, extra="forbid"):
    """CelebA-HQ, classes female (0) and male (1).

    `root` is in one of these layouts; splits that it lacks are held out (see `part_to_read`):

      folders        {train,val,test}/{female,male}/*.jpg, or {female,male}/ alone
      celebamask_hq  CelebA-HQ-img/, CelebAMask-HQ-attribute-anno.txt, CelebA-HQ-to-CelebA-mapping.txt; with
                     CelebA's list_eval_partition.txt beside them, its splits (24,183 / 2,993 / 2,824 images)
      stylegan_zip   a .zip or folder with dataset.json, or train.zip, val.zip, ...
      parquet        {train,validation,test}-*.parquet shards as Hugging Face stores them

    Attributes:
        name: Registered name.
        layout: The layout of `root`. None detects it.
    """

    name: Literal["celeba_hq"] = "celeba_hq"
    layout: Layout | None = None

    def build(self, split: Split) -> ImageDataset:
        """Lists a split.

        Raises:
            ValueError: If `root` is in none of the layouts, or files are missing, empty or contradictory.
            ImportError: If there are parquet shards and pyarrow is not installed.
        """
        root = self.root.expanduser()
        if not root.exists():
            raise ValueError(f"root {root} does not exist")
        parts = _PARTS_OF[self.layout or _detect(root)](root)
        part, held = part_to_read(split, parts)
        listing = parts[part]()
        chosen = self.choose(listing.labels, CLASSES, split, held)
        return build_dataset(self, self.name, CLASSES, listing, chosen)


def _detect(root: Path) -> Layout:
    found: list[Layout] = []
    if root.is_dir():
        class_names = [{name.lower() for name in class_folders(part)} for part in find_parts(root).values()]
        if all(names == set(CLASSES) for names in class_names):
            found.append("folders")
        if _celebamask_folder(root) is not None:
            found.append("celebamask_hq")
        if any(root.glob("*.zip")) or (root / "dataset.json").exists():
            found.append("stylegan_zip")
        if any(root.rglob("*.parquet")):
            found.append("parquet")
    elif root.suffix == ".zip":
        found.append("stylegan_zip")
    elif root.suffix == ".parquet":
        found.append("parquet")
    if len(found) == 1:
        return found[0]
    state = f"could be {' or '.join(found)}: say which in `layout`" if found else "is in no known layout"
    raise ValueError(f"{root} {state}. CelebA-HQ is read from\n{LAYOUTS}")


# --- folders ----------------------------------------------------------------------------------------------


def _folder_parts(root: Path) -> Parts:
    def lister(folder: Path) -> Callable[[], Listing]:
        names = {name.lower(): name for name in class_folders(folder)}
        labels = {names.get(name, name): label for label, name in enumerate(CLASSES)}
        return lambda: list_class_folders(folder, labels)

    return {part: lister(folder) for part, folder in find_parts(root).items()}


# --- CelebAMask-HQ ----------------------------------------------------------------------------------------


def _celebamask_folder(root: Path) -> Path | None:
    places = (root, root / "CelebAMask-HQ")
    return next((folder for folder in places if (folder / "CelebA-HQ-img").is_dir()), None)


def _celebamask_parts(root: Path) -> Parts:
    folder = _celebamask_folder(root)
    if folder is None:
        raise ValueError(f"{root} has no folder CelebA-HQ-img")
    genders = _read_genders(folder / "CelebAMask-HQ-attribute-anno.txt")
    store = FolderStore((folder / "CelebA-HQ-img").resolve())
    there = set(store.list_keys())
    if missing := [name for name in genders if name.encode() not in there]:
        raise ValueError(f"{store.folder} lacks {len(missing)} of {len(genders)} images, e.g. {missing[0]}")

    def lister(names: Sequence[str]) -> Callable[[], Listing]:
        keys, labels = [name.encode() for name in names], [genders[name] for name in names]
        return lambda: Listing.join([(store, keys, labels)])

    partition = next((found for place in (root, folder) for found in place.glob(PARTITION_FILE)), None)
    if partition is None:
        logger.warning("%s has no %s of CelebA: val and test are held out at random", folder, PARTITION_FILE)
        return {"all": lister(list(genders))}
    originals = _read_table(folder / "CelebA-HQ-to-CelebA-mapping.txt", columns=3, header_lines=1)
    partitions = dict(_read_table(partition, columns=2))
    names_of: dict[str, list[str]] = {"0": [], "1": [], "2": []}
    for index, _, original in originals:
        name, number = f"{index}.jpg", partitions.get(original)
        if name not in genders or number not in names_of:
            raise ValueError(
                f"{name} of CelebA-HQ-to-CelebA-mapping.txt needs attributes and a partition 0, 1 or 2: the "
                f"attributes {'have' if name in genders else 'lack'} it, {original} has {number}"
            )
        names_of[number].append(name)
    if len(originals) != len(genders):
        raise ValueError(f"{len(genders)} images have attributes, but {len(originals)} are mapped to CelebA")
    by_part = zip(PART_NAMES, names_of.values(), strict=True)  # train 0, val 1, test 2
    return {part: lister(names) for part, names in by_part if names}


def _read_genders(path: Path) -> dict[str, int]:
    """Reads {file name: 1 if male else 0}: a count, the attribute names, then "0.jpg -1 1 ..." lines."""
    rows = _read_table(path)
    if len(rows) < 3 or len(rows[0]) != 1 or "Male" not in rows[1]:
        raise ValueError(f"{path}: wanted a count, then attribute names with Male among them, then images")
    column = rows[1].index("Male") + 1
    genders = {}
    for row in rows[2:]:
        if len(row) != len(rows[1]) + 1 or row[column] not in ("1", "-1"):
            got = " ".join(row)[:80]
            raise ValueError(f"{path}: wanted a file name and {len(rows[1])} times 1 or -1, got {got!r}")
        genders[row[0]] = int(row[column] == "1")
    if str(len(genders)) != rows[0][0]:
        raise ValueError(f"{path} is truncated: it announces {rows[0][0]} images and has {len(genders)}")
    return genders


def _read_table(path: Path, columns: int | None = None, header_lines: int = 0) -> list[list[str]]:
    try:
        rows = [line.split() for line in path.read_text("utf-8").splitlines() if line.strip()][header_lines:]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is needed for CelebAMask-HQ but cannot be read ({error})") from error
    if wrong := next((row for row in rows if columns is not None and len(row) != columns), None):
        raise ValueError(f"{path}: wanted {columns} columns, got {' '.join(wrong)[:80]!r}")
    return rows


# --- StyleGAN zip -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ZipStore:
    """The image files in a zip archive, under their names."""

    path: str  # resolved

    def read(self, key: bytes) -> bytes:
        try:
            with process_handle(self.path, zipfile.ZipFile).open(key.decode()) as member:
                return member.read()
        except (OSError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UnreadableImageError(f"{self.where(key)} cannot be read ({error})") from error

    def where(self, key: bytes) -> str:
        return f"{self.path}, file {key.decode()}"


def _stylegan_parts(root: Path) -> Parts:
    def lister(path: Path) -> Callable[[], Listing]:
        return lambda: _list_stylegan(path)

    if root.is_file() or (root / "dataset.json").exists():
        return {"all": lister(root)}
    archives = {path.stem: path for path in sorted(root.glob("*.zip"))}
    parts = {part: archives[name] for part, names in PART_NAMES.items() for name in names if name in archives}
    if not parts and len(archives) == 1:
        parts = {"all": next(iter(archives.values()))}
    if not parts:
        names = ", ".join(archives) or "none"
        raise ValueError(f"{root}: wanted train.zip, val.zip, test.zip, or a single archive, got {names}")
    return {part: lister(path) for part, path in parts.items()}


def _list_stylegan(path: Path) -> Listing:
    store: Store
    try:
        if path.is_dir():
            store = FolderStore(path.resolve())
            text, there = (path / "dataset.json").read_bytes(), {key.decode() for key in store.list_keys()}
        else:
            store = ZipStore(str(path.resolve()))
            archive = process_handle(store.path, zipfile.ZipFile)
            text, there = archive.read("dataset.json"), set(archive.namelist())
        labels = json.loads(text)["labels"]
        pairs = sorted((str(name), label) for name, label in labels)
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f'{path}: wanted an archive with dataset.json {{"labels": [[file, 0 or 1], ...]}} ({error!r})'
        ) from error
    if wrong := [(name, label) for name, label in pairs if label not in (0, 1)]:
        name, label = wrong[0]
        raise ValueError(f"{path}: wanted the labels 0 (female) and 1 (male), got {label!r} for {name}")
    if missing := [name for name, _ in pairs if name not in there]:
        raise ValueError(
            f"{path} lacks {len(missing)} of its {len(pairs)} labelled images, e.g. {missing[0]}"
        )
    return Listing.join([(store, [name.encode() for name, _ in pairs], [label for _, label in pairs])])


# --- parquet ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ParquetStore:
    """The encoded images in the column image.bytes of a parquet file; keys are row numbers."""

    path: str  # resolved
    first_rows: tuple[int, ...]  # of each row group

    def read(self, key: bytes) -> bytes:
        row = int(key)
        group = bisect_right(self.first_rows, row) - 1
        images = process_handle(self.path, _OpenParquet).images_of_group(group)
        data: bytes | None = images[row - self.first_rows[group]].as_py()
        if data is None:
            raise UnreadableImageError(f"{self.where(key)} has no bytes, only a path")
        return data

    def where(self, key: bytes) -> str:
        return f"{self.path}, row {key.decode()}"


class _OpenParquet:
    """An open parquet file with the row group read last (rows can only be read a whole group at a time)."""

    def __init__(self, path: str) -> None:
        self.file = _pyarrow_parquet(path).ParquetFile(path, memory_map=True)
        self._last: tuple[int, Any] = (-1, None)

    def images_of_group(self, group: int) -> Any:
        number, images = self._last
        if number != group:
            # threads of the pool would not survive a fork
            table = self.file.read_row_group(group, columns=["image.bytes"], use_threads=False)
            images = table.column("image").combine_chunks().field("bytes")
            self._last = (group, images)
        return images

    def close(self) -> None:
        self._last = (-1, None)
        self.file.close()


def _pyarrow_parquet(path: str) -> ModuleType:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"{path} is a parquet file: pip install 'gat-robust[parquet]' to read it"
        ) from error
    module: ModuleType = pyarrow.parquet
    return module


def _parquet_parts(root: Path) -> Parts:
    shards: dict[str, list[Path]] = {}
    for path in [root] if root.is_file() else sorted(root.rglob("*.parquet")):
        # train-00000-of-00006.parquet, or train/0000.parquet
        hints = (re.split(r"[-.]", path.name)[0], path.parent.name if path.parent != root else "")
        part = next((part for hint in hints for part, names in PART_NAMES.items() if hint in names), "all")
        shards.setdefault(part, []).append(path)
    if "all" in shards and len(shards) > 1:
        raise ValueError(
            f"{shards['all'][0]} belongs to no split, others under {root} do: name the shards "
            "{train,validation,test}-*.parquet"
        )

    def lister(paths: Sequence[Path]) -> Callable[[], Listing]:
        return lambda: Listing.join([_list_shard(path) for path in paths])

    return {part: lister(paths) for part, paths in shards.items()}


def _list_shard(path: Path) -> tuple[Store, list[bytes], list[int]]:
    resolved = str(path.resolve())
    try:
        file = process_handle(resolved, _OpenParquet).file
    except (OSError, ValueError) as error:  # pyarrow.ArrowInvalid is a ValueError
        raise ValueError(f"{path} is no complete parquet file, fetch it again ({error})") from error
    schema = file.schema_arrow
    columns = {name: str(schema.field(name).type) for name in schema.names}
    if not re.search(r"bytes: (large_)?binary", columns.get("image", "")) or "label" not in columns:
        raise ValueError(f"{path}: wanted the columns image (struct of bytes, path) and label, got {columns}")
    raw = file.read(columns=["label"], use_threads=False).column("label").to_pylist()
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = described.get("info", {}).get("features", {}).get("label", {}).get("names", list(CLASSES))
    to_label = {i: CLASSES.index(name.lower()) for i, name in enumerate(names) if name.lower() in CLASSES}
    if wrong := [label for label in raw if label not in to_label]:
        raise ValueError(
            f"{path}: wanted the labels female and male, got {wrong[0]!r}; the file names {names}"
        )
    starts = [0]
    for group in range(file.metadata.num_row_groups - 1):
        starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
    store = ParquetStore(resolved, tuple(starts))
    return store, [b"%d" % row for row in range(len(raw))], [to_label[label] for label in raw]


_PARTS_OF: dict[Layout, Callable[[Path], Parts]] = {
    "folders": _folder_parts,
    "celebamask_hq": _celebamask_parts,
    "stylegan_zip": _stylegan_parts,
    "parquet": _parquet_parts,
}
