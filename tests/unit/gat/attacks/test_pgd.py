"""PGD and FGSM against closed forms, another library, and the laws of `tests/laws.py`."""

import pytest
import torch
from torch import Tensor, nn

from gat.attacks import BIM, FGSM, PGD
from gat.attacks.run import Compute
from gat.attacks.steps import NORMS
from tasks.classification import ClassificationTask
from tests.laws import LAWS, SHAPE, TWO, linear_case, margin_gain
from tests.toys import CLASSES, conv_classifier

THREE = ClassificationTask(CLASSES)


@pytest.fixture
def classifier() -> nn.Module:
    return conv_classifier().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("law", LAWS)
def test_pgd_keeps_every_law(law: str):
    LAWS[law]()


def test_at_the_border_of_the_range_the_optimum_is_that_of_the_clipped_box():
    model, images, _, _ = linear_case(margin=0.0)
    images = (images * 1.4 - 0.2).clamp(0, 1)
    labels = model(images).argmax(1)
    weights = model[1].weight.detach()
    uphill = weights[1 - labels] - weights[labels]
    outcome = PGD(eps=0.2, steps=10, stop_when_fooled=False).run(TWO, model, images, labels)
    room_up, room_down = (1 - images).flatten(1).clamp(max=0.2), images.flatten(1).clamp(max=0.2)
    best = torch.where(uphill > 0, uphill * room_up, -uphill * room_down).sum(1)
    torch.testing.assert_close(margin_gain(outcome, uphill), best.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "attack",
    [PGD(eps=0), PGD(eps=0, norm="l2"), PGD(eps=0, norm="l1"), FGSM(eps=0), BIM(eps=0), PGD(eps=0, steps=0)],
)
def test_without_a_budget_nothing_moves_and_accuracy_is_clean(attack, classifier, images):
    labels = torch.arange(9) % 3
    outcome = attack.run(THREE, classifier, images, labels)
    right = classifier(images).argmax(1) == labels
    assert 0 < right.sum() < 9  # or the test would show nothing
    assert torch.equal(outcome.images, images)
    assert not outcome.success.any()
    assert torch.equal(outcome.predictions == labels, right)
    assert torch.equal(outcome.attacked, right)


@pytest.mark.parametrize("norm", NORMS)
def test_more_restarts_are_never_weaker_on_any_example(classifier, images, norm):
    labels = classifier(images).argmax(1)
    eps = {"linf": 0.01, "l2": 0.1, "l1": 0.5}[norm]
    outcomes = [
        PGD(eps=eps, norm=norm, steps=1, restarts=k).run(THREE, classifier, images, labels) for k in (1, 2, 5)
    ]
    for fewer, more in zip(outcomes, outcomes[1:], strict=False):
        assert (more.success >= fewer.success).all()
        assert (more.loss >= fewer.loss)[~fewer.success].all()
        assert (more.backwards >= fewer.backwards).all()


def test_a_random_start_lies_in_the_ball_and_fills_it():
    images = torch.full((400, *SHAPE), 0.5)
    ids = torch.arange(400)
    linf = PGD(eps=0.1)._noise(images, ids, 0)
    assert linf.abs().max() <= 0.1
    assert linf.std() == pytest.approx(0.1 / 3**0.5, rel=0.02)
    radius = PGD(eps=0.1, norm="l2")._noise(images, ids, 0).flatten(1).norm(dim=1)
    assert radius.max() <= 0.1 + 1e-6
    # Uniform in a ball of 48 dimensions: the share within radius r eps is r^48.
    assert (radius <= 0.1 * 0.5 ** (1 / 48)).float().mean() == pytest.approx(0.5, abs=0.08)
    l1 = PGD(eps=0.1, norm="l1")._noise(images, ids, 0).flatten(1)
    assert l1.abs().sum(1).max() <= 0.1 + 1e-6
    assert (l1.abs().sum(1) <= 0.1 * 0.5 ** (1 / 48)).float().mean() == pytest.approx(0.5, abs=0.08)
    # An entry of a point of the l1 ball of d dimensions has mean size eps / (d + 1) and either sign.
    assert l1.abs().mean() == pytest.approx(0.1 / 49, rel=0.02)
    assert (l1 > 0).float().mean() == pytest.approx(0.5, abs=0.02)
    assert not torch.equal(linf, PGD(eps=0.1)._noise(images, ids, 1))
    assert not torch.equal(linf, PGD(eps=0.1, seed=1)._noise(images, ids, 0))


