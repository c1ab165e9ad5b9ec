"""The registry and its discriminated union."""

import importlib

import pytest
from pydantic import TypeAdapter, ValidationError

from tasks.datasets import DATASETS, ClassificationDataset, DatasetConfig


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_registered_name_file_name_and_yaml_name_are_the_same(name):
    module = importlib.import_module(f"tasks.datasets.{name}")
    assert DATASETS[name].__module__ == module.__name__
    assert DATASETS[name].model_fields["name"].default == name
    assert DATASETS[name].model_config["frozen"] and DATASETS[name].model_config["extra"] == "forbid"


def test_the_union_picks_the_reader_by_name_and_refuses_others():
    adapter = TypeAdapter(DatasetConfig)
    config = adapter.validate_python({"name": "lsun", "root": "data/lsun", "categories": ["car", "cat"]})
    assert type(config) is DATASETS["lsun"] and config.categories == ("car", "cat")
    assert adapter.validate_python(config.model_dump(mode="json")) == config
    with pytest.raises(ValidationError, match="fashion_mnist"):
        adapter.validate_python({"name": "fashion"})


def test_a_built_dataset_keeps_the_contract():
    dataset = DATASETS["fashion_mnist"](limit=1).build("test")
    assert isinstance(dataset, ClassificationDataset)


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_reader_says_its_task(name):
    needs_root = DATASETS[name].model_fields["root"].is_required()
    config = DATASETS[name](**({"root": "data"} if needs_root else {}))
    assert config.task in ("classification", "segmentation", "detection")
    assert "task" not in config.model_dump()
