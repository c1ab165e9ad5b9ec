"""Detectors of torchvision and detectron2: the losses of their libraries, image by image, and no trace left behind."""

import os
import sys
import warnings

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision import models

from tasks.detection import DetectionTask
from tasks.models import ModelConfig
from tasks.models.detectors import repeatable
from tasks.models.detectron2 import Detectron2Config, Detectron2Detector
from tasks.models.torchvision_detection import TorchvisionDetectionConfig

CLASSES = ("boot", "bag", "coat")
TASK = DetectionTask(CLASSES)
SIDE = 64
PADDING = [0.0, 0, 0, 0, -1, 0]
LABELS = torch.tensor(
    [
        [[5.0, 6, 50, 40, 2, 0], [20, 20, 60, 62, 0, 0], PADDING],
        [[30, 2, 60, 30, 1, 0], PADDING, [0, 0, 20, 20, 1, 1]],  # the last is a crowd
        [PADDING, PADDING, PADDING],
    ]
)
# The smallest of every kind.
ARCHS = {
    "retinanet_resnet50_fpn": {},
    "fcos_resnet50_fpn": {},
    "fasterrcnn_mobilenet_v3_large_320_fpn": {"box_batch_size_per_image": 32},
    "ssdlite320_mobilenet_v3_large": {},
}


def lively(network, variance=0.3):
    """Statistics of batch norms and last layers that let an untrained network see something."""
    generator = torch.Generator().manual_seed(1)
    for part in network.modules():
        if isinstance(part, _BatchNorm):
            part.running_mean.copy_(torch.randn(part.running_mean.shape, generator=generator) * 0.1)
            part.running_var.fill_(variance)
    return network


def as_found(model):
    """Everything that asking a model must not change."""
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "modes": [part.training for part in model.modules()],
        "random": torch.get_rng_state(),
        "normalizer": getattr(model.network, "loss_normalizer", None),
        "gradients": [parameter.grad for parameter in model.parameters()],
    }


def assert_untouched(model, before):
    after = as_found(model)
    for name, value in before.pop("weights").items():
        assert torch.equal(after["weights"][name], value), name
    assert torch.equal(after["random"], before.pop("random"))
    assert all(before[key] == after[key] for key in before)


def norms_off(network):
    """Train mode, but for batch norms: how these libraries are made to give losses."""
    network.train()
    for part in network.modules():
        if isinstance(part, _BatchNorm | nn.Dropout):
            part.eval()


@pytest.fixture(scope="module", params=ARCHS)
def detector(request):
    """Of torchvision, in eval mode, and images."""
    torch.manual_seed(0)
    config = {"name": "torchvision_detection", "arch": request.param, "options": ARCHS[request.param]}
    config = TypeAdapter(ModelConfig).validate_python(config)
    assert TypeAdapter(ModelConfig).validate_json(config.model_dump_json()) == config
    model = lively(config.build(3, SIDE)).eval()
    return model, torch.rand(3, 3, SIDE, SIDE)


def rows_of(labels):
    rows = labels[(labels[:, 4] >= 0) & (labels[:, 5] == 0)]
    return {"boxes": rows[:, :4], "labels": rows[:, 4].long() + 1}


def check_it_is_left_alone(model, images):
    """Losses and verdicts, with gradients, in train and in eval mode."""
    before = as_found(model)
    leaf = images.clone().requires_grad_()
    outputs = model(leaf)
    TASK.check_outputs(outputs)
    losses = TASK.loss(outputs, LABELS)
    gradients = [torch.autograd.grad(losses[i], leaf, retain_graph=True)[0] for i in range(2)]
    for i, gradient in enumerate(gradients):
        assert gradient.isfinite().all() and gradient[i].abs().max() > 0
        assert gradient[[j for j in range(3) if j != i]].abs().max() == 0
    assert torch.equal(TASK.loss(model(leaf), LABELS), losses)  # no fresh random sample
    TASK.wrong(outputs, LABELS)
    TASK.predict(outputs)
    assert_untouched(model, before)


def test_an_asked_torchvision_detector_is_left_alone(detector):
    check_it_is_left_alone(*detector)


