"""What every registered attack on images promises, on a small random network of every task that it is for. A new attack is enrolled by its
line in the registry.

That attacks also find what there is to find is for tests/laws.py and each attack's own tests, which know the optimum.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gat.attacks import ATTACKS, PGD, Compute, ImageAttack, WorstOf
from gat.attacks.run import Outcome
from gat.protocols import Task
from tasks.classification import ClassificationTask
from tasks.segmentation import SegmentationTask
from tests.toys import CLASSES, balanced, conv_classifier, conv_segmenter

N, SIDE = 6, 16
SMALL = {"steps": 3, "restarts": 1, "search_steps": 2, "queries": 30, "num_queries": 30, "inner_steps": 3}
"""Settings that make attacks quick, for those that have them."""

NAMES = [name for name, kind in ATTACKS.items() if issubclass(kind, ImageAttack)]
TOYS = {"classification": ClassificationTask(CLASSES), "segmentation": SegmentationTask(CLASSES)}
CASES = [(name, task) for name in NAMES for task in TOYS if task in ATTACKS[name].tasks]
every_case = pytest.mark.parametrize(("name", "toy"), CASES, indirect=["toy"])


@dataclass(frozen=True)
class Toy:
    """A task with a model of it.

    Attributes:
        labels: what the model says, but for the last example, which it gets wrong.
    """

    task: Task
    model: nn.Module
    labels: Tensor

    @property
    def at_the_door(self) -> dict[str, Any]:
        """What a caller adds: a classifier needs no task."""
        return {} if self.task.name == "classification" else {"task": self.task}


def quick(name: str, **settings: Any) -> ImageAttack:
    """The attack with few steps."""
    kind = ATTACKS[name]
    assert issubclass(kind, ImageAttack)
    if kind is WorstOf:
        return WorstOf(attacks=(PGD(steps=2, eps=0.01), PGD(steps=2, eps=0.03, norm="linf")))
    known = {key: value for key, value in SMALL.items() if key in kind.model_fields}
    return kind.model_validate(known | settings)


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Smooth patches of colour with some noise: what a photograph of nothing looks like."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(N, 3, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=SIDE, mode="bicubic", align_corners=False)
    return (smooth + 0.05 * torch.randn(N, 3, SIDE, SIDE, generator=generator)).clamp(0, 1)


def network(task: str, images: Tensor) -> nn.Sequential:
    return balanced(conv_classifier() if task == "classification" else conv_segmenter(), images)


@pytest.fixture(scope="module")
def toys(images: Tensor) -> dict[str, Toy]:
    found = {}
    for name, task in TOYS.items():
        model = network(name, images)
        labels = task.predict(model(images))
        labels[-1] = (labels[-1] + 1) % 3
        if name == "segmentation":
            labels[:, :3] = 255
        found[name] = Toy(task, model, labels)
    return found


@pytest.fixture
def toy(request: pytest.FixtureRequest, toys: dict[str, Toy]) -> Toy:
    return toys[request.param]


@pytest.fixture
def model(toys: dict[str, Toy]) -> nn.Module:
    return toys["classification"].model


@pytest.fixture
def labels(toys: dict[str, Toy]) -> Tensor:
    return toys["classification"].labels


def run(
    attack: ImageAttack, toy: Toy, images: Tensor, labels: Tensor | None = None, **options: Any
) -> Outcome:
    return attack.run(toy.task, toy.model, images, toy.labels if labels is None else labels, **options)


@every_case
def test_the_outcome_is_true(name, toy, images):
    """Re-measured from the images alone, in float64 where it is a distance."""
    attack = quick(name)
    outcome, task, labels = run(attack, toy, images), toy.task, toy.labels
    assert outcome.images.shape == images.shape
    assert outcome.images.dtype == torch.float32
    assert not outcome.images.requires_grad
    assert outcome.images.isfinite().all()
    assert outcome.images.min() >= 0
    assert outcome.images.max() <= 1
    with torch.no_grad():
        before, after = toy.model(images), toy.model(outcome.images)
    assert torch.equal(outcome.predictions, task.predict(after))
    assert torch.equal(outcome.attacked, ~task.wrong(before, labels))
    assert outcome.attacked.tolist() == [True] * (N - 1) + [False]
    assert not (outcome.success & ~task.wrong(after, labels)).any()
    change = (outcome.images.double() - outcome.start_images.double()).flatten(1)
    measured = {
        "linf_pixels": change.abs().amax(1), "l2_pixels": change.norm(dim=1), "l1_pixels": change.abs().sum(1),
    }  # fmt: skip
    for key, values in measured.items():
        torch.testing.assert_close(outcome.distances[key].double(), values, rtol=1e-4, atol=1e-5)
    for key, bound in attack.bounds.items():
        reached = measured.get(key, outcome.distances[key].double())[outcome.success]
        assert (reached <= bound * (1 + 1e-4) + 1e-6).all(), (
            f"{name}: {key} is {reached.max()}, at most {bound} is allowed"
        )
    assert attack.summary
    assert attack.family


@every_case
def test_what_is_wrong_already_is_left_alone(name, toy, images):
    outcome = run(quick(name), toy, images)
    assert not outcome.attacked[-1]
    assert not outcome.success[-1]
    assert torch.equal(outcome.images[-1], images[-1])
    assert outcome.backwards[-1] == 0


@every_case
def test_an_example_does_not_see_its_batch(name, toy, images):
    """Alone, in another order and in narrower passes: the same, up to how the processor adds numbers."""
    attack, ids = quick(name), torch.tensor([40, 7, 1000, 2, 5, 11])
    together, labels = run(attack, toy, images, ids=ids), toy.labels
    order = torch.tensor([2, 0, 5, 3, 1, 4])
    shuffled = run(attack, toy, images[order], labels[order], ids=ids[order])
    narrow = run(attack, toy, images, ids=ids, compute=Compute(width=2))
    rows = [torch.tensor([i]) for i in range(3)]
    alone = torch.cat([run(attack, toy, images[i], labels[i], ids=ids[i]).images for i in rows])
    tolerance = {"rtol": 0, "atol": 2e-3}  # where a step is a sign, rounding may decide it
    far = [
        (shuffled.images - together.images[order]).abs(),
        (narrow.images - together.images).abs(),
        (alone - together.images[:3]).abs(),
    ]
    for difference in far:
        assert (difference > tolerance["atol"]).float().mean() < 0.01
    assert torch.equal(shuffled.success, together.success[order])
    assert torch.equal(narrow.success, together.success)


@every_case
def test_the_same_call_gives_the_same_bits(name, toy, images):
    first, second = (run(quick(name), toy, images) for _ in range(2))
    assert torch.equal(first.images, second.images)


@every_case
def test_nothing_is_touched(name, toy, images):
    model = network(toy.task.name, images).train()
    model[1].eval()  # a mixture of modes is the user's right
    model[0].weight.requires_grad_(False)
    model[-1].bias.grad = torch.ones(3)
    modes = [part.training for part in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    given, rng = images.clone(), torch.get_rng_state()
    run(quick(name), Toy(toy.task, model, toy.labels), images)
    assert [part.training for part in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert [parameter.grad is None for parameter in model.parameters()] == [True] * (len(flags) - 1) + [False]
    assert torch.equal(model[-1].bias.grad, torch.ones(3))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(images, given)
    assert torch.equal(torch.get_rng_state(), rng)


@every_case
def test_it_is_called_like_a_function(name, toy, images):
    attack, given = quick(name), toy.at_the_door
    attacked = attack(toy.model, images, toy.labels, **given)
    assert torch.equal(attacked, run(attack, toy, images).images)
    assert attack(toy.model, images.double(), toy.labels, **given).dtype == torch.float64
    assert attack(toy.model, images[:0], toy.labels[:0], **given).shape == (0, 3, SIDE, SIDE)


@pytest.mark.parametrize(
    ("name", "task"), [(name, task) for name in NAMES for task in TOYS if (name, task) not in CASES]
)
def test_an_attack_is_refused_for_other_tasks_at_the_door(name, task, toys, images):
    toy = toys[task]
    with pytest.raises(ValueError, match=f"{name} attacks .*, not {task}"):
        quick(name)(toy.model, images, toy.labels, **toy.at_the_door)


def settings_of_no_budget(kind: type[ImageAttack]) -> dict[str, Any] | None:
    for field in ("eps", "bound", "bound_px"):
        if field in kind.model_fields:
            return {field: 0.0}
    return None


WITH_BUDGET = [(name, task) for name, task in CASES if settings_of_no_budget(ATTACKS[name])]


@pytest.mark.parametrize(("name", "toy"), WITH_BUDGET, indirect=["toy"])
def test_no_budget_is_no_change(name, toy, images):
    attack = quick(name, **settings_of_no_budget(ATTACKS[name]))
    torch.testing.assert_close(run(attack, toy, images).images, images, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_settings_survive_a_file(name):
    attack = quick(name)
    assert type(attack).model_validate(attack.model_dump(mode="json")) == attack


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda images, labels: (images * 255, labels), r"\[0, 1\].*divide by 255"),
        (lambda images, labels: (images * 2 - 1, labels), r"\[0, 1\].*Normalized"),
        (lambda images, labels: (images * float("nan"), labels), "finite"),
        (lambda images, labels: ((images * 255).byte(), labels), "floating point"),
        (lambda images, labels: (images[0], labels[:1]), "batch axis"),
        (lambda images, labels: (images, labels + 3), r"0 \.\. 2"),
        (lambda images, labels: (images, labels - 1), r"0 \.\. 2"),
        (lambda images, labels: (images, labels.int()), "int64"),
        (lambda images, labels: (images, labels[:-1]), "one label per image"),
        (lambda images, labels: (images, nn.functional.one_hot(labels, 3)), "one-hot"),
    ],
)
@pytest.mark.parametrize("name", [name for name, task in CASES if task == "classification"])
def test_bad_input_is_refused_at_the_door(name, spoil, says, model, images, labels):
    with pytest.raises(ValueError, match=says):
        quick(name)(model, *spoil(images, labels))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda images, labels: (images * 255, labels), r"\[0, 1\].*divide by 255"),
        (
            lambda images, labels: (images, torch.where(labels < 3, labels + 2, 255)),
            r"0 \.\. 2.*got \[3, 4\]",
        ),
        (lambda images, labels: (images, labels - 1), r"0 \.\. 2.*got \[-1, 254\]"),
        (lambda images, labels: (images, labels.float()), "no fractions"),
        (lambda images, labels: (images, labels[:-1]), "one label map per image"),
        (lambda images, labels: (images, labels[:, None]), r"squeeze\(1\)"),
        (lambda images, labels: (images, labels[:, ::2, ::2]), "as large as .* 8x8 px"),
        (lambda images, labels: (images, torch.full_like(labels, 255)), "pixel that counts.* 0, 1, 2"),
    ],
)
@pytest.mark.parametrize("name", [name for name, task in CASES if task == "segmentation"])
def test_bad_label_maps_are_refused_at_the_door(name, spoil, says, toys, images):
    toy = toys["segmentation"]
    with pytest.raises(ValueError, match=says):
        quick(name)(toy.model, *spoil(images, toy.labels), **toy.at_the_door)


class Softmax(nn.Module):
    def __init__(self, model: nn.Module, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.model, self.wrap = model, wrap

    def forward(self, images: Tensor) -> Any:
        return self.wrap(self.model(images))


@pytest.mark.parametrize(
    ("wrap", "says"),
    [
        (lambda logits: logits.softmax(1), "probabilities"),
        (lambda logits: (logits, logits), "tuple"),
        (lambda logits: {"logits": logits}, "logits"),
        (lambda logits: logits * float("nan"), "finite"),
        (lambda logits: logits[:, :1], "logits"),
    ],
)
def test_a_model_that_returns_no_logits_is_refused(wrap, says, model, images, labels):
    with pytest.raises(ValueError, match=says):
        quick("pgd")(Softmax(model, wrap), images, labels)


def test_targets_are_for_targeted_attacks_and_are_no_labels(model, images, labels):
    with pytest.raises(ValueError, match="goal 'targeted'"):
        quick("pgd")(model, images, labels, (labels + 1) % 3)
    with pytest.raises(ValueError, match="targets equal the label"):
        quick("pgd", goal="targeted")(model, images, labels, labels)
    with pytest.raises(ValueError, match="needs targets"):
        quick("pgd", goal="targeted")(model, images, labels)
