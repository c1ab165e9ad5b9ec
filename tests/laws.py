"""What every honest attack on pixels obeys. Each law is a function that asserts; broken attacks must make some of them fail."""

import torch
from torch import Tensor

from gat.attacks import PGD, Compute
from gat.attacks.run import Outcome
from tasks.classification import ClassificationTask
from tests.toys import linear_classifier

TWO = ClassificationTask(("no", "yes"))
SHAPE = (3, 4, 4)
DIM = 48
TOLERANCE = 1e-6  # of one float32 rounding at 1.0, and some


def linear_case(n: int = 7, margin: float = 0.2) -> tuple[torch.nn.Module, Tensor, Tensor, Tensor]:
    """Model, images well inside [0, 1], labels that it gets right, and for each image the way that lowers its margin."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(2, DIM, generator=generator)
    images = torch.rand(n, *SHAPE, generator=generator) * (1 - 2 * margin) + margin
    model = linear_classifier(weights, -weights.sum(1) / 2)  # the grey image lies on the border
    labels = model(images).argmax(1)
    assert len(labels.unique()) == 2
    return model, images, labels, weights[1 - labels] - weights[labels]


def margin_gain(outcome: Outcome, uphill: Tensor) -> Tensor:
    """How much the margin of a linear classifier fell, in float64."""
    moved = (outcome.images.double() - outcome.start_images.double()).flatten(1)
    return (moved * uphill.double()).sum(1)


def reaches_the_optimum_of_a_linear_model(norm: str) -> None:
    """The margin falls by eps times the dual norm of the weights: no attack in the ball can do more."""
    model, images, labels, uphill = linear_case()
    eps = {"linf": 0.1, "l2": 0.5, "l1": 0.15}[norm]
    # Sign steps reach the corner from anywhere; on a sphere only the start at the centre gets there in finitely many, and in
    # the l1 ball steps so long that projection leaves the largest entry alone.
    attack = PGD(
        eps=eps, norm=norm, steps=10, random_start=norm == "linf", stop_when_fooled=False,
        step_size=1000 * eps if norm == "l1" else None,
    )  # fmt: skip
    gain = margin_gain(attack.run(TWO, model, images, labels), uphill)
    dual = {"linf": uphill.abs().sum(1), "l2": uphill.norm(dim=1), "l1": uphill.abs().amax(1)}[norm]
    torch.testing.assert_close(gain, eps * dual.double(), rtol=1e-4, atol=1e-5)


def keeps_to_the_ball(norm: str) -> None:
    """Measured anew in float64, and with steps so long that only projection keeps it."""
    model, images, labels, _ = linear_case()
    eps = 0.05 if norm == "linf" else 0.3
    attack = PGD(eps=eps, norm=norm, steps=5, step_size=2 * eps, stop_when_fooled=False)
    outcome = attack.run(TWO, model, images, labels)
    offset = (outcome.images.double() - images.double()).flatten(1)
    length = {"linf": offset.abs().amax(1), "l2": offset.norm(dim=1), "l1": offset.abs().sum(1)}[norm]
    assert (length <= eps + TOLERANCE).all(), f"{norm} distance {length.max():.6f} is over the budget {eps}"
    assert (length >= eps * 0.99).all(), "the budget is not used"


def keeps_to_the_range(norm: str) -> None:
    """Images at the border of [0, 1] stay in it."""
    model, images, _, _ = linear_case(margin=0.0)
    images = (images * 3 - 1).clamp(0, 1)
    outcome = PGD(eps=0.3, norm=norm, steps=5, stop_when_fooled=False).run(
        TWO, model, images, model(images).argmax(1)
    )
    assert (outcome.images != images).any()
    assert 0 <= outcome.images.min() <= outcome.images.max() <= 1, "left [0, 1]"


def fills_the_box_greedily() -> None:
    """The optimum of a linear model in the l1 ball within [0, 1]: the steepest pixels up to the border, one of them partly."""
    model, images, labels, uphill = linear_case(margin=0.0)
    eps = 2.5
    attack = PGD(
        eps=eps, norm="l1", steps=5, step_size=1000 * eps, random_start=False, stop_when_fooled=False
    )
    gain = margin_gain(attack.run(TWO, model, images, labels), uphill)
    flat = images.double().flatten(1)
    steep, order = uphill.double().abs().sort(dim=1, descending=True)
    room = torch.where(uphill > 0, 1 - flat, flat).gather(1, order)
    spent = (eps - (room.cumsum(1) - room)).clamp(min=0).minimum(room)
    assert ((spent > 0) & (spent == room)).any(1).all(), "no pixel reaches the border: the case shows nothing"
    torch.testing.assert_close(gain, (spent * steep).sum(1), rtol=1e-3, atol=1e-4)


class Trigger(torch.nn.Module):
    """Answers 'no' until the mean of one corner exceeds the rest's by 0.03: a planted weakness."""

    def forward(self, images: Tensor) -> Tensor:
        corner = images[:, :, :2, :2].mean((1, 2, 3)) - images.mean((1, 2, 3)) - 0.03
        return torch.stack([torch.zeros_like(corner), corner * 50], dim=1)


