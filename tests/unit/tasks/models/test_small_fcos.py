"""Our own detector: who answers for what, its losses, and that it learns, is attacked, and is left alone."""

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from accelerate.utils.operations import convert_outputs_to_fp32
from pydantic import TypeAdapter, ValidationError
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from gat.attacks import PGD
from gat.attacks.losses import contrast_of
from tasks.detection import DetectionTask, DetectorOutputs, countable
from tasks.models import MODELS, ModelConfig
from tasks.models.small_fcos import FCOSOutputs, SmallFCOSConfig, assign, make_grid

PADDING = [0.0, 0, 0, 0, -1, 0]
SIZES, STRIDE_PX = ((8, 8), (4, 4)), 4  # of a 32 px image
COLORS = ("red", "green", "blue")
TINY = SmallFCOSConfig(widths=(8, 16, 32), blocks=(0, 1, 1), levels=2, head_width=16, head_depth=1)


def grid():
    return make_grid(SIZES, STRIDE_PX, torch.device("cpu"))


def random_labels(b=5, m=4, k=3, side=32, seed=0):
    """Boxes, some rows padding, some crowds; the last image has nothing."""
    generator = torch.Generator().manual_seed(seed)
    size = 6 + torch.rand(b, m, 2, generator=generator) * (side - 8)
    corner = torch.rand(b, m, 2, generator=generator) * (side - size)
    k = torch.randint(-1, k, (b, m, 1), generator=generator).float()
    crowd = (torch.rand(b, m, 1, generator=generator) < 0.25).float()
    labels = torch.cat([corner, corner + size, k, crowd], dim=2)
    labels[-1, :, 4] = -1
    labels[labels[..., 4] < 0] = torch.tensor(PADDING)
    return labels


