"""What generative adversarial training teaches, with each of its options."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from gat.attacks import Compute, LatentAttack
from gat.training.batch_norm import split_batch_norms
from gat.training.methods import GAT, Batch, Lesson, RandomLatents, Tools
from generators.stylegan2.space import StyleGAN2Space
from tasks.classification import ClassificationTask
from tests.toys import CLASSES

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


def adversarial(lesson: Lesson) -> tuple[Tensor, Tensor]:
    return lesson.images[lesson.num_clean :], lesson.labels[lesson.num_clean :]


def test_gat_teaches_as_many_clean_images_as_it_got_and_at_most_as_many_adversarial(tools, model, batch):
    method = GAT(oversample=4, rotation=(("all", "both"),))
    lesson = method.lesson(tools, model, Batch(*batch), 0)
    assert lesson.num_clean == N
    assert torch.equal(lesson.images[:N], batch[0])
    assert torch.equal(lesson.labels[:N], batch[1])
    assert len(lesson.images) == len(lesson.labels) == 2 * N
    assert lesson.facts["adversarial_share"] == 0.5


def test_every_adversarial_image_fools_the_model_as_it_was(tools, model, batch):
    for key in range(3):
        images, labels = adversarial(GAT(rotation=ROTATION).lesson(tools, model, Batch(*batch), key))
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
    images, labels = adversarial(method.lesson(tools, model, Batch(*batch), key))
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
    _, labels = adversarial(method.lesson(tools, Always(1), Batch(*batch), 0))
    assert len(labels) == N
    assert (labels == 1).all()


@pytest.mark.parametrize("train_on", ["final", "trajectory", "iterates"])
def test_a_step_without_a_single_usable_start_teaches_clean_images_and_reports_numbers(
    tools, batch, train_on
):
    images, labels = batch[0], torch.zeros_like(batch[1])
    method = GAT(attack=LatentAttack(stop_when_fooled=False), rotation=(("all", "both"),), train_on=train_on)
    lesson = method.lesson(tools, Always(1), Batch(images, labels), 0)
    assert torch.equal(lesson.images, images)
    assert dict(lesson.facts) == dict.fromkeys(
        ("fooled_share", "iterations", "score", "adversarial_share"), 0
    )


def test_a_model_that_cannot_be_fooled_is_taught_clean_images_only(tools, batch):
    lesson = GAT().lesson(tools, Always(1), Batch(*batch), 0)
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
        method.lesson(tools, model, Batch(*batch), key)
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
    plain = GAT(oversample=3, rotation=(("all", "both"),)).lesson(Tools(TASK, space), model, Batch(*batch), 0)
    lesson = method.lesson(Tools(TASK, space, oracle=Always(1).eval()), model, Batch(*batch), 0)
    assert set(adversarial(plain)[1].tolist()) != {1}
    assert set(adversarial(lesson)[1].tolist()) == {1}
    assert 0 < lesson.facts["oracle_rejected_share"] < 1


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_what_to_learn_from_is_read_in_the_precision_of_the_attack(space, model, batch, dtype):
    class Noting(Always):
        def forward(self, images: Tensor) -> Tensor:
            precisions.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
            return super().forward(images)

    precisions: set[torch.dtype | None] = set()
    tools = Tools(TASK, space, oracle=Noting(1).eval(), compute=Compute(autocast=dtype))
    GAT(oracle_filter=True, rotation=(("all", "both"),)).lesson(tools, model, Batch(*batch), 0)
    assert precisions == {dtype}


def test_an_oracle_filter_without_an_oracle_is_refused(tools, model, batch):
    with pytest.raises(ValueError, match="oracle_filter needs an oracle"):
        GAT(oracle_filter=True).lesson(tools, model, Batch(*batch), 0)


def test_clean_images_can_be_generated_too(tools, model, batch):
    lesson = GAT(clean="generated").lesson(tools, model, Batch(*batch), 2)
    count = round(1.5 * N)
    latents = tools.generator.sample(batch[1].repeat(2)[:count], torch.arange(count) + 2 * count, 0)
    expected = tools.generator.freeze(latents, [])({}, torch.arange(count))[:N]
    torch.testing.assert_close(lesson.images[: lesson.num_clean], expected, rtol=0, atol=1e-6)
    assert torch.equal(lesson.labels[:N], batch[1])


def test_what_is_missing_is_named_before_training(space):
    with pytest.raises(ValueError, match="oracle_filter needs an oracle"):
        GAT(oracle_filter=True, rotation=ROTATION).check(Tools(TASK, space))
    with pytest.raises(ValueError, match="oracle_filter needs an oracle"):
        RandomLatents(oracle_filter=True).check(Tools(TASK, space))
    with pytest.raises(ValueError, match="random_latents needs a generator"):
        RandomLatents().check(Tools(TASK))
    with pytest.raises(ValueError, match="has no middle style site"):
        GAT(rotation=(("middle", "style"),)).check(Tools(TASK, space))


def test_without_an_attack_it_is_random_latents(tools, model, batch):
    """The control draws the very images that GAT starts from."""
    still = GAT(attack=LatentAttack(max_steps=0), only_fooling=False, rotation=ROTATION, seed=3)
    for key in range(3):
        gat = still.lesson(tools, model, Batch(*batch), key)
        control = RandomLatents(seed=3).lesson(tools, model, Batch(*batch), key)
        torch.testing.assert_close(control.images, gat.images, rtol=0, atol=1e-6)
        assert torch.equal(control.labels, gat.labels)
        assert len(gat.images) > gat.num_clean == N
        assert control.num_clean == len(control.images)  # nothing in it is adversarial


def test_random_latents_are_read_as_they_were_meant(tools, model, batch):
    lesson = RandomLatents(oversample=8).lesson(tools, model, Batch(*batch), 1)
    assert len(lesson.images) == 2 * N
    assert lesson.facts == {"generated_share": 0.5}
    with torch.no_grad():
        assert (model.eval()(lesson.images[N:]).argmax(1) == lesson.labels[N:]).all()


def test_random_latents_are_read_in_the_attacks_precision(tools, model, batch):
    lessons, seen = [], []
    model.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    for autocast in (None, torch.bfloat16):
        with_precision = replace(tools, compute=Compute(autocast=autocast))
        lessons.append(RandomLatents(oversample=8).lesson(with_precision, model, Batch(*batch), 1))
    assert seen == [False, True]
    for lesson in lessons:
        assert lesson.images.dtype == torch.float32
        torch.testing.assert_close(lesson.images, lessons[0].images, rtol=0, atol=1e-6)


def test_turns_share_the_starts_of_a_step(tools, model, batch, monkeypatch):
    moved: list[set[str]] = []
    honest = StyleGAN2Space.freeze

    def watched(self, latents, sites):
        moved.append({site.split("/")[0] for site in sites})
        return honest(self, latents, sites)

    monkeypatch.setattr(StyleGAN2Space, "freeze", watched)
    rotation = (("coarse", "style"), ("fine", "noise"), ("all", "both"))
    method = GAT(rotation=rotation, turns_per_step=2)
    for key in range(3):
        method.lesson(tools, model, Batch(*batch), key)
    assert moved == [{"style"}, {"noise"}, {"style", "noise"}] * 2


def test_turns_leave_the_order_of_the_starts(tools, model, batch):
    """What no attack changes is the same however it was dealt out."""
    still = {"attack": LatentAttack(max_steps=0), "only_fooling": False, "rotation": ROTATION}
    one = GAT(**still).lesson(tools, model, Batch(*batch), 4)
    for turns in (2, 3, 50):
        many = GAT(**still, turns_per_step=turns).lesson(tools, model, Batch(*batch), 4)
        torch.testing.assert_close(many.images, one.images, rtol=0, atol=1e-6)
        assert torch.equal(many.labels, one.labels)


@pytest.mark.parametrize("stop", [True, False])
def test_iterates_are_those_of_the_trajectory_and_never_the_start(tools, model, batch, stop):
    attack = LatentAttack(step_size={"*": 0.05}, max_steps=6, stop_when_fooled=stop)
    method = GAT(attack=attack, rotation=(("all", "both"),), train_on="trajectory", oversample=2)
    images, labels = adversarial(method.lesson(tools, model, Batch(*batch), 1))
    assert len(images) > 3

    start_labels, ids = batch[1].repeat(2), torch.arange(2 * N) + 2 * N
    latents = tools.generator.sample(start_labels, ids, 0)
    outcome = attack.run(TASK, model, tools.generator, latents, start_labels, record=True)
    rows = outcome.success.nonzero().squeeze(1)[: len(images)]
    assert torch.equal(labels, start_labels[rows])
    steps = []
    for image, row in zip(images, rows.tolist(), strict=True):
        distances = (outcome.trajectory[:, row] - image).abs().flatten(1).amax(1)
        step = int(distances.argmin())
        assert distances[step] < 1e-5
        assert 1 <= step <= (outcome.iterations[row] if stop else 6)
        steps.append(step)
    assert len(set(steps)) > 1  # not always the same one
    beyond = torch.tensor(steps) > outcome.iterations[rows]
    assert bool(beyond.any()) is not stop  # an attack that goes on has iterates after the first that fools


def test_the_weight_is_that_of_adversarial_images(tools, model, batch):
    plain = GAT(rotation=ROTATION).lesson(tools, model, Batch(*batch), 1)
    heavy = GAT(rotation=ROTATION, weight=3.0).lesson(tools, model, Batch(*batch), 1)
    assert plain.weights is None
    assert torch.equal(heavy.images, plain.images)
    m = len(plain.images) - N
    assert heavy.weights.tolist() == [1.0] * N + [3.0] * m
    assert float(heavy.total_weight) == N + 3 * m


def test_consistency_asks_for_the_answer_before_the_attack(tools, model, batch):
    plain = GAT(rotation=ROTATION).lesson(tools, model, Batch(*batch), 1)
    lesson = GAT(rotation=ROTATION, consistency=2.0, weight=0.5).lesson(tools, model, Batch(*batch), 1)
    m = len(plain.images) - N
    starts, after = slice(N, N + m), slice(N + m, N + 2 * m)
    assert lesson.num_clean == N + m
    assert torch.equal(lesson.images[:N], plain.images[:N])
    assert torch.equal(lesson.images[after], plain.images[N:])
    assert torch.equal(lesson.labels[starts], lesson.labels[after])
    with torch.no_grad():
        assert (model.eval()(lesson.images[starts]).argmax(1) == lesson.labels[starts]).all()
    assert lesson.weights.tolist() == [1.0] * N + [0.0] * m + [0.5] * m
    assert lesson.anchors.tolist() == [*range(N + m), *range(N, N + m)]
    assert lesson.pulls.tolist() == [0.0] * (N + m) + [2.0] * m


def test_a_start_goes_through_the_model_once_however_many_images_it_became(tools, model, batch):
    options: dict = {"rotation": ROTATION, "train_on": "iterates", "only_fooling": False, "oversample": 3.0}
    options["attack"] = LatentAttack(
        max_steps=2, step_size={"style/*": 0.05, "noise/*": 0.4}, stop_when_fooled=False
    )
    plain = GAT(**options).lesson(tools, model, Batch(*batch), 1)
    lesson = GAT(**options, consistency=1.0).lesson(tools, model, Batch(*batch), 1)
    after = plain.images[N:]
    starts = lesson.images[N : lesson.num_clean]
    assert torch.equal(lesson.images[lesson.num_clean :], after)
    assert 1 < len(starts) < len(after)
    assert len(starts.flatten(1).unique(dim=0)) == len(starts)
    assert lesson.anchors is not None and lesson.pulls is not None
    own = lesson.anchors[lesson.num_clean :] - N
    assert own.unique().tolist() == list(range(len(starts)))
    assert torch.equal(lesson.labels[N : lesson.num_clean][own], lesson.labels[lesson.num_clean :])
    with torch.no_grad():  # the first iterate of a start is near it, and nearer than any other start
        distance = (after[:, None] - starts[None]).flatten(2).norm(dim=2)
    first = torch.cat([torch.tensor([True]), own[1:] != own[:-1]])
    assert torch.equal(distance.argmin(1)[first], own[first])
    assert lesson.pulls.tolist() == [0.0] * lesson.num_clean + [1.0] * len(after)


IN_STEP: dict = {
    "rotation": ROTATION,
    "train_on": "iterates",
    "only_fooling": False,
    "oversample": 1.0,
    "attack": LatentAttack(max_steps=4, step_size={"*": 0.05}, stop_when_fooled=False),
}


def pictures(lessons: Sequence[Lesson]) -> Tensor:
    """Of all lessons, with their labels, in an order of their own."""
    rows = [torch.cat([image.flatten(1), label[:, None]], 1) for image, label in map(adversarial, lessons)]
    everything = torch.cat(rows)
    return everything[everything[:, :-1].double().sum(1).argsort()]


@pytest.mark.parametrize("count", [4, 3])
def test_in_step_a_model_that_stands_still_is_taught_what_single_steps_teach(tools, model, batch, count):
    """Every iterate of the same starts, of every turn of the rotation; but one of each at a time, instead of all of a few."""
    batches = [Batch(batch[0].roll(i, 0), batch[1].roll(i, 0)) for i in range(count)]
    keys = list(range(5, 5 + count))
    attack = IN_STEP["attack"].model_copy(update={"max_steps": count})
    options = {**IN_STEP, "attack": attack, "oversample": 2.0}
    single = GAT(**options)
    alone = [single.lesson(tools, model, one, key) for one, key in zip(batches, keys, strict=True)]
    together = list(GAT(**options, in_step=True).lessons(tools, model, batches, keys))
    torch.testing.assert_close(pictures(together), pictures(alone), rtol=0, atol=1e-5)
    for lesson, one in zip(together, batches, strict=True):
        assert torch.equal(lesson.images[:N], one.images) and torch.equal(lesson.labels[:N], one.labels)
        assert torch.equal(adversarial(lesson)[1], adversarial(together[0])[1])
    assert [set(lesson.facts) >= {"score"} for lesson in together] == [False] * (count - 1) + [True]

    # Iterates of one start look alike: a step that draws from more starts has more different pictures.
    def spread(lessons: list[Lesson]) -> float:
        images = [adversarial(lesson)[0].flatten(1) for lesson in lessons]
        return float(torch.stack([torch.cdist(some, some).median() for some in images if len(some)]).mean())

    assert spread(together) > spread(alone)


STARTS: dict = {"rotation": ROTATION, "oversample": 2.0, "seed": 4}


def right_starts(tools: Tools, model: nn.Module, labels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The renderings of these latents of seed 4 that the model reads, and their labels."""
    latents = tools.generator.sample(labels, ids, 4)
    images = tools.generator.freeze(latents, [])({}, torch.arange(len(ids)))
    with torch.no_grad():
        right = copy.deepcopy(model).eval()(images).argmax(1) == labels
    assert 1 < right.sum() < len(right)
    return images[right], labels[right]


