"""CelebA-HQ in its four layouts."""

import json
import logging
import sys
import warnings
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from tasks.datasets.celeba_hq import CelebAHQConfig


def colors_of(dataset):
    return [(item["images"][:, 0, 0] * 255).round().int().tolist() for item in dataset]


@pytest.fixture
def write_celebamask(tmp_path, encode):
    """Writes six faces, male if their number is odd; their CelebA originals are listed in another order."""
    root = tmp_path / "CelebAMask-HQ"
    (root / "CelebA-HQ-img").mkdir(parents=True)
    for i in range(6):
        (root / "CelebA-HQ-img" / f"{i}.jpg").write_bytes(encode((40 * i, 40 * i, 40 * i), "JPEG"))
    faces = "".join(f"{i}.jpg  1 {1 if i % 2 else -1}\n" for i in range(6))
    (root / "CelebAMask-HQ-attribute-anno.txt").write_text(f"6\nYoung Male\n{faces}")
    mapping = "".join(f"{i}\t\t{100 - i}\t\t{101 - i:06d}.jpg\n" for i in range(6))
    (root / "CelebA-HQ-to-CelebA-mapping.txt").write_text(f"idx orig_idx orig_file\n{mapping}")
    partition = "".join(f"{101 - i:06d}.jpg {i // 2}\n" for i in reversed(range(6)))
    (root / "list_eval_partition.txt").write_text(partition)
    return root


@pytest.fixture
def write_zip(encode):
    """Writes an archive as StyleGAN's dataset_tool does: numbered png files, stored, and dataset.json."""

    def write(path, labels):
        names = [f"00000/img{i:08d}.png" for i in range(len(labels))]
        with zipfile.ZipFile(path, "w") as archive:
            for i, name in enumerate(names):
                archive.writestr(name, encode((i, 0, 7)))
            listed = list(zip(names, labels, strict=True))[::-1]  # any order
            archive.writestr("dataset.json", json.dumps({"labels": listed}))

    return write


@pytest.fixture
def write_parquet(encode):
    """Writes a shard as Hugging Face datasets does, in row groups of two."""

    def write(path, labels, names=None):
        images = [{"bytes": encode((i, 0, 7), "WEBP"), "path": f"{i}.webp"} for i in range(len(labels))]
        image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table({"image": pa.array(images, image_type), "label": pa.array(labels, pa.int64())})
        if names:
            features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
            table = table.replace_schema_metadata(
                {"huggingface": json.dumps({"info": {"features": features}})}
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, row_group_size=2)

    return write


def test_class_folders_are_read_with_female_as_0_whatever_their_case(tmp_path, write_class_folders):
    write_class_folders(tmp_path / "train", {"Female": 4, "Male": 4})
    write_class_folders(tmp_path / "val", {"Female": 1, "Male": 2})
    config = CelebAHQConfig(root=tmp_path, size=8)
    test = config.build("test")
    assert (
        test.name == "celeba_hq" and test.classes == ("female", "male") and test.labels.tolist() == [0, 1, 1]
    )
    assert len(config.build("train")) == 6 and len(config.build("val")) == 2


def test_celebamask_hq_is_split_as_celeba_is(write_celebamask):
    expected = {"train": [0, 1], "val": [2, 3], "test": [4, 5]}
    for root in (write_celebamask, write_celebamask.parent):
        for split, numbers in expected.items():
            dataset = CelebAHQConfig(root=root, size=8).build(split)
            assert dataset.labels.tolist() == [0, 1]
            assert [round(float(item["images"].mean()) * 255 / 40) for item in dataset] == numbers