def random_outputs(b=5, k=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    n = len(grid())
    sides = torch.rand(b, n, 4, generator=generator) * 20
    logits, quality = torch.randn(b, n, k, generator=generator), torch.randn(b, n, generator=generator)
    return FCOSOutputs(logits, sides, quality, grid())


def owner_slowly(x, y, stride, least, most, rows):
    """Row that answers for a location, or None, by the words of the paper."""
    best = None
    for j, (x0, y0, x1, y1, k, crowd) in enumerate(rows):
        if k < 0 or crowd or not (x0 < x < x1 and y0 < y < y1):
            continue
        if max(abs(x - (x0 + x1) / 2), abs(y - (y0 + y1) / 2)) >= 1.5 * stride:
            continue
        if not least < max(x - x0, y - y0, x1 - x, y1 - y) <= most:
            continue
        area = (x1 - x0) * (y1 - y0)
        if best is None or area < best[1]:
            best = j, area
    return None if best is None else best[0]


def centerness_slowly(x, y, row):
    x0, y0, x1, y1 = row[:4]
    a, b, c, d = x - x0, x1 - x, y - y0, y1 - y
    return math.sqrt(min(a, b) / max(a, b) * min(c, d) / max(c, d))


def test_the_divergence_is_that_of_the_answers_it_is_made_of():
    outputs, anchors = random_outputs(), torch.tensor([1, 0, 2, 0, 4])
    apart = outputs.divergence(anchors)
    assert (apart[[2, 4]] == 0).all() and (apart[[0, 1, 3]] > 0).all()

    def kl(p, q):
        first, second = (torch.distributions.Bernoulli(logits=x.double()) for x in (p, q))
        return torch.distributions.kl_divergence(first, second)

    boxes, at, b = outputs.boxes().double(), 0, 3
    seen = outputs.logits[at].sigmoid().amax(1).double()
    expected = kl(outputs.logits[at], outputs.logits[b]).sum()
    expected += (seen * generalized_box_iou_loss(boxes[at], boxes[b], eps=0)).sum()
    expected += (seen * kl(outputs.quality[at], outputs.quality[b])).sum()
    torch.testing.assert_close(apart[b].double(), expected / seen.sum(), rtol=1e-5, atol=0)


def test_following_the_divergence_brings_answers_together():
    outputs, anchors = random_outputs(b=2), torch.tensor([0, 0])
    parts = [part.clone().requires_grad_() for part in outputs[:3]]
    optimizer = torch.optim.Adam(parts, lr=0.05)
    before = {}
    for _ in range(200):
        apart = FCOSOutputs(*parts, outputs.grid).divergence(anchors).sum()
        optimizer.zero_grad()
        apart.backward()
        before = before or {i: part.grad.abs().flatten(1).sum(1) for i, part in enumerate(parts)}
        optimizer.step()
    assert all((moved > 0).all() for moved in before.values())  # both images, all three parts
    assert apart < 0.02 * outputs.divergence(anchors).sum()


def test_what_sees_nothing_is_compared_without_dividing_by_nothing():
    outputs = random_outputs(b=2)._replace(logits=torch.full((2, len(grid()), 3), -60.0))
    assert (outputs.divergence(torch.tensor([1, 0])) >= 0).all()
    assert outputs.divergence(torch.tensor([1, 0])).isfinite().all()


def test_locations_lie_in_the_middle_of_their_cells_and_levels_share_the_sizes():
    rows = grid()
    assert rows.shape == (8 * 8 + 4 * 4, 5)
    assert rows[0].tolist() == [2, 2, 4, 0, 16]
    assert rows[1].tolist() == [6, 2, 4, 0, 16]  # x runs first
    assert rows[8].tolist() == [2, 6, 4, 0, 16]
    assert rows[64].tolist() == [4, 4, 8, 16, math.inf]
    wide = make_grid(((2, 3),), 8, torch.device("cpu"))
    assert wide[:, 0].max() == 20 and wide[:, 1].max() == 12


def test_every_location_answers_for_whom_the_paper_says():
    labels = random_labels(b=12)
    found = assign(grid(), labels)
    crowded = 0
    for i, rows in enumerate(labels.tolist()):
        for j, (x, y, stride, least, most) in enumerate(grid().tolist()):
            owner = owner_slowly(x, y, stride, least, most, rows)
            assert bool(found.positive[i, j]) is (owner is not None)
            on_crowd = any(r[5] and r[0] < x < r[2] and r[1] < y < r[3] for r in rows)
            assert bool(found.ignored[i, j]) is (on_crowd and owner is None)
            crowded += on_crowd and owner is None
            if owner is None:
                assert found.centerness[i, j] == 0
            else:
                assert found.owner[i, j] == owner
                assert float(found.centerness[i, j]) == pytest.approx(
                    centerness_slowly(x, y, rows[owner]), abs=1e-5
                )
    assert found.positive.sum() > 50 and crowded > 20


def test_the_loss_is_that_of_a_loop_over_images_with_the_losses_of_torchvision():
    outputs, labels = random_outputs(), random_labels()
    corners = grid()[:, :2]
    boxes = torch.cat([corners - outputs.sides[..., :2], corners + outputs.sides[..., 2:]], dim=2)
    wanted = []
    for i in range(len(labels)):
        to = assign(grid(), labels[i : i + 1])
        on, own = to.positive[0], labels[i][to.owner[0]]
        onehot = F.one_hot(own[:, 4].clamp(min=0).long(), 3).float() * on[:, None]
        focal = sigmoid_focal_loss(outputs.logits[i], onehot, reduction="none")[~to.ignored[0]].sum()
        weight = to.centerness[0][on]
        apart = generalized_box_iou_loss(boxes[i][on], own[on, :4]) * weight
        quality = F.binary_cross_entropy_with_logits(outputs.quality[i][on], weight, reduction="sum")
        count = max(1, int(on.sum()))
        regression = apart.sum() / weight.sum() if on.any() else 0.0
        wanted.append(focal / count + regression + quality / count)
    torch.testing.assert_close(outputs.losses(labels), torch.stack(wanted))


def test_the_loss_of_an_image_is_its_own_and_so_is_its_gradient():
    outputs, labels = random_outputs(), random_labels()
    alone = [
        FCOSOutputs(*(part[i : i + 1] for part in outputs[:3]), grid()).losses(labels[i : i + 1])
        for i in range(5)
    ]
    torch.testing.assert_close(outputs.losses(labels), torch.cat(alone))
    leaves = [part.requires_grad_() for part in outputs[:3]]
    for gradient in torch.autograd.grad(outputs.losses(labels)[1], leaves):
        assert gradient[1].abs().max() > 0
        assert gradient[[0, 2, 3, 4]].abs().max() == 0


def test_what_a_location_on_a_crowd_says_does_not_count():
    outputs = random_outputs(b=1)
    labels = torch.tensor([[[0.0, 0, 16, 32, 1, 1], [20, 20, 30, 30, 0, 0]]])
    before = outputs.losses(labels)
    here = assign(grid(), labels).ignored
    outputs.logits[here] += 5
    assert torch.equal(outputs.losses(labels), before)
    outputs.logits[~here] += 5
    assert outputs.losses(labels) > before + 1


def test_against_the_label_only_classes_where_objects_are_count():
    """Targets are the same boxes of other classes: descending their loss alone would improve boxes and centre-ness."""
    task, labels = DetectionTask(("hat", "shoe", "bag")), random_labels()
    targets = task.random_targets(labels, torch.rand(5, generator=torch.Generator().manual_seed(1)))
    parts = [part.requires_grad_() for part in random_outputs()[:3]]
    outputs = FCOSOutputs(*parts, grid())
    logits, sides, quality = torch.autograd.grad(contrast_of(task)(outputs, labels, targets).sum(), parts)
    assert sides.abs().max() < 1e-6 and quality.abs().max() < 1e-6
    positive = assign(grid(), labels).positive
    assert logits[~positive].abs().max() < 1e-6
    owner = assign(grid(), labels).owner
    for row, at in positive.nonzero().tolist():
        own, other = (int(some[row, owner[row, at], 4]) for some in (labels, targets))
        assert logits[row, at, own] < 0 < logits[row, at, other]
    alone = torch.autograd.grad(-task.loss(FCOSOutputs(*parts, grid()), targets).sum(), parts)
    assert alone[1].abs().max() > 1e-3 and alone[2].abs().max() > 1e-3


def test_an_image_without_objects_asks_for_silence_and_its_gradients_are_finite():
    outputs, labels = random_outputs(), random_labels()
    assert not countable(labels)[-1].any()
    leaves = [part.requires_grad_() for part in outputs[:3]]
    loss = outputs.losses(labels)[-1]
    gradients = torch.autograd.grad(loss, leaves)
    assert loss > 0 and all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[0][-1] > 0).all()  # every class down, everywhere
    assert gradients[1].abs().max() == gradients[2].abs().max() == 0


