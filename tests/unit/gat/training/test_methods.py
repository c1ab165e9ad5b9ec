"""What each method teaches, on a tiny generator and a tiny classifier."""

import pytest
import torch
from torch import Tensor, nn

from gat.attacks import FGSM, PGD, LatentAttack
from gat.training.methods import GAT, METHODS, AdversarialTraining, Lesson, Standard, Tools
from generators.stylegan2.space import StyleGAN2Space
from tasks.classification import ClassificationTask
from tests.toys import CLASSES, balanced, conv_classifier, tiny_space

TASK = ClassificationTask(CLASSES)
N = 12
ROTATION = (("coarse", "style"), ("fine", "noise"), ("all", "both"))  # 16-pixel images have no middle


class Always(nn.Module):
    """Answers one class, whatever it sees."""

    def __init__(self, answer: int) -> None:
        super().__init__()
        self.register_buffer("logits", 5 * torch.nn.functional.one_hot(torch.tensor(answer), 3).float())

    def forward(self, images: Tensor) -> Tensor:
        return self.logits + 0 * images.mean((1, 2, 3))[:, None]


@pytest.fixture(scope="module")
def space() -> StyleGAN2Space:
    return tiny_space()


@pytest.fixture(scope="module")
def tools(space: StyleGAN2Space) -> Tools:
    return Tools(TASK, space)


@pytest.fixture
def model(space: StyleGAN2Space) -> nn.Module:
    """In training mode, as the loop leaves it."""
    latents = space.sample(torch.arange(60) % 3, torch.arange(60), seed=0)
    images = space.freeze(latents, [])({}, torch.arange(60))
    return balanced(conv_classifier(), images).train()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.rand(N, 3, 16, 16), torch.arange(N) % 3


def adversarial(lesson: Lesson) -> tuple[Tensor, Tensor]:
    return lesson.images[lesson.num_clean :], lesson.labels[lesson.num_clean :]


def test_standard_teaches_the_clean_images_and_nothing_else(tools, model, batch):
    lesson = Standard().lesson(tools, model, *batch, 0)
    assert lesson.images is batch[0]
    assert lesson.labels is batch[1]
    assert lesson.num_clean == N


def test_adversarial_training_attacks_the_very_images_of_the_batch(tools, model, batch):
    images, labels = batch
    method = AdversarialTraining(attack=PGD(eps=0.02, steps=2, stop_when_fooled=False))
    lesson = method.lesson(tools, model, images, labels, 0)
    assert lesson.num_clean == 0
    assert torch.equal(lesson.labels, labels)
    distance = (lesson.images - images).abs().flatten(1).amax(1)
    assert distance.max() <= 0.02 + 1e-6
    right = model.eval()(images).argmax(1) == labels
    assert 0 < right.sum() < N
    assert torch.equal(distance > 0, right)  # what is wrong already is taught as it is


def test_adversarial_training_can_keep_the_clean_images(tools, model, batch):
    lesson = AdversarialTraining(attack=FGSM(eps=0.02), keep_clean=True).lesson(tools, model, *batch, 0)
    assert lesson.num_clean == N
    assert torch.equal(lesson.images[:N], batch[0])
    assert torch.equal(lesson.labels, torch.cat([batch[1], batch[1]]))


def test_gat_teaches_as_many_clean_images_as_it_got_and_at_most_as_many_adversarial(tools, model, batch):
    method = GAT(oversample=4, rotation=(("all", "both"),))
    lesson = method.lesson(tools, model, *batch, 0)
    assert lesson.num_clean == N
    assert torch.equal(lesson.images[:N], batch[0])
    assert torch.equal(lesson.labels[:N], batch[1])
    assert len(lesson.images) == len(lesson.labels) == 2 * N
    assert lesson.facts["adversarial_share"] == 0.5


def test_every_adversarial_image_fools_the_model_as_it_was(tools, model, batch):
    for key in range(3):
        images, labels = adversarial(GAT(rotation=ROTATION).lesson(tools, model, *batch, key))
        assert 0 < len(images) <= N
        with torch.no_grad():
            answers = model.eval()(images).argmax(1)
        model.train()
        assert (answers != labels).all()


def test_adversarial_images_start_from_the_latents_of_their_step(tools, model, batch):
    """Every one lies nearer to one of this step's own starts of its label than the starts do to each other."""
    method = GAT(
        attack=LatentAttack(step_size={"*": 0.02}), rotation=(("fine", "noise"),), oversample=2, seed=4
    )
    key = 3
    images, labels = adversarial(method.lesson(tools, model, *batch, key))
    start_labels = batch[1].repeat(2)
    ids = torch.arange(2 * N) + key * 2 * N
    latents = tools.generator.sample(start_labels, ids, 4)
    starts = tools.generator.freeze(latents, [])({}, torch.arange(2 * N))
    nearest = torch.cdist(images.flatten(1), starts.flatten(1)).argmin(1)
    assert torch.equal(start_labels[nearest], labels)
    assert len(nearest.unique()) == len(nearest)
    right = model.eval()(starts).argmax(1) == start_labels
    assert not right.all()
    assert right[nearest].all()  # starts that are wrong already are never used