def test_fgsm_is_one_step_along_the_sign_of_the_gradient(classifier, images):
    labels = classifier(images).argmax(1)
    leaf = images.clone().requires_grad_()
    gradient = torch.autograd.grad(THREE.loss(classifier(leaf), labels).sum(), leaf)[0]
    outcome = FGSM(eps=0.03).run(THREE, classifier, images, labels)
    assert (outcome.loss > THREE.loss(classifier(images), labels)).all()
    torch.testing.assert_close(
        outcome.images, (images + 0.03 * gradient.sign()).clamp(0, 1), rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_iterate_is_that_of_torchattacks(classifier, images, norm):
    import torchattacks

    labels = classifier(images).argmax(1)
    eps, step = (0.03, 0.01) if norm == "linf" else (0.5, 0.2)
    ours = PGD(eps=eps, norm=norm, steps=6, step_size=step, random_start=False, stop_when_fooled=False)
    path = ours.run(THREE, classifier, images, labels, record=True).trajectory
    assert path is not None
    peer = torchattacks.PGD if norm == "linf" else torchattacks.PGDL2
    for steps in (1, 3, 6):
        theirs = peer(classifier, eps=eps, alpha=step, steps=steps, random_start=False)(images, labels)
        torch.testing.assert_close(path[steps], theirs.detach(), rtol=0, atol=1e-6)


def test_fgsm_agrees_with_torchattacks(classifier, images):
    import torchattacks

    labels = classifier(images).argmax(1)
    theirs = torchattacks.FGSM(classifier, eps=0.03)(images, labels).detach()
    torch.testing.assert_close(
        FGSM(eps=0.03).run(THREE, classifier, images, labels).images, theirs, rtol=0, atol=1e-6
    )


def test_bim_agrees_with_torchattacks(classifier, images):
    import torchattacks

    labels = classifier(images).argmax(1)
    attack = BIM(eps=0.03, steps=5, stop_when_fooled=False)
    path = attack.run(THREE, classifier, images, labels, record=True).trajectory
    assert path is not None
    theirs = torchattacks.BIM(classifier, eps=0.03, alpha=0.006, steps=5)(images, labels).detach()
    torch.testing.assert_close(path[5], theirs, rtol=0, atol=1e-6)


def test_pgd_from_a_random_start_is_that_of_torchattacks_from_the_same(classifier, images, monkeypatch):
    import torchattacks

    labels, ids = classifier(images).argmax(1), torch.arange(9)
    attack = PGD(eps=0.03, steps=4, step_size=0.01, stop_when_fooled=False)
    path = attack.run(THREE, classifier, images, labels, record=True, ids=ids).trajectory
    assert path is not None
    noise = attack._noise(images, ids, 0)
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, low, high: self.copy_(noise))
    theirs = torchattacks.PGD(classifier, eps=0.03, alpha=0.01, steps=4, random_start=True)(images, labels)
    torch.testing.assert_close(path[4], theirs.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_more_steps_are_never_weaker_on_any_example(classifier, images, norm):
    labels = classifier(images).argmax(1)
    eps = {"linf": 0.01, "l2": 0.1, "l1": 0.5}[norm]
    losses = [
        PGD(eps=eps, norm=norm, steps=steps, step_size=eps / 3, stop_when_fooled=False)
        .run(THREE, classifier, images, labels)
        .loss
        for steps in (0, 1, 3, 9)
    ]
    for fewer, more in zip(losses, losses[1:], strict=False):
        assert (more >= fewer - 1e-6).all()
    assert (losses[-1] > losses[0]).all()


def snapshot(model: nn.Module) -> tuple:
    return (
        [part.training for part in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        {name: value.clone() for name, value in model.state_dict().items()},
        torch.get_rng_state(),
    )


def assert_untouched(before: tuple, after: tuple) -> None:
    modes, flags, grads, state, rng = before
    assert (modes, flags) == after[:2]
    for old, new in zip(grads, after[2], strict=True):
        assert new is None if old is None else torch.equal(old, new)
    assert all(torch.equal(state[name], after[3][name]) for name in state)
    assert torch.equal(rng, after[4])


@pytest.mark.parametrize("attack", [PGD(steps=3), PGD(steps=2, norm="l2", eps=0.5, restarts=2), FGSM()])
def test_the_model_and_the_random_state_are_left_exactly_as_found(attack, images):
    model = conv_classifier().train()
    model[1].eval()  # a mixture of modes is the user's right
    model[0].weight.requires_grad_(False)
    model[6].bias.grad = torch.ones(3)
    before = snapshot(model)
    labels = torch.arange(9) % 3
    run = attack.run(THREE, model, images, labels)
    assert run.attacked.any()
    assert_untouched(before, snapshot(model))


def test_a_model_that_fails_in_the_middle_is_left_as_found_too(images):
    model = conv_classifier().train()
    before = snapshot(model)
    with pytest.raises(RuntimeError):
        PGD().run(THREE, model, images[:, :1], torch.zeros(9, dtype=torch.long))
    assert_untouched(before, snapshot(model))


@pytest.mark.parametrize("bad", [lambda x: x * 255, lambda x: x * 2 - 1, lambda x: x * float("nan")])
def test_what_is_no_image_is_refused(classifier, images, bad):
    with pytest.raises(ValueError, match=r"\[0, 1\]|finite"):
        PGD()(classifier, bad(images), torch.zeros(9, dtype=torch.long))


def test_wrong_examples_are_left_alone(classifier, images):
    labels = (classifier(images).argmax(1) + 1) % 3
    outcome = PGD().run(THREE, classifier, images, labels)
    assert not outcome.attacked.any()
    assert not outcome.success.any()
    assert torch.equal(outcome.images, images)
    assert outcome.backwards.sum() == 0


def test_success_is_what_a_fresh_forward_pass_says(classifier, images):
    labels = classifier(images).argmax(1)
    outcome = PGD(eps=0.02, steps=3).run(THREE, classifier, images, labels, compute=Compute(width=4))
    assert 0 < outcome.success.sum() < 9
    assert torch.equal(outcome.success, classifier(outcome.images).argmax(1) != labels)
    torch.testing.assert_close(
        outcome.loss, THREE.loss(classifier(outcome.images), labels), rtol=1e-4, atol=1e-5
    )


def test_settings_that_make_no_sense_are_refused():
    for bad in (
        {"eps": -1},
        {"steps": -1},
        {"restarts": 0},
        {"norm": "l3"},
        {"step_size": 0},
        {"epsilon": 1},
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            PGD(**bad)