def perfect(labels, k=3):
    """Outputs that say what the labels say."""
    to = assign(grid(), labels)
    own = labels.gather(1, to.owner[..., None].expand(-1, -1, 6))
    at = grid()[:, :2]
    sides = torch.where(to.positive[..., None], torch.cat([at - own[..., :2], own[..., 2:4] - at], 2), 1.0)
    logits = torch.full((*to.positive.shape, k), -20.0)
    logits[to.positive] = F.one_hot(own[..., 4].clamp(min=0).long(), k)[to.positive] * 40.0 - 20
    return FCOSOutputs(logits, sides, torch.where(to.positive, to.centerness, 0.5).logit(1e-4), grid())


def test_outputs_that_say_what_the_labels_say_are_right_in_every_respect():
    task = DetectionTask(COLORS)
    # Apart, so that no object hides the centre of another.
    labels = torch.tensor([[[0.0, 0, 14, 14, 0, 0], [18, 2, 30, 12, 2, 0]], [[1, 2, 31, 30, 1, 0], PADDING]])
    outputs = perfect(labels)
    task.check_outputs(outputs)
    assert not task.wrong(outputs, labels).any()
    predictions = task.predict(outputs)
    assert task.score(predictions, labels).tolist() == [1, 1]
    assert task.metrics(task.evidence(predictions, labels)) == pytest.approx({"ap": 1, "ap50": 1, "ap75": 1})
    # All that is left of the loss is the entropy of centre-ness.
    to = assign(grid(), labels)
    entropy = F.binary_cross_entropy(to.centerness, to.centerness, reduction="none") * to.positive
    torch.testing.assert_close(outputs.losses(labels), entropy.sum(1) / to.positive.sum(1), atol=1e-4, rtol=0)


