"""What every method keeps to, and what standard and adversarial training teach."""

from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from gat.attacks import (
    FGSM,
    PGD,
    Combined,
    FastLPA,
    ImageAttack,
    LatentAttack,
    Outcome,
    Recolor,
    Spatial,
    WorstOf,
)
from gat.training.batch_norm import split_batch_norms
from gat.training.method import seen
from gat.training.methods import GAT, METHODS, PAT, AdversarialTraining, AdvProp, Batch, Standard, Tools
from tasks.classification import ClassificationTask
from tests.toys import CLASSES

N = 12
QUICK = PGD(steps=1, stop_when_fooled=False)


def test_standard_teaches_the_clean_images_and_nothing_else(tools, model, batch):
    lesson = Standard().lesson(tools, model, Batch(*batch), 0)
    assert lesson.images is batch[0]
    assert lesson.labels is batch[1]
    assert lesson.num_clean == N


def test_adversarial_training_attacks_the_very_images_of_the_batch(tools, model, batch):
    images, labels = batch
    method = AdversarialTraining(attack=PGD(eps=0.02, steps=2, stop_when_fooled=False))
    lesson = method.lesson(tools, model, Batch(images, labels), 0)
    assert lesson.num_clean == 0
    assert torch.equal(lesson.labels, labels)
    distance = (lesson.images - images).abs().flatten(1).amax(1)
    assert distance.max() <= 0.02 + 1e-6
    right = model.eval()(images).argmax(1) == labels
    assert 0 < right.sum() < N
    assert torch.equal(distance > 0, right)  # what is wrong already is taught as it is


def test_adversarial_training_can_keep_the_clean_images(tools, model, batch):
    lesson = AdversarialTraining(attack=FGSM(eps=0.02), keep_clean=True).lesson(
        tools, model, Batch(*batch), 0
    )
    assert lesson.num_clean == N
    assert torch.equal(lesson.images[:N], batch[0])
    assert torch.equal(lesson.labels, torch.cat([batch[1], batch[1]]))


class Darker(ImageAttack):
    """Halves what it is given."""

    name: Literal["darker"] = "darker"

    @property
    def family(self) -> str:
        return "light"

    def run(self, task, model, images, labels, *, targets=None, compute=None, record=False, ids=None):
        outcome = PGD(steps=0, random_start=False).run(task, model, images, labels)
        outcome.images = images / 2
        return outcome


def test_adversarial_training_takes_any_attack_on_images(tools, model, batch):
    method = AdversarialTraining.model_construct(attack=Darker())
    lesson = method.lesson(tools, model, Batch(*batch), 0)
    assert torch.equal(lesson.images, batch[0] / 2)
    with pytest.raises(ValueError, match="latent"):
        AdversarialTraining.model_validate({"attack": {"name": "latent"}})


@pytest.mark.parametrize(
    "attack",
    [
        PGD(norm="l2", eps=0.5, steps=2, stop_when_fooled=False),
        Spatial(steps=2, stop_when_fooled=False),
        Recolor(steps=2, stop_when_fooled=False, grid=(2, 4, 4)),
        WorstOf(attacks=(FGSM(eps=0.001), PGD(steps=1))),
    ],
    ids=lambda attack: attack.name,
)
def test_every_kind_of_attack_gives_images_to_learn_from(tools, model, batch, attack):
    images, labels = batch
    lesson = AdversarialTraining(attack=attack).lesson(tools, model, Batch(images, labels), 0)
    with torch.no_grad():
        right = model.eval()(images).argmax(1) == labels
        logits, before = model(lesson.images), model(images)
    moved = (lesson.images != images).flatten(1).any(1)
    assert right.any()
    assert torch.equal(moved, right)
    assert (tools.task.loss(logits, labels) >= tools.task.loss(before, labels) - 1e-5).all()


