"""Any detector of torchvision that finds boxes alone, by its name."""

from abc import ABC, abstractmethod
from difflib import get_close_matches
from functools import cached_property
from inspect import Parameter, signature
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import field_validator
from torch import Tensor, nn
from torchvision import models
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.models.detection.ssd import SSD
from torchvision.ops import FrozenBatchNorm2d, box_iou

from gat.latents import PerExample
from tasks.boxes import clip
from tasks.detection import Candidates, Objects, countable
from tasks.models.detectors import px_per_px, repeatable, try_out_detector
from tasks.models.errors import one_line
from tasks.models.normalized import Normalized
from tasks.models.settings import LibraryConfig, check_known
from tasks.models.weights import load_weights

Target = dict[str, Tensor]  # "boxes" [m, 4] in px of the network, "labels" [m] from 1; 0 is the background

_STRIDE_PX = 32  # torchvision pads images to multiples of it, except for SSD, which wants one size
_FIXED_SIZES_PX = {"ssd300_vgg16": 300, "ssdlite320_mobilenet_v3_large": 320}


class TorchvisionDetectionConfig(LibraryConfig, frozen=True, extra="forbid"):
    """A network of torchvision.models.detection: RetinaNet, FCOS, SSD or Faster R-CNN.

    Its losses are torchvision's, of every image by itself. Images are not resized on the way in, unless asked.

    Attributes:
        name: Registered name.
        arch: torchvision's name, for example 'retinanet_resnet50_fpn', 'fcos_resnet50_fpn', 'fasterrcnn_resnet50_fpn' or
            'ssdlite320_mobilenet_v3_large'.
        pretrained: Start from torchvision's weights for COCO (91 classes, the background first), with new last layers for other
            numbers of classes; downloaded on first use.
        resize: Side in pixels the network gets its images in, whatever their size. None leaves them alone, but for SSD, which reads
            one size only.
        options: Further arguments of the network's constructor, for example {box_batch_size_per_image: 64}.
        mean, std: None is what torchvision gives for these weights.
    """

    task: ClassVar[str] = "detection"
    name: Literal["torchvision_detection"] = "torchvision_detection"
    options: dict[str, Any] = {}

    @field_validator("arch")
    @classmethod
    def _arch_is_known(cls, arch: str) -> str:
        known = [
            name
            for name in models.list_models(module=models.detection)
            if not name.startswith(("maskrcnn", "keypointrcnn"))  # these want more than boxes
        ]
        check_known(arch, known, "torchvision has no detector of boxes alone")
        return arch

    def build(self, num_classes: int, image_size: int) -> "TorchvisionDetector":
        """The network, shown one image.

        Raises:
            ValueError: If there is no class, the constructor refuses the options, the pretrained weights cannot be had, `weights` do
                not fit, or the network cannot read images of this size.
        """
        if num_classes < 1:
            raise ValueError(f"a detector needs at least 1 class, got {num_classes}")
        # Unless told otherwise, the constructors download weights of the backbone.
        arguments: dict[str, Any] = {
            "weights": None,
            "weights_backbone": None,
            "num_classes": num_classes + 1,
        }
        try:
            network = models.get_model(self.arch, **(arguments | self.options))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"torchvision {self.arch} cannot be built with {self.options} ({one_line(error)})"
            ) from error
        self._check_options(network)
        if self.pretrained:
            self._load_pretrained(network)
        transform = network.transform
        model = TorchvisionDetector(
            network,
            self.mean or transform.image_mean,
            self.std or transform.image_std,
            self.resize or _FIXED_SIZES_PX.get(self.arch),
        )
        if self.weights is not None:
            load_weights(model, self.weights, num_classes + 1)
        try_out_detector(model, num_classes, image_size, f"torchvision {self.arch}")
        return model

    def _check_options(self, network: nn.Module) -> None:
        """torchvision drops what it does not know without a word."""
        known = [
            name
            for function in (models.get_model_builder(self.arch), type(network))
            for name, parameter in signature(function).parameters.items()
            if parameter.kind is not Parameter.VAR_KEYWORD
        ]
        for name in self.options:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"on offer: {', '.join(dict.fromkeys(known))}"
                raise ValueError(f"torchvision {self.arch} takes no options {name}; {hint}")

    def _load_pretrained(self, network: nn.Module) -> None:
        """Loads all but the layers that depend on the number of classes. Batch norms that torchvision freezes stay frozen."""
        trained = models.get_model_weights(self.arch).DEFAULT
        try:
            teacher = models.get_model(self.arch, weights=trained, progress=False)
        except Exception as error:  # OSError without a network, RuntimeError for a damaged download
            raise ValueError(
                f"pretrained weights of torchvision {self.arch} could not be had from {trained.url} ({one_line(error)}); without a "
                "network, set weights: to a file you have, or pretrained: false"
            ) from error
        for name, part in teacher.named_modules():
            if isinstance(part, FrozenBatchNorm2d):
                network.set_submodule(name, part)
        own, theirs = network.state_dict(), teacher.state_dict()
        alien = own.keys() ^ theirs.keys()
        if alien:
            raise ValueError(
                f"pretrained weights of torchvision {self.arch} do not fit the options {self.options}: they change {min(alien)}; leave "
                "out those that change its layers"
            )
        network.load_state_dict(
            {name: value for name, value in theirs.items() if value.shape == own[name].shape}, strict=False
        )