def test_boxes_end_at_the_borders_of_the_image():
    outputs = random_outputs()
    boxes = outputs.candidates().boxes
    assert outputs.boxes().min() < 0 and outputs.boxes().max() > 32
    assert boxes.min() == 0 and boxes.max() == 32


# The network


@pytest.mark.parametrize("settings", [{}, {"levels": 2}, {"norm": "group", "activation": "silu"}])
def test_answers_are_those_of_a_detector_in_train_and_eval_mode(settings):
    config = TypeAdapter(ModelConfig).validate_python({"name": "small_fcos", **settings})
    assert TypeAdapter(ModelConfig).validate_json(config.model_dump_json()) == config
    assert MODELS["small_fcos"].task == "detection"
    model, task = config.build(3, 64), DetectionTask(COLORS)
    for mode in (True, False):
        outputs = model.train(mode)(torch.rand(2, 3, 64, 64))
        assert isinstance(outputs, DetectorOutputs)
        task.check_outputs(outputs)
    assert outputs.logits.shape[1] == (336 if config.levels == 3 else 80)
    assert outputs.candidates().scores.max() < 0.2  # nothing is there, it thinks, before training
    model(torch.rand(1, 3, 32, 96))  # other sizes too


def test_default_size_is_as_documented():
    assert sum(p.numel() for p in SmallFCOSConfig().build(10, 64).parameters()) // 1000 == 275


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValidationError, match="one number per stage each"):
        SmallFCOSConfig(widths=(8, 16))
    with pytest.raises(ValidationError, match="every stage but the first needs a block"):
        SmallFCOSConfig(blocks=(1, 1, 0, 1))
    with pytest.raises(ValidationError, match="levels must be at most 3"):
        SmallFCOSConfig(levels=4)
    with pytest.raises(ValueError, match="at least 1 class, got 0"):
        SmallFCOSConfig().build(0, 64)
    with pytest.raises(ValueError, match="multiple of 16 px, got 72"):
        SmallFCOSConfig().build(3, 72)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
def test_accelerate_gives_outputs_of_full_precision_that_still_know_their_losses(precision):
    model, labels = TINY.build(3, 32).eval(), random_labels()
    images = torch.rand(5, 3, 32, 32)
    exact = model(images).losses(labels)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        rough = model(images)
    converted = convert_outputs_to_fp32(lambda: rough)()
    assert isinstance(converted, FCOSOutputs) and converted.logits.dtype == torch.float32
    for outputs in (rough, converted):
        losses = outputs.losses(labels)
        assert losses.dtype == torch.float32
        torch.testing.assert_close(losses, exact, rtol=0.05, atol=0.02)


# Learning, and being attacked


