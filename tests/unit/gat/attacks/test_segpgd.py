"""SegPGD and CosPGD against closed forms and a planted trap; other attacks on segmenters."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gat.attacks import PGD, Compute, CosPGD, LatentAttack, Recolor, SegPGD, Spatial
from gat.attacks.ascent import ascend
from gat.attacks.objective import LossByExample
from gat.attacks.segpgd import Pace, SegPGDLoss, cospgd_loss, weighted
from gat.attacks.steps import Steps
from gat.spaces.pixels import PixelSpace
from tasks.classification import ClassificationTask
from tasks.segmentation import SegmentationTask
from tests.toys import CLASSES

IGNORE = 255
TWO = SegmentationTask(CLASSES[:2])
THREE = SegmentationTask(CLASSES)


@pytest.fixture
def logits() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(2, 3, 4, 4, generator=generator)).requires_grad_()


@pytest.fixture
def labels(logits) -> Tensor:
    """Half right, a quarter ignored."""
    found = logits.detach().argmax(1)
    found[:, 2:] = (found[:, 2:] + 1) % 3
    found[:, :, 0] = IGNORE
    return found


def gradient_of(loss, logits) -> Tensor:
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    return gradient


def weights_seen(loss, logits, labels) -> Tensor:
    """What each pixel's cross entropy was multiplied by, from the gradient alone."""
    counts = labels != IGNORE
    own = torch.where(counts, labels, 0)
    unweighted = logits.detach().softmax(1) - F.one_hot(own, 3).movedim(-1, 1)
    unweighted = unweighted / counts.sum((1, 2)).reshape(-1, 1, 1, 1)
    gradient = gradient_of(loss, logits)
    weights = (gradient * unweighted).sum(1) / unweighted.square().sum(1)
    torch.testing.assert_close(gradient, weights[:, None] * unweighted, rtol=1e-4, atol=1e-6)
    return weights


def test_the_value_is_the_share_of_wrong_pixels_and_the_gradient_that_of_the_weighted_loss(logits, labels):
    weights = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(1)) + 0.1
    loss = weighted(logits, labels, None, weights)
    assert loss.tolist() == [0.5, 0.5]
    counts = labels != IGNORE
    torch.testing.assert_close(weights_seen(loss, logits, labels)[counts], weights[counts])
    assert not gradient_of(weighted(logits, labels, None, weights), logits)[
        ~counts[:, None].expand(-1, 3, -1, -1)
    ].any()


def test_towards_targets_the_value_is_the_share_that_reached_them_and_the_gradient_turns(logits, labels):
    weights = torch.full((2, 4, 4), 0.3)
    loss = weighted(logits, (labels + 1) % 3, labels, weights)
    assert loss.tolist() == [0.5, 0.5]
    away = gradient_of(weighted(logits, labels, None, weights), logits)
    torch.testing.assert_close(gradient_of(loss, logits), -away)


def test_without_pixels_that_count_there_is_neither_value_nor_gradient(logits):
    loss = cospgd_loss(logits, torch.full((2, 4, 4), IGNORE), None)
    assert not loss.any()
    assert not gradient_of(loss, logits).any()