@pytest.mark.parametrize("options", [{}, {"train_on": "iterates", "consistency": 1.0}], ids=["final", "more"])
def test_starts_are_taught_once_beside_what_became_of_them(tools, model, batch, options):
    plain = GAT(**STARTS, **options).lesson(tools, model, Batch(*batch), 3)
    lesson = GAT(**STARTS, **options, start_weight=0.5).lesson(tools, model, Batch(*batch), 3)
    count = GAT(**STARTS, **options).num_drawn(N)
    wanted, labels = right_starts(tools, model, batch[1].repeat(2)[:count], torch.arange(count) + 3 * count)
    starts = slice(N, N + len(wanted[:N]))
    torch.testing.assert_close(lesson.images[starts], wanted[:N], rtol=0, atol=1e-6)
    assert torch.equal(lesson.labels[starts], labels[:N])
    assert lesson.weights[starts].tolist() == [0.5] * len(wanted[:N])

    # All else is as it was.
    assert torch.equal(adversarial(lesson)[0], adversarial(plain)[0])
    others = torch.ones(len(lesson.images), dtype=torch.bool)
    others[starts] = False
    assert torch.equal(lesson.images[others], plain.images)
    assert torch.equal(lesson.labels[others], plain.labels)
    if options:
        assert torch.equal(lesson.weights[others], plain.weights)
        assert torch.equal(lesson.images[lesson.anchors[others]], plain.images[plain.anchors])
        assert torch.equal(lesson.pulls[others], plain.pulls)