def squares(n, seed):
    """Bright coloured squares on grey noise, one or two per image of 32 px, apart from each other."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 3, 32, 32, generator=generator) * 0.3 + 0.2
    labels = torch.tensor(PADDING).repeat(n, 2, 1)
    for i in range(n):
        for j in range(1 + int(torch.randint(2, (), generator=generator))):
            side = int(torch.randint(8, 15, (), generator=generator))
            x, y = (torch.rand(2, generator=generator) * torch.tensor([16 - side, 32 - side])).int().tolist()
            x, k = x + 16 * j, int(torch.randint(3, (), generator=generator))
            images[i, k, y : y + side, x : x + side] += 0.5
            labels[i, j] = torch.tensor([x, y, x + side, y + side, k, 0])
    return images, labels


@pytest.fixture(scope="module")
def trained():
    """Task, model after 120 steps, and images that it has not seen."""
    torch.manual_seed(0)
    model, task = TINY.build(3, 32), DetectionTask(COLORS)
    images, labels = squares(192, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, 120)
    for step in range(120):
        rows = torch.arange(16) + 16 * step
        loss = task.loss(model(images[rows % 192]), labels[rows % 192]).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return task, model.eval(), *squares(64, seed=1)


@torch.no_grad()
def precision_of(task, model, images, labels):
    return task.metrics(task.evidence(task.predict(model(images)), labels))["ap50"]


def test_it_learns_to_find_squares(trained):
    task, model, images, labels = trained
    assert precision_of(task, model, images, labels) > 0.8
    assert task.wrong(model(images), labels).float().mean() < 0.1


def test_an_attack_blinds_it_and_leaves_no_trace(trained):
    task, model, images, labels = trained
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    attack = PGD(eps=0.2, steps=10, stop_when_fooled=True)
    outcome = attack.run(task, model, images[:32], labels[:32])
    assert model.training and all(part.training for part in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    assert outcome.attacked.float().mean() > 0.9
    assert outcome.success.float().mean() > 0.5
    clean, attacked = (
        task.score(found, labels[:32]).mean() for found in (outcome.clean_predictions, outcome.predictions)
    )
    assert clean > 0.9 and attacked < 0.5
    assert precision_of(task, model, outcome.images, labels[:32]) < 0.5


def test_an_example_is_attacked_alike_in_any_batch(trained):
    task, model, images, labels = trained
    attack = PGD(eps=0.05, steps=2, random_start=False, stop_when_fooled=False)
    together = attack.run(task, model, images[:3], labels[:3])
    alone = attack.run(task, model, images[1:2], labels[1:2])
    torch.testing.assert_close(together.images[1:2], alone.images)


TWO_PROCESSES = """
import torch
from accelerate import Accelerator
from gat.processes import leave_together
from tasks.models.small_fcos import SmallFCOSConfig
from tasks.models.torchvision_detection import TorchvisionDetectionConfig

accelerator = Accelerator(cpu=True, mixed_precision="bf16")
assert accelerator.num_processes == 2
labels = torch.tensor([[[4.0, 4, 40, 50, 1, 0], [0, 0, 0, 0, -1, 0]], [[20, 8, 60, 30, 0, 0], [0, 0, 20, 20, 2, 0]]])
for config in (
    SmallFCOSConfig(),
    TorchvisionDetectionConfig(arch="fasterrcnn_mobilenet_v3_large_320_fpn"),
    TorchvisionDetectionConfig(arch="ssdlite320_mobilenet_v3_large"),
):
    torch.manual_seed(0)
    model = config.build(3, 64)
    learner = accelerator.prepare(torch.nn.Sequential(model))
    torch.manual_seed(accelerator.process_index)  # other images on each
    accelerator.backward(learner(torch.rand(2, 3, 64, 64)).losses(labels).mean())
    silent = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not silent, silent
    mine = torch.stack([parameter.grad.double().norm() for parameter in model.parameters()])
    both = accelerator.gather(mine[None])
    assert torch.equal(both[0], both[1]), config
    assert mine.max() > 0
leave_together(accelerator)
"""


@pytest.mark.slow
def test_gradients_of_two_processes_agree_though_losses_are_computed_after_the_forward_pass(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(script),
    ]
    environment = {"PYTHONPATH": ".", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launcher, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