class TorchvisionDetector(Normalized):
    """A detector of torchvision that returns what `DetectionTask` reads, in train and in eval mode alike.

    torchvision's own forward method gives losses in train mode only, and as means over the batch. This one stops before both losses
    and detections: asking for either afterwards changes no mode, no batch statistic and no random state.

    Args:
        network: Of one of torchvision's classes RetinaNet, FCOS, SSD, FasterRCNN.
        mean, std, resize: See `Normalized`.
    """

    def forward(self, images: Float[Tensor, "b c h w"]) -> "OneStage | TwoStage":
        """Raises ValueError if the number of channels is not that of `mean`."""
        network: Any = self.network
        inputs = self.prepare(images)
        height, width = inputs.shape[2:]
        scale = px_per_px(images, inputs)
        if not isinstance(network, SSD):
            inputs = F.pad(inputs, (0, -width % _STRIDE_PX, 0, -height % _STRIDE_PX))
        features = network.backbone(inputs)
        if isinstance(features, Tensor):
            features = {"0": features}
        levels = list(features.values())
        one = ImageList(inputs[:1], [(height, width)])  # anchors are the same for all
        with torch.autocast(images.device.type, enabled=False):
            maker = network.rpn if isinstance(network, FasterRCNN) else network
            [anchors] = maker.anchor_generator(one, [level.float() for level in levels])
        if isinstance(network, FasterRCNN):
            scores, deltas = network.rpn.head(levels)
            sizes = tuple(level[0].numel() for level in scores)
            flat_scores, flat_deltas = concat_box_prediction_layers(scores, deltas)
            objectness, sides = flat_scores.reshape(len(images), -1), flat_deltas.reshape(len(images), -1, 4)
            return TwoStage(
                dict(features), objectness, sides, anchors, sizes, (height, width), scale, network
            )
        head = network.head(levels)
        cells = [level.shape[2] * level.shape[3] for level in levels]
        sizes = tuple(n * (len(anchors) // sum(cells)) for n in cells)
        return _ONE_STAGE[type(network)](head, anchors, sizes, (height, width), scale, network)


class _OneStage(NamedTuple):
    """What the head says at all anchors, as a tuple, so that Accelerate and DDP see the tensors.

    Attributes:
        head: torchvision's names and tensors, [b, n, ...].
        anchors: [n, 4], in px of the network.
        sizes: How many of them every level has.
        image_size: Height and width in px of the network, without padding.
        scale: [4], px of the image in one px of the network, for x0 y0 x1 y1.
        network: What computes losses.
    """

    head: dict[str, Tensor]
    anchors: Tensor
    sizes: tuple[int, ...]
    image_size: tuple[int, int]
    scale: Tensor
    network: Any


class OneStage(_OneStage, ABC):
    """Outputs of RetinaNet, FCOS or SSD; `tasks.detection.DetectorOutputs`."""

    def losses(self, labels: Objects) -> PerExample:
        """The sum of torchvision's losses of every image. Crowds are background, as torchvision knows none."""
        head = {name: value.float() for name, value in self.head.items()}
        return torch.stack(
            [
                torch.stack(
                    [*self._losses({name: value[i : i + 1] for name, value in head.items()}, target).values()]
                ).sum()
                for i, target in enumerate(_targets(labels, self.scale))
            ]
        )

    def candidates(self) -> Candidates:
        boxes, scores = self._answers()
        height, width = self.image_size
        boxes = clip(boxes, boxes.new_tensor([width, height]))
        return Candidates(boxes * self.scale, scores[..., 1:])

    @abstractmethod
    def _losses(self, head: dict[str, Tensor], target: Target) -> dict[str, Tensor]:
        """Of one image."""

    @abstractmethod
    def _answers(self) -> tuple[Float[Tensor, "b n 4"], Float[Tensor, "b n k"]]:
        """Boxes in px of the network, scores of the background and the classes."""

    def _decoded(self) -> Float[Tensor, "b n 4"]:
        """Boxes of the heads that say shifts and scales of anchors."""
        codes = self.head["bbox_regression"].float()
        boxes: Tensor = self.network.box_coder.decode_single(
            codes.reshape(-1, 4), self.anchors.repeat(len(codes), 1)
        )
        return boxes.reshape(codes.shape)


class RetinaNetOutputs(OneStage):
    """Outputs of RetinaNet."""

    def _losses(self, head: dict[str, Tensor], target: Target) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.network.compute_loss([target], head, [self.anchors])
        return losses

    def _answers(self) -> tuple[Float[Tensor, "b n 4"], Float[Tensor, "b n k"]]:
        return self._decoded(), self.head["cls_logits"].float().sigmoid()


class FCOSOutputs(OneStage):
    """Outputs of torchvision's FCOS."""

    def _losses(self, head: dict[str, Tensor], target: Target) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.network.compute_loss(
            [target], head, [self.anchors], list(self.sizes)
        )
        return losses

    def _answers(self) -> tuple[Float[Tensor, "b n 4"], Float[Tensor, "b n k"]]:
        codes = self.head["bbox_regression"].float()
        boxes = self.network.head.box_coder.decode(codes, self.anchors.expand(len(codes), -1, -1))
        scores = self.head["cls_logits"].float().sigmoid() * self.head["bbox_ctrness"].float().sigmoid()
        return boxes, scores.sqrt()


class SSDOutputs(OneStage):
    """Outputs of SSD."""

    def _losses(self, head: dict[str, Tensor], target: Target) -> dict[str, Tensor]:
        if len(target["boxes"]):
            matched = self.network.proposal_matcher(box_iou(target["boxes"], self.anchors))
        else:
            matched = torch.full([len(self.anchors)], -1, device=self.anchors.device)
        losses: dict[str, Tensor] = self.network.compute_loss([target], head, [self.anchors], [matched])
        return losses

    def _answers(self) -> tuple[Float[Tensor, "b n 4"], Float[Tensor, "b n k"]]:
        return self._decoded(), self.head["cls_logits"].float().softmax(2)


_ONE_STAGE: dict[type[nn.Module], type[OneStage]] = {
    RetinaNet: RetinaNetOutputs,
    FCOS: FCOSOutputs,
    SSD: SSDOutputs,
}


class _TwoStage(NamedTuple):
    """What the first stage says, and what the second needs, as a tuple, so that Accelerate and DDP see the tensors.

    Attributes:
        features: Of the backbone, by torchvision's names.
        objectness, deltas: [b, n] and [b, n, 4], at all anchors.
        anchors: [n, 4], in px of the network.
        sizes: How many of them every level has.
        image_size: Height and width in px of the network, without padding.
        scale: [4], px of the image in one px of the network, for x0 y0 x1 y1.
        network: What computes the rest.
    """

    features: dict[str, Tensor]
    objectness: Tensor
    deltas: Tensor
    anchors: Tensor
    sizes: tuple[int, ...]
    image_size: tuple[int, int]
    scale: Tensor
    network: Any


class TwoStage(_TwoStage):
    """Outputs of Faster R-CNN; `tasks.detection.DetectorOutputs`. The second stage looks where the labels (in losses) or the first
    stage (in candidates) say, so it runs when asked."""

    @cached_property
    def proposals(self) -> list[Tensor]:
        """Of the first stage, in px of the network; as many as the network's mode allows, and no gradient, as usual."""
        boxes = self.network.rpn.box_coder.decode(
            self.deltas.detach().float().reshape(-1, 4), [self.anchors] * len(self.deltas)
        )
        proposals: list[Tensor]
        proposals, _ = self.network.rpn.filter_proposals(
            boxes.reshape(self.deltas.shape),
            self.objectness.float(),
            [self.image_size] * len(self.deltas),
            list(self.sizes),
        )
        return proposals

    def losses(self, labels: Objects) -> PerExample:
        """The sum of torchvision's four losses of every image. Crowds are background, as torchvision knows none.

        They are computed on a random sample of places: a new one each time in train mode, but always the same in eval mode, so that an
        attack climbs one hill and leaves no trace in the global random state.
        """
        rpn, heads = self.network.rpn, self.network.roi_heads
        targets = _targets(labels, self.scale)
        losses, chosen, classes, shifts = [], [], [], []
        with repeatable(labels.device, on=not self.network.training) as again:
            for i, target in enumerate(targets):
                again()
                on, matched = rpn.assign_targets_to_anchors([self.anchors], [target])
                wanted = rpn.box_coder.encode(matched, [self.anchors])
                losses.append(
                    sum(rpn.compute_loss(self.objectness[i].float(), self.deltas[i].float(), on, wanted))
                )
                again()
                some, _, label, shift = heads.select_training_samples([self.proposals[i]], [target])
                chosen += some
                classes += label
                shifts += shift
        logits, boxes = self._second_stage(chosen)
        counts = [len(some) for some in chosen]
        for i, (k, box) in enumerate(zip(logits.split(counts), boxes.split(counts), strict=True)):
            losses[i] = losses[i] + sum(fastrcnn_loss(k, box, [classes[i]], [shifts[i]]))
        return torch.stack(losses)

    def candidates(self) -> Candidates:
        logits, codes = self._second_stage(self.proposals)
        decoded = self.network.roi_heads.box_coder.decode(codes, self.proposals)[
            :, 1:
        ]  # not the background's
        scores = logits.softmax(1)[:, 1:]
        counts = [len(some) for some in self.proposals]
        pad = nn.utils.rnn.pad_sequence
        height, width = self.image_size
        decoded = clip(decoded, decoded.new_tensor([width, height]))
        return Candidates(
            pad(list(decoded.split(counts)), batch_first=True) * self.scale,
            pad(list(scores.split(counts)), batch_first=True),
        )

    def _second_stage(self, boxes: list[Tensor]) -> tuple[Float[Tensor, "r k"], Float[Tensor, "r k4"]]:
        heads = self.network.roi_heads
        features = {name: value.float() for name, value in self.features.items()}
        pooled = heads.box_roi_pool(features, boxes, [self.image_size] * len(boxes))
        logits, codes = heads.box_predictor(heads.box_head(pooled))
        return logits.float(), codes.float()


def _targets(labels: Objects, scale: Float[Tensor, " 4"]) -> list[Target]:
    """What torchvision wants to know of every image."""
    counts = countable(labels)
    return [
        {"boxes": rows[real, :4] / scale, "labels": rows[real, 4].long() + 1}
        for rows, real in zip(labels, counts, strict=True)
    ]