@pytest.mark.parametrize("targeted", [False, True])
def test_segpgd_weighs_pixels_by_the_step_of_their_own_example(logits, labels, targeted):
    pace = Pace(Steps({}), num_examples=5, num_steps=8, device=torch.device("cpu"))
    pace.taken[:] = torch.tensor([7, 0, 6, 1, 2])
    loss = SegPGDLoss(pace)
    assert isinstance(loss, LossByExample)
    given = ((labels + 1) % 3, labels) if targeted else (labels, None)
    seen = weights_seen(loss.of(torch.tensor([2, 1]))(logits, *given), logits, labels)
    seen = -seen if targeted else seen
    late = torch.tensor([6 / 16, 0.0])
    for example in range(2):
        like_the_label = [seen[example, :2, 1:], 1 - late[example], late[example]]
        unlike_it = [seen[example, 2:, 1:], late[example], 1 - late[example]]
        for found, untargeted_weight, targeted_weight in (like_the_label, unlike_it):
            wanted = targeted_weight if targeted else untargeted_weight
            torch.testing.assert_close(found, wanted.expand(2, 3), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("targeted", [False, True])
def test_cospgd_weighs_pixels_by_the_cosine_of_probabilities_and_label(logits, labels, targeted):
    given = ((labels + 1) % 3, labels) if targeted else (labels, None)
    seen = weights_seen(cospgd_loss(logits, *given), logits, labels)
    counts = labels != IGNORE
    one_hot = F.one_hot(torch.where(counts, labels, 0), 3).movedim(-1, 1).float()
    cosine = F.cosine_similarity(logits.detach().softmax(1), one_hot, dim=1)
    wanted = cosine - 1 if targeted else cosine
    torch.testing.assert_close(seen[counts], wanted[counts], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sync_every", [1, 3])
def test_every_example_goes_at_its_own_pace_through_shared_slots_and_restarts(sync_every):
    """Examples that are fooled after 0, 1, 2, ... steps of at most 3 pass through two slots."""
    fooled_after = torch.tensor([2, 0, 9, 1, 9])
    pace = Pace(lambda latents, _, __: {"x": latents["x"] + 1}, 5, 3, torch.device("cpu"))
    seen: dict[int, list[float]] = {row: [] for row in range(5)}

    def objective(latents, rows):
        age = latents["x"].detach().squeeze(1)
        for row, steps, share in zip(rows.tolist(), age.tolist(), pace.progress(rows).tolist(), strict=True):
            if steps < 3 and steps < fooled_after[row] and steps / 3 not in seen[row]:
                seen[row].append(share)
            if steps < 3 and steps <= fooled_after[row] and sync_every == 1:
                assert share == pytest.approx(steps / 3)
        return latents["x"].squeeze(1), age >= fooled_after[rows]

    for _ in range(2):
        for row in seen:
            seen[row] = []
        ascend(objective, {"x": torch.zeros(5, 1)}, pace, 3, width=2, sync_every=sync_every)
        assert seen[2] == pytest.approx([0, 1 / 3, 2 / 3])
        assert seen[4] == pytest.approx([0, 1 / 3, 2 / 3])
        assert not pace.taken.any()


class Trap(nn.Module):
    """Two halves that the mean brightness moves in opposite ways. The upper one is hopelessly wrong and the steeper the brighter; the
    lower one is nearly wrong and turns when it gets darker. So the mean loss leads the wrong way."""

    def forward(self, images: Tensor) -> Tensor:
        brightness = images.mean((1, 2, 3)) - 0.5
        upper, lower = 8 + 40 * brightness, -1 - 40 * brightness
        half = images.shape[2] // 2
        lead = torch.stack([upper] * half + [lower] * half, dim=1)[:, :, None].expand(-1, -1, images.shape[3])
        return torch.stack([torch.zeros_like(lead), lead], dim=1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_is_wrong_already_leads_pgd_into_a_trap_but_not_its_rivals(norm):
    images, labels = torch.full((3, 3, 8, 8), 0.5), torch.zeros(3, 8, 8, dtype=torch.long)
    settings = {
        "norm": norm,
        "eps": 0.1 * (1 if norm == "linf" else 192**0.5),
        "steps": 4,
        "random_start": False,
    }
    trapped = PGD(**settings).run(TWO, Trap(), images, labels)
    assert TWO.score(trapped.predictions, labels).tolist() == [0.5] * 3
    for attack in (SegPGD(**settings), CosPGD(**settings)):
        outcome = attack.run(TWO, Trap(), images, labels)
        assert outcome.success.all()
        assert TWO.score(outcome.predictions, labels).tolist() == [0] * 3
        assert (outcome.iterations < 4).all()


@pytest.mark.parametrize("attack", [SegPGD, CosPGD])
def test_the_iterate_with_the_most_wrong_pixels_is_kept(attack):
    """Steps that overshoot: only the first lands where half of the pixels are wrong."""

    class Window(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            x = images[:, 0]
            lead = torch.where(torch.arange(x.shape[1])[:, None] % 2 == 0, 0.04 - (x - 0.55).abs(), x - 2)
            return torch.stack([torch.zeros_like(lead), 50 * lead], dim=1)

    images, labels = torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, 4, 4, dtype=torch.long)
    settings = {"eps": 0.5, "step_size": 0.05, "random_start": False, "stop_when_fooled": False}
    for steps in (1, 7):
        outcome = attack(steps=steps, **settings).run(TWO, Window(), images, labels)
        assert TWO.score(outcome.predictions, labels).tolist() == [0.5] * 2


@pytest.mark.parametrize("stop_when_fooled", [False, True])
@pytest.mark.parametrize(("pixels", "rival"), [("alike", PGD), ("segpgd", SegPGD), ("cospgd", CosPGD)])
def test_on_latents_that_are_pixels_it_is_the_attack_on_pixels(pixels, rival, stop_when_fooled):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 3, 3, padding=1)).eval()
    images = 0.3 + 0.4 * torch.rand(5, 3, 6, 6)
    labels = model(images).argmax(1)
    labels[:, :, 0], labels[:, 0] = IGNORE, 0
    compute = Compute(width=2)
    on_pixels = rival(
        eps=0.1, steps=4, step_size=0.04, random_start=False, stop_when_fooled=stop_when_fooled
    ).run(THREE, model, images, labels, compute=compute)
    on_latents = LatentAttack(
        sites=("pixels",), pixels=pixels, unit="absolute", step_size={"pixels": 0.04}, eps={"pixels": 0.1}, max_steps=4,
        stop_when_fooled=stop_when_fooled,
    ).run(THREE, model, PixelSpace((3, 6, 6)), {"pixels": images}, labels, compute=compute)  # fmt: skip
    assert torch.equal(on_latents.images, on_pixels.images)
    assert torch.equal(on_latents.iterations, on_pixels.iterations)
    assert THREE.score(on_latents.predictions, labels).max() < THREE.score(labels, labels).min()


def test_the_pixels_of_a_classifier_cannot_be_weighted():
    task, images = ClassificationTask(CLASSES), torch.rand(2, 3, 4, 4)
    attack = LatentAttack(sites=("pixels",), pixels="cospgd", step_size={"pixels": 0.1})
    with pytest.raises(
        ValueError, match="pixels: cospgd is for segmentation, not for classification; on offer: alike"
    ):
        attack.run(
            task, nn.Flatten(), PixelSpace((3, 4, 4)), {"pixels": images}, torch.zeros(2, dtype=torch.long)
        )


class ByColour(nn.Sequential):
    """Red, green or blue, whatever is strongest."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 3, 1, bias=False))
        with torch.no_grad():
            self[0].weight.copy_(10 * torch.eye(3).reshape(3, 3, 1, 1))


@pytest.fixture
def coloured() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (4, 1, 4, 4), generator=generator).float()
    labels = F.interpolate(labels, size=16, mode="nearest")[:, 0].long()
    images = 0.45 + 0.1 * F.one_hot(labels, 3).movedim(-1, 1)
    labels[:, 0] = IGNORE
    return images, labels


@pytest.mark.parametrize(
    "attack",
    [
        SegPGD(eps=0.1),
        CosPGD(eps=0.1),
        PGD(eps=0.1),
        PGD(eps=0.1, goal="least_likely"),
        PGD(eps=4.0, norm="l2", steps=40),
        Recolor(bound=0.5, smoothness=0, steps=40),
    ],
)
def test_a_segmenter_by_colour_is_fooled_where_colours_may_change(attack, coloured):
    images, labels = coloured
    outcome = attack.run(THREE, ByColour(), images, labels, compute=Compute(width=3))
    assert outcome.attacked.all()
    assert outcome.success.all()
    assert THREE.score(outcome.predictions, labels).max() <= THREE.fooled_at
    assert outcome.predictions.shape == labels.shape


@pytest.mark.parametrize("attack", [SegPGD, CosPGD, PGD])
def test_targets_are_reached_pixel_by_pixel(attack, coloured):
    images, labels = coloured
    targets = torch.where(labels == IGNORE, IGNORE, (labels + 1) % 3)
    settings = {"eps": 0.1, "goal": "targeted", "stop_when_fooled": False}
    attacked = attack(**settings)(ByColour(), images, labels, targets, task=THREE)
    assert THREE.score(ByColour()(attacked).argmax(1), targets).min() > 0.95


def test_bending_moves_waves_off_their_labels_which_stay_where_they_are():
    wave = (torch.arange(32) * (2 * math.pi / 8)).sin()
    images = (0.5 + 0.4 * wave).expand(2, 3, 32, 32).contiguous()
    labels = (images[:, 0] > 0.5).long()

    class Bright(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            lead = 10 * (x.mean(1) - 0.5)
            return torch.stack([-lead, lead], dim=1)

    clean = TWO.score(TWO.predict(Bright()(images)), labels)
    outcome = Spatial(bound=4, unit="px", smoothness=0, steps=40).run(TWO, Bright(), images, labels)
    assert clean.min() > 0.9
    assert TWO.score(outcome.predictions, labels).max() < 0.2
    assert outcome.distances["linf_flow"].max() <= 4