def test_starts_that_weigh_as_much_as_clean_images_need_no_weights(tools, model, batch):
    assert GAT(**STARTS, start_weight=1.0).lesson(tools, model, Batch(*batch), 3).weights is None


def test_in_step_every_start_is_taught_in_one_of_its_steps(tools, model, batch):
    options, batches, keys = {**IN_STEP, "seed": 4, "oversample": 2.0}, [Batch(*batch)] * 4, range(4)
    plain = list(GAT(**options, in_step=True).lessons(tools, model, batches, keys))
    lessons = list(GAT(**options, in_step=True, start_weight=1.0).lessons(tools, model, batches, keys))
    per_step = 2 * N // 4
    labels = torch.cat([batch[1][:per_step]] * 4)
    ids = torch.cat([torch.arange(per_step) + key * per_step for key in keys])
    wanted, wanted_labels = right_starts(tools, model, labels, ids)
    starts = [slice(N, lesson.num_clean) for lesson in lessons]
    taught = torch.cat([lesson.images[own] for lesson, own in zip(lessons, starts, strict=True)])
    torch.testing.assert_close(taught, wanted, rtol=0, atol=1e-6)
    assert torch.equal(
        torch.cat([lesson.labels[own] for lesson, own in zip(lessons, starts, strict=True)]), wanted_labels
    )
    for lesson, one, own in zip(lessons, plain, starts, strict=True):
        assert len(lesson.images[own]) <= per_step
        assert torch.equal(adversarial(lesson)[0], adversarial(one)[0])