def test_losses_are_those_of_torchvision_image_by_image(detector):
    model, images = detector
    network = model.network
    with torch.no_grad():
        losses = model(images).losses(LABELS)
        alone = torch.cat([model(images[i : i + 1]).losses(LABELS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(losses, alone, rtol=1e-4, atol=1e-5)

    if "ssd" not in type(network).__name__.lower():
        network.transform.min_size, network.transform.max_size = (SIDE,), SIDE
    network.transform.image_mean, network.transform.image_std = (
        value.flatten().tolist() for value in (model.mean, model.std)
    )
    wanted = []
    try:
        norms_off(network)
        if hasattr(network, "rpn"):  # as many proposals as in eval mode
            network.rpn._pre_nms_top_n["training"] = network.rpn._pre_nms_top_n["testing"]
            network.rpn._post_nms_top_n["training"] = network.rpn._post_nms_top_n["testing"]
            kept = network.roi_heads.select_training_samples

            def reseeded(*arguments):
                torch.manual_seed(0)
                return kept(*arguments)

            network.roi_heads.select_training_samples = reseeded
        for i in range(3):
            torch.manual_seed(0)
            with torch.no_grad():
                wanted.append(sum(network([images[i]], [rows_of(LABELS[i])]).values()))
    finally:
        vars(getattr(network, "roi_heads", network)).pop("select_training_samples", None)
        network.eval()
    torch.testing.assert_close(losses, torch.stack(wanted), rtol=1e-4, atol=1e-5)


def test_the_best_detection_of_torchvision_is_among_the_candidates(detector):
    model, images = detector
    with torch.no_grad():
        boxes, scores = model(images).candidates()
        wanted = model.network(list(images))
    assert (boxes >= 0).all() and (boxes <= SIDE).all()
    seen = 0
    for i, found in enumerate(wanted):
        for box, score, label in zip(
            found["boxes"][:5], found["scores"][:5], found["labels"][:5], strict=True
        ):
            if label == 0:  # one-stage detectors may claim the class that nothing has
                continue
            own = boxes[i] if boxes.ndim == 3 else boxes[i, :, label - 1]
            near = ((own - box).abs().amax(1) < 0.01) & ((scores[i, :, label - 1] - score).abs() < 1e-4)
            assert near.any()
            seen += 1
    if (
        "retinanet" not in type(model.network).__name__.lower()
        and "fcos" not in type(model.network).__name__.lower()
    ):
        assert seen > 0  # those have a prior of 0.01 and stay silent untrained


def test_in_train_mode_every_parameter_learns(detector):
    model, images = detector
    model.train()
    try:
        model(images).losses(LABELS).mean().backward()
        silent = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        assert not silent
    finally:
        model.zero_grad(set_to_none=True)
        lively(model).eval()


def test_boxes_of_resized_images_are_in_pixels_of_the_images():
    torch.manual_seed(0)
    model = TorchvisionDetectionConfig(arch="ssdlite320_mobilenet_v3_large").build(3, SIDE).eval()
    assert model.resize == 320
    image = torch.rand(1, 3, 320, 320)
    small = nn.functional.interpolate(image, (SIDE, SIDE), mode="bilinear", antialias=True)
    big = nn.functional.interpolate(small, (320, 320), mode="bilinear", antialias=True)
    scaled = LABELS[:1].clone()
    scaled[..., :4] *= 320 / SIDE
    with torch.no_grad():
        here, there = model(small), model(big)
    torch.testing.assert_close(
        here.candidates().boxes * 320 / SIDE, there.candidates().boxes, rtol=1e-3, atol=0.05
    )
    torch.testing.assert_close(here.losses(LABELS[:1]), there.losses(scaled), rtol=1e-3, atol=1e-3)


def test_images_whose_sides_are_no_multiple_of_the_stride_are_padded():
    torch.manual_seed(0)
    model = lively(TorchvisionDetectionConfig(arch="retinanet_resnet50_fpn").build(2, 48)).eval()
    outputs = model(torch.rand(1, 3, 40, 70))
    assert outputs.candidates().boxes[..., [0, 2]].max() <= 70
    assert outputs.candidates().boxes[..., [1, 3]].max() <= 40
    assert len(outputs.anchors) == 9 * (8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1)  # of 64 x 96 px


def test_pretrained_weights_get_new_last_layers_and_keep_frozen_norms(monkeypatch):
    arch = "retinanet_resnet50_fpn"
    torch.manual_seed(1)
    make = models.get_model
    teacher = make(arch, weights=None, weights_backbone=None)
    frozen = models.detection.retinanet.misc_nn_ops.FrozenBatchNorm2d(64)
    teacher.backbone.body.bn1 = frozen
    monkeypatch.setattr(
        models,
        "get_model",
        lambda name, weights=None, **rest: teacher if weights else make(name, weights=None, **rest),
    )
    model = TorchvisionDetectionConfig(arch=arch, pretrained=True).build(3, SIDE)
    assert model.network.backbone.body.bn1 is frozen
    head, theirs = model.network.head.classification_head, teacher.head.classification_head
    assert torch.equal(head.conv[0][0].weight, theirs.conv[0][0].weight)
    assert head.cls_logits.weight.shape[0] == 9 * 4 and theirs.cls_logits.weight.shape[0] == 9 * 91

    def no_network(name, weights=None, **rest):
        if weights:
            raise OSError("no route to host")
        return make(name, weights=None, **rest)

    monkeypatch.setattr(models, "get_model", no_network)
    with pytest.raises(ValueError, match=r"could not be had from https.*no route to host.*pretrained: false"):
        TorchvisionDetectionConfig(arch=arch, pretrained=True).build(3, SIDE)


def test_torchvision_settings_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(
        ValidationError, match=r"no detector of boxes alone 'maskrcnn_resnet50_fpn'; did you mean"
    ):
        TorchvisionDetectionConfig(arch="maskrcnn_resnet50_fpn")
    with pytest.raises(ValidationError, match="set one of them"):
        TorchvisionDetectionConfig(arch="fcos_resnet50_fpn", pretrained=True, weights=tmp_path)
    with pytest.raises(ValueError, match="at least 1 class"):
        TorchvisionDetectionConfig(arch="fcos_resnet50_fpn").build(0, SIDE)
    with pytest.raises(
        ValueError, match=r"takes no options box_detection_per_img; did you mean box_detections_per_img"
    ):
        TorchvisionDetectionConfig(
            arch="fasterrcnn_mobilenet_v3_large_320_fpn", options={"box_detection_per_img": 1}
        ).build(2, SIDE)


def test_random_numbers_repeat_and_the_state_is_restored():
    state = torch.get_rng_state()
    with repeatable(torch.device("cpu"), on=True) as again:
        again()
        first = torch.rand(3)
        again()
        assert torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), state)
    with repeatable(torch.device("cpu"), on=False) as again:
        again()
        torch.rand(3)
    assert not torch.equal(torch.get_rng_state(), state)


# detectron2

FPN = {
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.FPN.OUT_CHANNELS": 32,
}
FASTER_RCNN = FPN | {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 32,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 1e-4,
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 1,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 16,
    "MODEL.ROI_BOX_HEAD.NORM": "BN",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 64,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
}
RETINANET = FPN | {
    "MODEL.META_ARCHITECTURE": "RetinaNet",
    "MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.RETINANET.NUM_CONVS": 1,
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.005,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [128]],
    "INPUT.FORMAT": "RGB",
    "MODEL.PIXEL_MEAN": [120.0, 110.0, 100.0],
    "MODEL.PIXEL_STD": [60.0, 58.0, 56.0],
}


