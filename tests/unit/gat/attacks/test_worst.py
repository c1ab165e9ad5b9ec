"""The worst of several attacks, per example, on models whose weak spots are known."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from gat.attacks import ATTACKS, FGSM, PGD, WorstOf
from gat.config import load
from tasks.classification import ClassificationTask
from tests.toys import linear_classifier

TWO = ClassificationTask(("dark", "bright"))
SHAPE = (3, 4, 4)


@pytest.fixture
def model() -> nn.Module:
    """Answers by the mean brightness; the border is grey."""
    weights = torch.stack([-torch.ones(48), torch.ones(48)]) / 48
    return linear_classifier(weights, torch.tensor([0.5, -0.5]))


@pytest.fixture
def images() -> Tensor:
    """Dark, by 0.01, 0.02, ... 0.06 below grey."""
    return (0.5 - torch.arange(1, 7) / 100)[:, None, None, None].expand(6, *SHAPE).clone()


LABELS = torch.zeros(6, dtype=torch.long)


def pgd(eps: float, **settings) -> PGD:
    return PGD(eps=eps, steps=2, random_start=False, **settings)


def test_each_example_falls_to_the_first_attack_that_reaches_it(model, images):
    attack = WorstOf(attacks=(pgd(0.015), pgd(0.035), pgd(0.055)))
    outcome = attack.run(TWO, model, images, LABELS)
    assert outcome.success.tolist() == [True] * 5 + [False]
    reached = (outcome.images - images).abs().amax((1, 2, 3))
    torch.testing.assert_close(
        reached, torch.tensor([0.015, 0.035, 0.035, 0.055, 0.055, 0.055]), rtol=0, atol=1e-6
    )
    assert outcome.distances.keys() >= {"linf_pixels", "l2_pixels"}
    torch.testing.assert_close(outcome.distances["linf_pixels"], reached)


def test_what_is_fooled_costs_no_more_passes(model, images):
    attack = WorstOf(attacks=(pgd(0.015), pgd(0.035)))
    alone = pgd(0.015).run(TWO, model, images, LABELS)
    both = attack.run(TWO, model, images, LABELS)
    assert both.forwards[0] == alone.forwards[0]
    assert (both.forwards[1:] > alone.forwards[1:]).all()


def test_no_example_is_safer_than_under_any_of_the_attacks(model, images):
    parts = (pgd(0.025), FGSM(eps=0.045), PGD(eps=0.3, norm="l2", steps=3))
    worst = WorstOf(attacks=parts).run(TWO, model, images, LABELS)
    single = torch.stack([part.run(TWO, model, images, LABELS).success for part in parts]).any(0)
    assert torch.equal(worst.success, single)
    assert torch.equal(model(worst.images).argmax(1) != LABELS, worst.success)


def test_the_order_of_the_examples_does_not_matter(model, images):
    attack = WorstOf(attacks=(PGD(eps=0.02, steps=2), PGD(eps=0.04, steps=2)))
    ids, order = torch.tensor([7, 3, 11, 0, 2, 99]), torch.tensor([4, 2, 0, 5, 3, 1])
    straight = attack.run(TWO, model, images, LABELS, ids=ids)
    shuffled = attack.run(TWO, model, images[order], LABELS, ids=ids[order])
    assert torch.equal(shuffled.images, straight.images[order])


def test_bounds_are_the_loosest_of_what_all_promise():
    assert WorstOf(attacks=(pgd(0.1), FGSM(eps=0.2))).bounds == {"linf_pixels": 0.2}
    assert WorstOf(attacks=(pgd(0.1), PGD(norm="l2", eps=1))).bounds == {}


def test_settings_survive_a_file(tmp_path):
    attack = WorstOf(attacks=(pgd(0.1), FGSM(eps=0.2)))
    assert WorstOf.model_validate(attack.model_dump(mode="json")) == attack
    file = tmp_path / "attack.yaml"
    file.write_text("attacks: [{name: pgd, eps: 0.1, steps: 2, random_start: false}, {name: fgsm, eps: 0.2}]")
    assert load(ATTACKS["worst_of"], [file], []) == attack


@pytest.mark.parametrize("attacks", [(), ({"name": "nope"},), ({"name": "latent"},), ({},)])
def test_what_is_no_attack_on_images_is_refused(attacks):
    with pytest.raises(ValidationError, match=r"at least 1|not one of"):
        WorstOf(attacks=attacks)