def test_celebamask_hq_without_celebas_partition_is_split_at_random_and_says_so(write_celebamask, caplog):
    (write_celebamask / "list_eval_partition.txt").unlink()
    with caplog.at_level(logging.WARNING):
        splits = [CelebAHQConfig(root=write_celebamask).build(split) for split in ("train", "val", "test")]
    assert "no list_eval_partition.txt" in caplog.text
    assert sorted(torch.cat([dataset.ids for dataset in splits]).tolist()) == list(range(6))


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("CelebAMask-HQ-attribute-anno.txt", "6\n", "7\n", "truncated: it announces 7 images and has 6"),
        ("CelebAMask-HQ-attribute-anno.txt", "Male", "Hat", "attribute names with Male among them"),
        ("CelebAMask-HQ-attribute-anno.txt", "1.jpg  1 1", "1.jpg  1", r"2 times 1 or -1, got '1\.jpg 1'"),
        ("CelebA-HQ-to-CelebA-mapping.txt", "100\t\t", "", "wanted 3 columns, got '0 000101.jpg'"),
        ("list_eval_partition.txt", "000101.jpg 0", "000101.jpg 5", "000101.jpg has 5"),
        ("list_eval_partition.txt", "000101.jpg 0\n", "", "000101.jpg has None"),
    ],
)
def test_tables_of_celebamask_hq_that_make_no_sense_are_refused(write_celebamask, file, old, new, message):
    path = write_celebamask / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        CelebAHQConfig(root=write_celebamask).build("train")


def test_faces_missing_from_celebamask_hq_are_counted(write_celebamask):
    (write_celebamask / "CelebA-HQ-img" / "3.jpg").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 6 images, e\.g\. 3\.jpg"):
        CelebAHQConfig(root=write_celebamask).build("train")


def test_a_stylegan_archive_is_read_by_the_names_in_its_json(tmp_path, write_zip):
    write_zip(tmp_path / "celebahq.zip", [1, 0, 0, 1] * 5)
    for root in (tmp_path, tmp_path / "celebahq.zip"):
        splits = [CelebAHQConfig(root=root, size=8).build(split) for split in ("train", "val", "test")]
        pairs = [(c[0], int(n)) for d in splits for c, n in zip(colors_of(d), d.labels, strict=True)]
        assert sorted(pairs) == [(i, [1, 0, 0, 1][i % 4]) for i in range(20)]