def finds_the_planted_weakness() -> None:
    """It takes a shift of 0.03 against the mean, which 8/255 can make but no random point of the ball does."""
    images = torch.full((5, *SHAPE), 0.5)
    labels = torch.zeros(5, dtype=torch.long)
    outcome = PGD(eps=8 / 255, steps=10).run(TWO, Trigger(), images, labels)
    assert outcome.attacked.all()
    assert outcome.success.all(), "the planted weakness was not found"
    assert (outcome.predictions == 1).all()


class Ridge(torch.nn.Module):
    """Wrong only within a narrow band that long steps enter and leave again."""

    def forward(self, images: Tensor) -> Tensor:
        x = images.mean((1, 2, 3))
        return torch.stack([torch.zeros_like(x), 10 - 400 * (x - 0.59).abs()], dim=1)


def keeps_the_best_iterate() -> None:
    """0.5 -> 0.6 fools; the next step goes back. What counts is that it was there."""
    images = torch.full((3, *SHAPE), 0.5)
    labels = torch.zeros(3, dtype=torch.long)
    for steps in (1, 2, 3, 4):
        attack = PGD(eps=0.4, steps=steps, step_size=0.1, random_start=False, stop_when_fooled=False)
        outcome = attack.run(TWO, Ridge(), images, labels)
        assert outcome.success.all(), f"lost what fooled, after {steps} steps"


def examples_do_not_see_each_other(norm: str) -> None:
    """Alone, together, and in another order: the same result, whatever the others are like."""
    model, images, labels, _ = linear_case(n=3)
    images = torch.cat([images[:1], images[1:] * 0.01, images[:1] * 0.9])
    labels = model(images).argmax(1)
    ids = torch.tensor([40, 7, 1000, 2])
    attack = PGD(eps=0.1, norm=norm, steps=4, step_size=0.06, stop_when_fooled=False)

    def run(rows: Tensor, width: int = 128) -> Tensor:
        return attack.run(
            TWO, model, images[rows], labels[rows], ids=ids[rows], compute=Compute(width)
        ).images

    together = run(torch.arange(4))
    alone = torch.cat([run(torch.tensor([i])) for i in range(4)])
    torch.testing.assert_close(alone, together, rtol=0, atol=TOLERANCE)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(run(order), together[order], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(run(torch.arange(4), width=3), together, rtol=0, atol=TOLERANCE)


LAWS = {
    "optimum linf": lambda: reaches_the_optimum_of_a_linear_model("linf"),
    "optimum l2": lambda: reaches_the_optimum_of_a_linear_model("l2"),
    "optimum l1": lambda: reaches_the_optimum_of_a_linear_model("l1"),
    "ball linf": lambda: keeps_to_the_ball("linf"),
    "ball l2": lambda: keeps_to_the_ball("l2"),
    "ball l1": lambda: keeps_to_the_ball("l1"),
    "range linf": lambda: keeps_to_the_range("linf"),
    "range l2": lambda: keeps_to_the_range("l2"),
    "range l1": lambda: keeps_to_the_range("l1"),
    "box l1": fills_the_box_greedily,
    "planted weakness": finds_the_planted_weakness,
    "best iterate": keeps_the_best_iterate,
    "independence linf": lambda: examples_do_not_see_each_other("linf"),
    "independence l2": lambda: examples_do_not_see_each_other("l2"),
    "independence l1": lambda: examples_do_not_see_each_other("l1"),
}