@pytest.fixture(scope="module")
def detectron2():
    """Where it is not installed, its Python part, which scripts/environment.sh leaves beside the packages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, os.path.join(sys.prefix, "detectron2")])
        with warnings.catch_warnings():  # its own, about TorchScript and the like
            warnings.simplefilter("ignore")
            library = pytest.importorskip("detectron2", reason="neither detectron2 is here nor a copy of it")
            import detectron2.data.transforms
            import detectron2.modeling  # noqa: F401
        yield library


@pytest.fixture(params=["two stages", "one stage"])
def foreign(request, detectron2):
    """A detector of detectron2, in eval mode, and images."""
    torch.manual_seed(0)
    options = FASTER_RCNN if request.param == "two stages" else RETINANET
    model = Detectron2Config(options=options).build(3, SIDE)
    return lively(model, variance=1.0).eval(), torch.rand(3, 3, SIDE, SIDE)


def inputs_of(model, images, labels=None):
    """What detectron2 wants of its users."""
    from detectron2.structures import Boxes, Instances

    batch = []
    for i, image in enumerate(images):
        image = image.flip(0) if model.is_bgr else image
        batch.append({"image": image * 255, "height": SIDE, "width": SIDE})
        if labels is not None:
            rows = rows_of(labels[i])
            truth = Instances((SIDE, SIDE))
            truth.gt_boxes, truth.gt_classes = Boxes(rows["boxes"]), rows["labels"] - 1
            batch[-1]["instances"] = truth
    return batch


@pytest.mark.filterwarnings("ignore")
def test_an_asked_detectron2_detector_is_left_alone(foreign):
    model, images = foreign
    check_it_is_left_alone(model, images)
    model.network.loss_normalizer = 12.5
    check_it_is_left_alone(model, images)
    assert model.network.loss_normalizer == 12.5


@pytest.mark.filterwarnings("ignore")
def test_losses_and_detections_are_those_of_detectron2(foreign):
    from detectron2.utils.events import EventStorage

    model, images = foreign
    network = model.network
    network.loss_normalizer = 7.0
    with torch.no_grad():
        # One by one, as rounding may change which of many equal proposals an untrained network takes first.
        outputs = [model(images[i : i + 1]) for i in range(3)]
        losses = torch.cat([part.losses(LABELS[i : i + 1]) for i, part in enumerate(outputs)])
        wanted = []
        norms_off(network)
        for i in range(3):
            network.loss_normalizer = 7.0
            torch.manual_seed(0)
            with EventStorage(0):
                parts = network(inputs_of(model, images[i : i + 1], LABELS[i : i + 1]))
            wanted.append(sum(parts.values()))
        network.eval()
        torch.testing.assert_close(losses, torch.stack(wanted), rtol=1e-4, atol=1e-5)
        for i in range(3):
            found = network(inputs_of(model, images[i : i + 1]))[0]["instances"]
            boxes, scores = outputs[i].candidates()
            assert 0 < len(found) <= len(scores[0])
            best = scores[0].amax(1).sort(descending=True, stable=True)
            n = len(found)  # without boxes that lie outside the image
            torch.testing.assert_close(best.values[:1], found.scores[:1], atol=1e-5, rtol=0)
            gaps = (boxes[0][:, None] - found.pred_boxes.tensor).abs().amax(2).amin(0)
            assert gaps.max() < 0.01 and len(gaps) == n


@pytest.mark.filterwarnings("ignore")
def test_in_train_mode_detectron2_learns_and_moves_its_normaliser_once(foreign):
    model, images = foreign
    model.train()
    state = torch.get_rng_state()
    model(images).losses(LABELS).mean().backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    if model.is_two_stage:
        assert not torch.equal(torch.get_rng_state(), state)  # a fresh sample each time
    else:
        assert 90 < model.network.loss_normalizer < 100  # one step from 100 towards the objects of an image


@pytest.mark.filterwarnings("ignore")
def test_channels_and_ranges_are_what_detectron2_was_told(detectron2):
    model = Detectron2Config(options=FASTER_RCNN).build(3, SIDE)
    assert model.is_bgr
    wanted = torch.tensor([123.675, 116.280, 103.530]) / 255  # RGB, of its default for ImageNet
    torch.testing.assert_close(model.mean.flatten(), wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(model.std.flatten(), torch.full((3,), 1 / 255))
    model = Detectron2Config(options=RETINANET, mean=(0.1, 0.2, 0.3)).build(3, SIDE)
    assert not model.is_bgr
    torch.testing.assert_close(model.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(model.std.flatten(), torch.tensor([60.0, 58, 56]) / 255)


@pytest.mark.filterwarnings("ignore")
def test_a_configuration_file_of_detectron2_is_read_and_nothing_in_it_executed(detectron2, tmp_path):
    good, evil = tmp_path / "good.yaml", tmp_path / "evil.yaml"
    good.write_text("MODEL: {META_ARCHITECTURE: RetinaNet}\n")
    evil.write_text(f"MODEL: !!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    options = {name: value for name, value in RETINANET.items() if name != "MODEL.META_ARCHITECTURE"}
    assert not Detectron2Config(config=good, options=options).build(2, SIDE).is_two_stage
    with pytest.raises(ValueError, match=r"no network from .*evil.yaml"):
        Detectron2Config(config=evil, options=options).build(2, SIDE)
    assert not (tmp_path / "made").exists()
    with pytest.raises(ValueError, match=r"MODEL.RESNETS.DEPHT"):
        Detectron2Config(options={"MODEL.RESNETS.DEPHT": 18}).build(2, SIDE)
    with pytest.raises(ValueError, match="does not find boxes alone"):
        Detectron2Detector(nn.Linear(1, 1), 3)
    with pytest.raises(ValueError, match=r"must be BGR or RGB, got 'YUV-BT\.601'"):
        Detectron2Config(options=RETINANET | {"INPUT.FORMAT": "YUV-BT.601"}).build(2, SIDE)


def test_without_detectron2_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)
    monkeypatch.delitem(sys.modules, "detectron2.modeling", raising=False)
    config = TypeAdapter(ModelConfig).validate_python({"name": "detectron2"})
    with pytest.raises(
        ValueError, match=r"need the package detectron2.*pip install --no-build-isolation 'git\+https"
    ):
        config.build(3, SIDE)