def test_stylegan_archives_may_be_one_per_split_or_unpacked(tmp_path, write_zip):
    write_zip(tmp_path / "train.zip", [0, 1] * 5)
    write_zip(tmp_path / "val.zip", [0, 1, 1])
    packed = CelebAHQConfig(root=tmp_path, size=8).build("test")
    assert packed.labels.tolist() == [0, 1, 1]
    with zipfile.ZipFile(tmp_path / "val.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    config = CelebAHQConfig(root=tmp_path / "unpacked", size=8, val_fraction=0, test_fraction=0)
    assert colors_of(config.build("train")) == colors_of(packed)


def test_archives_with_other_labels_or_missing_images_are_refused(tmp_path, write_zip):
    write_zip(tmp_path / "a.zip", [0, 1, 2])
    with pytest.raises(ValueError, match=r"labels 0 \(female\) and 1 \(male\), got 2"):
        CelebAHQConfig(root=tmp_path / "a.zip").build("train")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("dataset.json", json.dumps({"labels": [["x.png", 0]]}))
    with pytest.raises(ValueError, match=r"lacks 1 of its 1 labelled images, e\.g\. x\.png"):
        CelebAHQConfig(root=tmp_path / "b.zip").build("train")
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("dataset.json", json.dumps({"labels": None}))
    with pytest.raises(ValueError, match=r"wanted an archive with dataset\.json"):
        CelebAHQConfig(root=tmp_path / "c.zip").build("train")
    (tmp_path / "d.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"wanted an archive with dataset\.json.*BadZipFile"):
        CelebAHQConfig(root=tmp_path / "d.zip").build("train")


def test_a_file_damaged_inside_an_archive_is_named(tmp_path, write_zip):
    path = tmp_path / "test.zip"
    write_zip(path, [0, 1])
    path.write_bytes(path.read_bytes().replace(b"IDAT", b"IDAX"))
    dataset = CelebAHQConfig(root=tmp_path).build("test")
    with pytest.raises(
        ValueError, match=r"test\.zip, file 00000/img00000000\.png cannot be read \(Bad CRC-32"
    ):
        dataset[0]


def test_parquet_shards_are_read_across_row_groups_and_files(tmp_path, write_parquet):
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", [0, 1, 1, 0, 1])
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", [1, 0, 0])
    write_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", [1, 0, 1])
    config = CelebAHQConfig(root=tmp_path, size=8)
    test = config.build("test")
    assert test.labels.tolist() == [1, 0, 1] and colors_of(test) == [[0, 0, 7], [1, 0, 7], [2, 0, 7]]
    train, val = config.build("train"), config.build("val")
    ids_to_colors = dict(zip(train.ids.tolist(), colors_of(train), strict=True))
    ids_to_colors |= dict(zip(val.ids.tolist(), colors_of(val), strict=True))
    assert [ids_to_colors[i][0] for i in range(8)] == [0, 1, 2, 3, 4, 0, 1, 2]


def test_class_names_stored_in_a_shard_decide_its_labels(tmp_path, write_parquet):
    write_parquet(tmp_path / "test" / "0000.parquet", [0, 0, 1], names=["male", "female"])
    assert CelebAHQConfig(root=tmp_path).build("test").labels.tolist() == [1, 1, 0]


def test_shards_with_other_columns_or_labels_or_cut_short_are_refused(tmp_path, write_parquet):
    path = tmp_path / "test.parquet"
    pq.write_table(pa.table({"pixels": [1], "label": [0]}), path)
    with pytest.raises(ValueError, match=r"wanted the columns image .* got \{'pixels': 'int64'"):
        CelebAHQConfig(root=path).build("test")
    other = tmp_path / "other" / "test.parquet"
    write_parquet(other, [0, 3], names=["cat", "dog", "owl", "eel"])
    with pytest.raises(ValueError, match=r"labels female and male, got 0; the file names \['cat'"):
        CelebAHQConfig(root=other).build("test")
    short = tmp_path / "short.parquet"
    short.write_bytes(other.read_bytes()[:-20])
    with pytest.raises(ValueError, match="no complete parquet file"):
        CelebAHQConfig(root=short).build("train")


@pytest.mark.parametrize("layout", ["zip", "parquet"])
def test_forked_workers_read_an_archive_that_their_parent_has_open(
    tmp_path, write_zip, write_parquet, layout
):
    labels = [0, 1] * 8
    if layout == "zip":
        write_zip(tmp_path / "test.zip", labels)
    else:
        write_parquet(tmp_path / "test-00000-of-00001.parquet", labels)
    dataset = CelebAHQConfig(root=tmp_path, size=8).build("test")
    expected = colors_of(dataset)
    loader = DataLoader(dataset, batch_size=2, num_workers=2, multiprocessing_context="fork")
    with warnings.catch_warnings():
        # Python 3.12 warns of any fork while the parent has threads, as torch always does
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        images = torch.cat([batch["images"] for batch in loader])
    assert (images[:, :, 0, 0] * 255).round().int().tolist() == expected == [[i, 0, 7] for i in range(16)]


def test_a_missing_pyarrow_is_named_with_the_extra(tmp_path, write_parquet, monkeypatch):
    write_parquet(tmp_path / "test.parquet", [0, 1])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"pip install 'gat-robust\[parquet\]'"):
        CelebAHQConfig(root=tmp_path).build("test")


def test_a_folder_in_no_layout_is_refused_with_the_list_of_layouts(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(
        ValueError, match=r"no known layout(.|\n)*folders(.|\n)*celebamask_hq(.|\n)*dataset\.json"
    ) as e:
        CelebAHQConfig(root=tmp_path).build("train")
    assert "parquet" in str(e.value)
    with pytest.raises(ValueError, match="does not exist"):
        CelebAHQConfig(root=tmp_path / "nowhere").build("train")


def test_an_ambiguous_folder_asks_for_the_layout(tmp_path, write_class_folders, write_zip):
    write_class_folders(tmp_path / "test", {"female": 1, "male": 1})
    write_zip(tmp_path / "test.zip", [0, 1, 1])
    with pytest.raises(ValueError, match="could be folders or stylegan_zip: say which in `layout`"):
        CelebAHQConfig(root=tmp_path).build("test")
    assert len(CelebAHQConfig(root=tmp_path, layout="stylegan_zip").build("test")) == 3
