"""What every registered attack on images promises, on a small random network. A new attack is enrolled by its line in the registry.

That attacks also find what there is to find is for tests/laws.py and each attack's own tests, which know the optimum.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gat.attacks import ATTACKS, PGD, Compute, ImageAttack, WorstOf
from gat.attacks.run import Outcome
from tasks.classification import ClassificationTask
from tests.toys import CLASSES, balanced, conv_classifier

TASK = ClassificationTask(CLASSES)
N, SIDE = 6, 16
SMALL = {"steps": 3, "restarts": 1, "search_steps": 2, "queries": 30, "num_queries": 30, "inner_steps": 3}
"""Settings that make attacks quick, for those that have them."""

NAMES = [name for name, kind in ATTACKS.items() if issubclass(kind, ImageAttack)]


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


@pytest.fixture(scope="module")
def model(images: Tensor) -> nn.Module:
    return balanced(conv_classifier(), images)


@pytest.fixture(scope="module")
def labels(model: nn.Module, images: Tensor) -> Tensor:
    """What the model says, but for the last example, which it gets wrong."""
    found = model(images).argmax(1)
    found[-1] = (found[-1] + 1) % 3
    return found


def run(attack: ImageAttack, model: nn.Module, images: Tensor, labels: Tensor, **options: Any) -> Outcome:
    return attack.run(TASK, model, images, labels, **options)


@pytest.mark.parametrize("name", NAMES)
def test_the_outcome_is_true(name, model, images, labels):
    """Re-measured from the images alone, in float64 where it is a distance."""
    attack = quick(name)
    outcome = run(attack, model, images, labels)
    assert outcome.images.shape == images.shape
    assert outcome.images.dtype == torch.float32
    assert not outcome.images.requires_grad
    assert outcome.images.isfinite().all()
    assert outcome.images.min() >= 0
    assert outcome.images.max() <= 1
    with torch.no_grad():
        answers = model(outcome.images).argmax(1)
    assert torch.equal(outcome.predictions, answers)
    assert torch.equal(outcome.attacked, model(images).argmax(1) == labels)
    assert not (outcome.success & (answers == labels)).any()
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


@pytest.mark.parametrize("name", NAMES)
def test_what_is_wrong_already_is_left_alone(name, model, images, labels):
    outcome = run(quick(name), model, images, labels)
    assert not outcome.attacked[-1]
    assert not outcome.success[-1]
    assert torch.equal(outcome.images[-1], images[-1])
    assert outcome.backwards[-1] == 0


@pytest.mark.parametrize("name", NAMES)
def test_an_example_does_not_see_its_batch(name, model, images, labels):
    """Alone, in another order and in narrower passes: the same, up to how the processor adds numbers."""
    attack, ids = quick(name), torch.tensor([40, 7, 1000, 2, 5, 11])
    together = run(attack, model, images, labels, ids=ids)
    order = torch.tensor([2, 0, 5, 3, 1, 4])
    shuffled = run(attack, model, images[order], labels[order], ids=ids[order])
    narrow = run(attack, model, images, labels, ids=ids, compute=Compute(width=2))
    rows = [torch.tensor([i]) for i in range(3)]
    alone = torch.cat([run(attack, model, images[i], labels[i], ids=ids[i]).images for i in rows])
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


@pytest.mark.parametrize("name", NAMES)
def test_the_same_call_gives_the_same_bits(name, model, images, labels):
    first, second = (run(quick(name), model, images, labels) for _ in range(2))
    assert torch.equal(first.images, second.images)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_touched(name, images, labels):
    model = balanced(conv_classifier(), images).train()
    model[1].eval()  # a mixture of modes is the user's right
    model[0].weight.requires_grad_(False)
    model[6].bias.grad = torch.ones(3)
    modes = [part.training for part in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    given, rng = images.clone(), torch.get_rng_state()
    run(quick(name), model, images, labels)
    assert [part.training for part in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert [parameter.grad is None for parameter in model.parameters()] == [True] * (len(flags) - 1) + [False]
    assert torch.equal(model[6].bias.grad, torch.ones(3))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(images, given)
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_called_like_a_function(name, model, images, labels):
    attack = quick(name)
    attacked = attack(model, images, labels)
    assert torch.equal(attacked, run(attack, model, images, labels).images)
    assert attack(model, images.double(), labels).dtype == torch.float64
    assert attack(model, images[:0], labels[:0]).shape == (0, 3, SIDE, SIDE)


def settings_of_no_budget(kind: type[ImageAttack]) -> dict[str, Any] | None:
    for field in ("eps", "bound", "bound_px"):
        if field in kind.model_fields:
            return {field: 0.0}
    return None


WITH_BUDGET = [name for name in NAMES if settings_of_no_budget(ATTACKS[name])]


@pytest.mark.parametrize("name", WITH_BUDGET)
def test_no_budget_is_no_change(name, model, images, labels):
    attack = quick(name, **settings_of_no_budget(ATTACKS[name]))
    torch.testing.assert_close(run(attack, model, images, labels).images, images, rtol=0, atol=1e-6)


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
@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_refused_at_the_door(name, spoil, says, model, images, labels):
    with pytest.raises(ValueError, match=says):
        quick(name)(model, *spoil(images, labels))


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
