"""Methods in turn and side by side."""

import pytest
import torch

from gat.attacks import PGD, LatentAttack
from gat.training.method import seen
from gat.training.methods import GAT, TRADES, AdversarialTraining, AdvProp, Batch, Mixed, Standard

N = 12
ROTATION = (("coarse", "style"), ("fine", "noise"), ("all", "both"))
AT = AdversarialTraining(attack=PGD(steps=1, stop_when_fooled=False))
PARTS = (GAT(rotation=ROTATION), AT)


def test_in_turn_every_step_is_of_the_next_method(tools, model, batch):
    """And each counts its own steps, so that GAT's rotation is not seen by halves."""
    mixed = Mixed(methods=PARTS, how="in_turn")
    for key in range(6):
        part = PARTS[key % 2]
        lesson, own = (
            mixed.lesson(tools, model, Batch(*batch), key),
            part.lesson(tools, model, Batch(*batch), key // 2),
        )
        assert torch.equal(lesson.images, own.images)
        assert torch.equal(lesson.labels, own.labels)
        assert lesson.num_clean == own.num_clean
        assert lesson.facts == {f"{part.name}/{fact}": value for fact, value in own.facts.items()}


def test_split_every_method_has_its_share_of_the_batch(tools, model, batch):
    images, labels = batch
    lesson = Mixed(methods=PARTS, how="split").lesson(tools, model, Batch(images, labels), 1)
    gat = PARTS[0].lesson(tools, model, Batch(images[::2], labels[::2]), 1)
    at = AT.lesson(tools, model, Batch(images[1::2], labels[1::2]), 1)
    assert lesson.num_clean == N // 2
    assert torch.equal(lesson.images, torch.cat([gat.images, at.images]))
    assert torch.equal(lesson.labels, torch.cat([gat.labels, at.labels]))
    assert {"gat/fooled_share", "adversarial_training/fooled_share"} <= lesson.facts.keys()


def test_losses_of_different_kinds_are_mixed(tools, model, batch):
    trades = TRADES(steps=1, beta=2)
    lesson = Mixed(methods=(AT, trades), how="split").lesson(tools, model, Batch(*batch), 0)
    own = trades.lesson(tools, model, Batch(batch[0][1::2], batch[1][1::2]), 0)
    assert lesson.num_clean == N // 2
    assert (
        float(lesson.total_weight) == N
    )  # six attacked images, six clean ones; what is only pulled has none
    pulled = lesson.pulls > 0
    assert torch.equal(lesson.images[pulled], own.images[N // 2 :])
    assert torch.equal(lesson.images[lesson.anchors[pulled]], own.images[: N // 2])


def test_a_batch_smaller_than_the_methods_is_no_problem(tools, model, batch):
    lesson = Mixed(methods=(Standard(), AT, AT)).lesson(tools, model, Batch(batch[0][:2], batch[1][:2]), 0)
    assert len(lesson.images) == 2


def test_a_mixture_needs_and_saw_what_its_parts_do():
    mixed = Mixed(methods=(AT, AdvProp(), Standard()))
    assert mixed.trained_on() == seen(PGD())
    assert not mixed.needs_generator
    assert mixed.kept_branch == "main"
    assert Mixed().needs_generator
    assert Mixed().trained_on() == ("latent", *seen(PGD()))
    assert Mixed().kept_branch is None


def test_two_branches_cannot_both_be_kept():
    with pytest.raises(ValueError, match="keep different batch norms"):
        Mixed(methods=(AdvProp(), GAT(batch_norm="auxiliary")))


def test_it_is_configured_by_names():
    mixed = Mixed.model_validate({"methods": [{"name": "gat", "oversample": 2}, {"name": "trades"}]})
    assert [method.name for method in mixed.methods] == ["gat", "trades"]
    with pytest.raises(ValueError, match="mixed"):
        Mixed.model_validate({"methods": [{"name": "mixed"}]})


def test_what_attacks_the_same_images_for_several_steps_is_not_mixed():
    attack = LatentAttack(stop_when_fooled=False)
    in_step = GAT(attack=attack, train_on="iterates", only_fooling=False, in_step=True)
    with pytest.raises(ValueError, match="one step at a time; switch `in_step` off"):
        Mixed(methods=(AT, in_step))
