import pytest
from torch import Tensor

from generators.spade.networks import Generator
from generators.spade.space import SPADESpace
from tests.toys import CLASSES, tiny_layouts, tiny_spade_generator


@pytest.fixture
def generator() -> Generator:
    return tiny_spade_generator()


@pytest.fixture
def space(generator: Generator) -> SPADESpace:
    return SPADESpace(generator, CLASSES)


@pytest.fixture
def layouts() -> Tensor:
    return tiny_layouts(4)