def test_starts_that_are_wrong_already_are_never_used(tools, batch):
    method = GAT(only_fooling=False, oversample=3, rotation=(("fine", "noise"),))
    _, labels = adversarial(method.lesson(tools, Always(1), *batch, 0))
    assert len(labels) == N
    assert (labels == 1).all()


def test_a_model_that_cannot_be_fooled_is_taught_clean_images_only(tools, batch):
    lesson = GAT().lesson(tools, Always(1), *batch, 0)
    assert len(lesson.images) == lesson.num_clean == N
    assert lesson.facts["adversarial_share"] == 0
    assert lesson.facts["iterations"] == 0


def test_the_rotation_visits_every_group_and_kind(tools, model, batch, monkeypatch):
    moved: list[set[str]] = []
    honest = StyleGAN2Space.freeze

    def watched(self, latents, sites):
        moved.append(set(sites))
        return honest(self, latents, sites)

    monkeypatch.setattr(StyleGAN2Space, "freeze", watched)
    rotation = (
        ("coarse", "style"),
        ("fine", "style"),
        ("fine", "noise"),
        ("coarse", "noise"),
        ("all", "both"),
    )
    method = GAT(rotation=rotation, attack=LatentAttack(max_steps=1))
    for key in range(2 * len(rotation)):
        method.lesson(tools, model, *batch, key)
    sites = tools.generator.sites
    expected = [
        {
            name
            for name, site in sites.items()
            if group in ("all", site.group) and (move == "both" or name.startswith(move))
        }
        for group, move in rotation * 2
    ]
    assert moved == expected


def test_the_default_rotation_covers_coarse_middle_and_fine_with_style_and_noise():
    rotation = set(GAT().rotation)
    assert {group for group, _ in rotation} == {"coarse", "middle", "fine", "all"}
    assert {move for _, move in rotation} == {"style", "noise", "both"}


def test_the_oracle_leaves_out_what_it_reads_otherwise(space, model, batch):
    method = GAT(oracle_filter=True, oversample=3, rotation=(("all", "both"),))
    plain = GAT(oversample=3, rotation=(("all", "both"),)).lesson(Tools(TASK, space), model, *batch, 0)
    lesson = method.lesson(Tools(TASK, space, oracle=Always(1).eval()), model, *batch, 0)
    assert set(adversarial(plain)[1].tolist()) != {1}
    assert set(adversarial(lesson)[1].tolist()) == {1}
    assert 0 < lesson.facts["oracle_rejected_share"] < 1


def test_an_oracle_filter_without_an_oracle_is_refused(tools, model, batch):
    with pytest.raises(ValueError, match="oracle_filter needs an oracle"):
        GAT(oracle_filter=True).lesson(tools, model, *batch, 0)


def test_clean_images_can_be_generated_too(tools, model, batch):
    lesson = GAT(clean="generated").lesson(tools, model, *batch, 2)
    count = round(1.5 * N)
    latents = tools.generator.sample(batch[1].repeat(2)[:count], torch.arange(count) + 2 * count, 0)
    expected = tools.generator.freeze(latents, [])({}, torch.arange(count))[:N]
    torch.testing.assert_close(lesson.images[: lesson.num_clean], expected, rtol=0, atol=1e-6)
    assert torch.equal(lesson.labels[:N], batch[1])


@pytest.mark.parametrize(
    "method",
    [Standard(), AdversarialTraining(attack=PGD(steps=2)), GAT(rotation=ROTATION)],
    ids=lambda m: m.name,
)
def test_a_lesson_leaves_no_trace_and_repeats_itself(tools, model, batch, method):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    first = method.lesson(tools, model, *batch, 5)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(part.training for part in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not first.images.requires_grad
    torch.rand(7)
    again = method.lesson(tools, model, *batch, 5)
    assert torch.equal(first.images, again.images)
    assert first.facts == again.facts
    if method.name != "standard":
        other = method.lesson(tools, model, *batch, 11)  # the same place in the rotation
        assert not torch.equal(other.images, first.images)


def test_methods_say_what_they_trained_on_and_need():
    assert {name: METHODS[name]().trained_on() for name in METHODS} == {
        "standard": (),
        "adversarial_training": ("pgd",),
        "gat": ("latent",),
    }
    assert [name for name in METHODS if METHODS[name]().needs_generator] == ["gat"]
