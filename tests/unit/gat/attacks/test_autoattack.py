"""AutoAttack: which attacks it is made of, and that it gets as far as the authors' package."""

import pytest
import torch
from torch import Tensor

from gat.attacks import APGD, FAB, AutoAttack, Square
from gat.attacks.steps import NORMS
from gat.logits import LogitsTask
from tests.toys import balanced, sine_classifier

EPS = {"linf": 0.012, "l2": 0.15, "l1": 0.8}


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def named(attack: AutoAttack) -> list[tuple]:
    found = []
    for part in attack.parts.attacks:
        if isinstance(part, APGD):
            found.append((f"apgd-{part.loss}", part.restarts, part.n_targets, part.eot))
        elif isinstance(part, FAB):
            found.append(("fab-t" if part.targeted else "fab", part.restarts, part.n_target_classes))
        else:
            assert isinstance(part, Square)
            found.append(("square", part.queries))
    return found


def test_the_versions_are_those_of_the_authors():
    assert named(AutoAttack()) == [
        ("apgd-ce", 1, 9, 1), ("apgd-targeted_dlr", 1, 9, 1), ("fab-t", 1, 9), ("square", 5000),
    ]  # fmt: skip
    assert named(AutoAttack(norm="l1")) == [
        ("apgd-ce", 5, 9, 1), ("apgd-targeted_dlr", 1, 5, 1), ("fab-t", 1, 9), ("square", 5000),
    ]  # fmt: skip
    assert named(AutoAttack(version="plus")) == [
        ("apgd-ce", 5, 9, 1), ("apgd-dlr", 5, 9, 1), ("fab", 5, 9), ("square", 5000), ("apgd-targeted_dlr", 1, 9, 1),
        ("fab-t", 1, 9),
    ]  # fmt: skip
    assert named(AutoAttack(version="rand")) == [("apgd-ce", 1, 9, 20), ("apgd-dlr", 1, 9, 20)]


@pytest.mark.parametrize("norm", NORMS)
def test_every_part_has_the_budget_the_steps_and_the_seed(norm):
    attack = AutoAttack(norm=norm, eps=0.7, steps=7, queries=9, seed=3, version="plus")
    for part in attack.parts.attacks:
        assert (part.norm, part.eps, part.seed) == (norm, 0.7, 3)
        assert (part.queries if isinstance(part, Square) else part.steps) == (
            9 if isinstance(part, Square) else 7
        )
    assert attack.bounds == {f"{norm}_pixels": 0.7}
    assert norm in attack.summary


@pytest.mark.filterwarnings("ignore")  # of the package, about the model
@pytest.mark.parametrize("norm", NORMS)
def test_robust_accuracy_is_that_of_the_authors_package(norm, images):
    import pyautoattack

    classes = 10
    model = balanced(sine_classifier(192, classes), images)
    labels = model(images).argmax(1)
    peer = pyautoattack.AutoAttack(
        model, norm={"linf": "Linf"}.get(norm, norm.upper()), eps=EPS[norm], seed=0, device="cpu"
    )
    for part in (peer.apgd, peer.apgd_targeted, peer.fab):
        part.n_iter = part.n_iter_orig = 20
    peer.square.n_queries = 50
    with torch.random.fork_rng():
        found, _ = peer.run_standard_evaluation(images.clone(), labels, batch_size=12)
    theirs = (model(found).argmax(1) == labels).sum()
    ours = AutoAttack(eps=EPS[norm], norm=norm, steps=20, queries=50).run(
        LogitsTask(classes), model, images, labels
    )
    assert 0 < theirs < 12
    assert (~ours.success).sum() <= theirs
    assert (NORMS[norm]((ours.images - images).double()) <= EPS[norm] * (1 + 1e-4)).all()


@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_are_no_obstacle(classes, version, images):
    model = balanced(sine_classifier(192, classes), images)
    attack = AutoAttack(eps=0.05, steps=5, queries=10, version=version)
    outcome = attack.run(LogitsTask(classes), model, images, model(images).argmax(1))
    assert outcome.success.float().mean() > 0.9