def test_in_step_every_iteration_is_against_the_model_as_it_is_by_then(tools, model, batch):
    def go(change: float) -> list[Lesson]:
        learner, found = copy.deepcopy(model), []
        batches = [Batch(*batch)] * 4
        for lesson in GAT(**IN_STEP, in_step=True).lessons(tools, learner, batches, range(4)):
            found.append(lesson)
            assert learner.training
            with torch.no_grad():
                learner[-1].weight.mul_(change)
        return found

    still, turning = go(1.0), go(-1.0)
    assert torch.equal(still[0].images, turning[0].images)
    assert not torch.equal(still[1].images, turning[1].images)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train_on": "final"}, "change train_on$"),
        ({"only_fooling": True}, "change only_fooling$"),
        ({"attack": LatentAttack()}, "change attack.stop_when_fooled$"),
        ({"attack": LatentAttack(stop_when_fooled=False, max_steps=0)}, "change attack.max_steps$"),
    ],
)
def test_in_step_needs_attacks_of_one_length(change, says):
    with pytest.raises(ValueError, match=says.replace("$", " ")):
        GAT(**{**IN_STEP, **change}, in_step=True)


def test_the_attack_goes_through_the_auxiliary_batch_norms(tools, model, batch):
    """Those are made to answer class 1, whatever they see: nothing else is right at the start, and nothing fools."""
    method = GAT(rotation=(("all", "both"),), batch_norm="main", only_fooling=False)
    split_batch_norms(model)
    with torch.no_grad():
        model[1].auxiliary.weight.zero_()
        model[1].auxiliary.bias.zero_()
        model[-1].bias.copy_(torch.tensor([0.0, 1e-3, 0.0]))
    lesson = method.lesson(tools, model, Batch(*batch), 0)
    assert set(adversarial(lesson)[1].tolist()) == {1}
    assert lesson.facts["fooled_share"] == 0
    assert {GAT(batch_norm=kind).kept_branch for kind in ("shared", "main", "auxiliary")} == {
        None,
        "main",
        "auxiliary",
    }


@pytest.mark.parametrize(
    "options",
    [
        {"train_on": "trajectory"},
        {"consistency": 1.0},
        {"turns_per_step": 2},
        {"batch_norm": "auxiliary", "weight": 2.0},
    ],
    ids=lambda o: next(iter(o)),
)
def test_a_model_that_cannot_be_fooled_is_taught_clean_images_whatever_the_options(tools, batch, options):
    lesson = GAT(rotation=ROTATION, **options).lesson(tools, Always(1), Batch(*batch), 0)
    assert len(lesson.images) == lesson.num_clean == N
    assert torch.isfinite(lesson.loss(TASK, torch.randn(N, 3))).all()
