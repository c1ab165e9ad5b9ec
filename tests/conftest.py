"""What every test can rely on: checked annotations, one thread, seeds, and hypothesis without a clock."""

import random
import sys

import hypothesis
import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

# Annotations of our packages, shapes included, are checked while the tests run. An int is fine where a float is wanted, as
# for mypy, and `Self` is taken on trust, because methods are checked one by one and do not know their class. (Not an option
# of pytest, because jaxtyping's cannot pass settings to the checker for more than one package.)
PACKAGES = ["gat", "generators", "tasks"]
assert not sys.modules.keys() & set(PACKAGES), "imported before their annotations could be checked"
install_import_hook(
    PACKAGES,
    "beartype.beartype(conf=beartype.BeartypeConf("
    "is_pep484_tower=True, hint_overrides=beartype.FrozenDict({__import__('typing').Self: object})))",
)

torch.set_num_threads(1)
hypothesis.settings.register_profile("gat", deadline=None, derandomize=True, print_blob=False)
hypothesis.settings.load_profile("gat")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same global random numbers for every test, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