def test_pat_teaches_what_its_attack_makes_in_the_features_of_the_model_itself(tools, model, batch):
    images, labels = batch
    method = PAT(attack=FastLPA(bound=0.1, layers=("0", "2")))
    lesson = method.lesson(tools, model, Batch(images, labels), 0)
    assert lesson.num_clean == 0
    assert torch.equal(lesson.labels, labels)
    outcome = method.attack.run(tools.task, model, images, labels)
    assert torch.equal(lesson.images, outcome.images)
    assert torch.equal(outcome.distances["lpips_self"] > 0.05, outcome.attacked)


def test_every_step_starts_its_attack_elsewhere(tools, model, batch, monkeypatch):
    asked: list[Tensor] = []
    honest = PGD.run

    def watched(self, *args: Any, ids: Tensor, **options: Any) -> Outcome:
        asked.append(ids)
        return honest(self, *args, ids=ids, **options)

    monkeypatch.setattr(PGD, "run", watched)
    for key in range(3):
        AdversarialTraining(attack=QUICK).lesson(tools, model, Batch(*batch), key)
    assert torch.equal(torch.cat(asked), torch.arange(3 * N))


def test_a_lesson_leaves_no_trace_and_repeats_itself(tools, model, batch, small_method):
    if small_method.kept_branch:
        split_batch_norms(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    first = small_method.lesson(tools, model, Batch(*batch), 5)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(part.training for part in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not first.images.requires_grad
    torch.rand(7)
    again = small_method.lesson(tools, model, Batch(*batch), 5)
    assert torch.equal(first.images, again.images)
    assert first.facts == again.facts
    if small_method.name != "standard":
        other = small_method.lesson(tools, model, Batch(*batch), 11)  # the same place in the rotation
        assert other.images.shape != first.images.shape or not torch.equal(other.images, first.images)


def test_what_every_method_teaches_is_images_with_labels(tools, model, batch, small_method):
    lesson = small_method.lesson(tools, model, Batch(*batch), 2)
    assert 0 <= lesson.num_clean <= len(lesson.images) == len(lesson.labels)
    assert lesson.images.min() >= 0
    assert lesson.images.max() <= 1
    assert lesson.labels.unique().tolist() == [0, 1, 2]


def test_methods_say_what_they_trained_on_and_need():
    assert {name: METHODS[name]().trained_on() for name in METHODS} == {
        "standard": (),
        "adversarial_training": seen(PGD()),
        "trades": seen(PGD()),
        "pat": ("perceptual", "fast_lpa"),
        "advprop": seen(PGD()),
        "gat": ("latent",),
        "random_latents": (),
        "mixed": ("latent", *seen(PGD())),
    }
    assert [name for name in METHODS if METHODS[name]().needs_generator] == ["gat", "random_latents", "mixed"]


def own(attack: ImageAttack) -> tuple[str, ...]:
    return tuple(dict.fromkeys((attack.family, attack.name)))


def test_what_was_seen_is_the_family_and_every_part_of_it():
    assert seen(Darker()) == ("light", "darker")
    assert seen(WorstOf(attacks=(Darker(), FGSM(), FGSM()))) == ("light", "darker", *own(FGSM()))
    assert seen(Combined(parts=("spatial", "additive"))) == tuple(
        dict.fromkeys((*own(Combined()), *own(Spatial()), *own(PGD())))
    )
    assert seen(LatentAttack()) == ("latent",)


@pytest.mark.parametrize(
    "method",
    [
        AdversarialTraining(attack=PGD(goal="targeted")),
        AdvProp(attack=PGD(goal="targeted")),
        GAT(attack=LatentAttack(goal="targeted")),
    ],
    ids=lambda m: m.name,
)
def test_an_attack_that_aims_is_refused_before_training(tools, method):
    with pytest.raises(ValueError, match="no targets to aim"):
        method.check(tools)


def test_a_method_that_lacks_its_generator_says_so(small_method, tools):
    small_method.check(tools)
    if small_method.needs_generator:
        with pytest.raises(ValueError, match="needs a generator"):
            small_method.check(Tools(ClassificationTask(CLASSES)))
