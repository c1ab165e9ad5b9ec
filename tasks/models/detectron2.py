"""Detectors of detectron2, an optional library that is not on PyPI."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from gat.latents import PerExample
from tasks.boxes import clip
from tasks.detection import Candidates, Objects, countable
from tasks.models.detectors import px_per_px, repeatable, try_out_detector
from tasks.models.errors import one_line
from tasks.models.normalized import Normalized
from tasks.models.settings import NetworkConfig
from tasks.models.weights import load_weights

INSTALL = (
    "pip install -U setuptools wheel ninja && "
    "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'"
)
_UNUSED_HEADS = ("roi_heads.mask_", "roi_heads.keypoint_")  # boxes are all that is asked for


class Detectron2Config(NetworkConfig, frozen=True, extra="forbid"):
    """A network of detectron2: any that is a GeneralizedRCNN (Faster, Cascade R-CNN) or a DenseDetector (RetinaNet). It needs the
    package detectron2.

    Attributes:
        name: Registered name.
        config: One of detectron2's YAML files; nothing in it is executed. None is detectron2's default, a Faster R-CNN.
        options: Settings by their dotted names, over those of the file, for example {MODEL.META_ARCHITECTURE: RetinaNet}. The
            number of classes is the task's, heads for masks and keypoints are left out, and weights come from `weights`.
        resize: Side in pixels the network gets its images in, whatever their size. None leaves them alone.
        mean, std: In units of RGB images in [0, 1], as everywhere here. None is what the configuration says.
    """

    task: ClassVar[str] = "detection"
    name: Literal["detectron2"] = "detectron2"
    config: Path | None = None
    options: dict[str, Any] = {}
    resize: PositiveInt | None = None

    def build(self, num_classes: int, image_size: int) -> "Detectron2Detector":
        """The network, shown one image.

        Raises:
            ValueError: If detectron2 is not installed (says how to), there is no class, its settings are refused, `weights` do not fit,
                or the network cannot read images of this size.
        """
        if num_classes < 1:
            raise ValueError(f"a detector needs at least 1 class, got {num_classes}")
        require()
        from detectron2.config import get_cfg
        from detectron2.modeling import build_model

        config = get_cfg()
        try:
            if self.config is not None:
                config.merge_from_file(str(self.config), allow_unsafe=False)
            config.merge_from_list([word for pair in self.options.items() for word in pair])
            config.MODEL.ROI_HEADS.NUM_CLASSES = config.MODEL.RETINANET.NUM_CLASSES = num_classes
            config.MODEL.MASK_ON = config.MODEL.KEYPOINT_ON = False
            config.MODEL.DEVICE = "cpu"
            network = build_model(config)
        except Exception as error:  # of many types, assertions among them
            source = "its defaults" if self.config is None else str(self.config)
            raise ValueError(
                f"detectron2 builds no network from {source} with options {self.options} ({one_line(error)})"
            ) from error
        model = Detectron2Detector(
            network, num_classes, config.INPUT.FORMAT, self.mean, self.std, self.resize
        )
        if self.weights is not None:
            load_weights(model, self.weights, num_classes, _UNUSED_HEADS)
        try_out_detector(model, num_classes, image_size, "detectron2's network")
        return model


def require() -> None:
    """Raises ValueError with the command to install detectron2, if it or a package that it needs is missing."""
    try:
        import detectron2.modeling  # noqa: F401
    except ImportError as error:
        broken = "" if find_spec("detectron2") is None else f" in working order ({one_line(error)})"
        raise ValueError(
            f"models named detectron2 need the package detectron2{broken}, which is not on PyPI and is built against the PyTorch you "
            f"have: {INSTALL}"
        ) from error


class Detectron2Detector(Normalized):
    """A network of detectron2 that returns what `DetectionTask` reads, in train and in eval mode alike.

    It takes RGB in [0, 1] and gives the network what it was made for: BGR or RGB, 0 to 255 less its mean, padded.

    Args:
        network: A GeneralizedRCNN or DenseDetector for boxes.
        num_classes: Of the network.
        channels: 'BGR' or 'RGB', the order in which `network` wants them: its configuration's INPUT.FORMAT.
        mean, std: In units of RGB images in [0, 1]; None takes those of `network`.
        resize: See `Normalized`.

    Raises:
        ValueError: For another kind of network or order of channels.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        channels: str = "BGR",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        resize: int | None = None,
    ) -> None:
        from detectron2.modeling import GeneralizedRCNN
        from detectron2.modeling.meta_arch.dense_detector import DenseDetector

        if channels not in ("BGR", "RGB"):
            raise ValueError(f"detectron2's INPUT.FORMAT must be BGR or RGB, got {channels!r}")
        two_stage = isinstance(network, GeneralizedRCNN) and type(network).forward is GeneralizedRCNN.forward
        if not two_stage and not isinstance(network, DenseDetector):
            raise ValueError(
                f"detectron2's {type(network).__name__} does not find boxes alone; wanted a GeneralizedRCNN, such as Faster R-CNN, or a "
                "DenseDetector, such as RetinaNet"
            )
        assert isinstance(network.pixel_mean, Tensor) and isinstance(network.pixel_std, Tensor)
        own_mean, own_std = (
            (value.flatten().cpu() / 255).tolist() for value in (network.pixel_mean, network.pixel_std)
        )
        step = -1 if channels == "BGR" else 1
        super().__init__(network, mean or own_mean[::step], std or own_std[::step], resize)
        self.num_classes, self.is_bgr, self.is_two_stage = num_classes, channels == "BGR", two_stage

    def forward(self, images: Float[Tensor, "b c h w"]) -> "Detectron2Outputs":
        """Raises ValueError if there are not three channels."""
        network: Any = self.network
        inputs = self.prepare(images)
        scale = px_per_px(images, inputs)
        height, width = inputs.shape[2:]
        if self.is_bgr:
            inputs = inputs.flip(1)
        # Not ImageList.from_tensors: that of 2021's release cannot be differentiated with respect to images.
        rules = getattr(network.backbone, "padding_constraints", {})
        side, step = (
            rules.get("square_size", 0),
            max(1, rules.get("size_divisibility", network.backbone.size_divisibility)),
        )
        full = [-(-max(side, length) // step) * step for length in (height, width)]
        inputs = F.pad(inputs, (0, full[1] - width, 0, full[0] - height))
        features = network.backbone(inputs)
        if self.is_two_stage:
            return Detectron2Outputs(
                dict(features), [], inputs.detach(), (height, width), scale, self.num_classes, network
            )
        chosen = {name: features[name] for name in network.head_in_features}
        said = [list(level) for level in network.head(list(chosen.values()))]
        return Detectron2Outputs(
            chosen, said, inputs.detach(), (height, width), scale, self.num_classes, network
        )


class Detectron2Outputs(NamedTuple):
    """What the backbone says, and the heads of a dense detector, as a tuple, so that Accelerate and DDP see the tensors;
    `tasks.detection.DetectorOutputs`. The heads of a two-stage detector look where labels or proposals say, so they run when asked.

    Attributes:
        features: Of the backbone, by detectron2's names.
        said: By the dense head, per kind and level; nothing of a two-stage detector.
        inputs: What the network got, padded; without gradient.
        image_size: Height and width in px of the network, without padding.
        scale: [4], px of the image in one px of the network, for x0 y0 x1 y1.
        num_classes: Of the network.
        network: What computes the rest.
    """

    features: dict[str, Tensor]
    said: list[list[Tensor]]
    inputs: Tensor
    image_size: tuple[int, int]
    scale: Tensor
    num_classes: int
    network: Any

    def losses(self, labels: Objects) -> PerExample:
        """The sum of detectron2's losses of every image by itself. Crowds are background, as detectron2 drops them too.

        Whatever the network's mode, this leaves no trace in eval mode: batch norms stay as they are, the random sample of a two-stage
        detector is the same every time, and the running normaliser of a dense one is restored. In train mode the latter moves once, by the
        mean over the images.
        """
        from detectron2.structures import Boxes, Instances
        from detectron2.utils.events import EventStorage

        network, trains, real = self.network, self.network.training, countable(labels)
        before, moved = _normalizer(network), []
        losses = []
        try:
            # detectron2 computes losses in train mode only, and logs numbers on the way.
            with (
                _mode(network, True),
                EventStorage(0),
                repeatable(labels.device, on=not trains) as again,
            ):
                for i, rows in enumerate(labels):
                    truth = Instances(self.image_size)
                    truth.gt_boxes = Boxes(rows[real[i], :4] / self.scale)
                    truth.gt_classes = rows[real[i], 4].long()
                    _set_normalizer(network, before)
                    again()
                    parts = self._losses_of_one(i, truth)
                    losses.append(torch.stack([value.float() for value in parts.values()]).sum())
                    moved.append(_normalizer(network))
        finally:
            steps = [value for value in moved if value is not None]
            _set_normalizer(network, sum(steps) / len(steps) if trains and steps else before)
        return torch.stack(losses)

    def candidates(self) -> Candidates:
        """detectron2's own detections, after its suppression and threshold (MODEL.ROI_HEADS.SCORE_THRESH_TEST and the like)."""
        with torch.no_grad(), _mode(self.network, False):
            found = self._detections()
        pad = nn.utils.rnn.pad_sequence
        boxes = pad([each.pred_boxes.tensor.float() for each in found], batch_first=True)
        scores = pad(
            [F.one_hot(each.pred_classes, self.num_classes) * each.scores.float()[:, None] for each in found],
            batch_first=True,
        )
        height, width = self.image_size
        return Candidates(clip(boxes, boxes.new_tensor([width, height])) * self.scale, scores)

    def _losses_of_one(self, i: int, truth: Any) -> dict[str, Tensor]:
        features = {name: value[i : i + 1].float() for name, value in self.features.items()}
        images = self._images(self.inputs[i : i + 1])
        network = self.network
        if self.said:
            said = [[level[i : i + 1].float() for level in kind] for kind in self.said]
            parts: dict[str, Tensor] = network.forward_training(
                images, list(features.values()), said, [truth]
            )
            return parts
        proposals, first = network.proposal_generator(images, features, [truth])
        _, second = network.roi_heads(images, features, proposals, [truth])
        return first | second

    def _detections(self) -> list[Any]:
        features = {name: value.float() for name, value in self.features.items()}
        images, network = self._images(self.inputs), self.network
        if self.said:
            # Copies, as detectron2 applies the sigmoid in place.
            said = [[level.float().clone() for level in kind] for kind in self.said]
            found: list[Any] = network.forward_inference(images, list(features.values()), said)
            return found
        proposals, _ = network.proposal_generator(images, features, None)
        found, _ = network.roi_heads(images, features, proposals, None)
        return found

    def _images(self, inputs: Tensor) -> Any:
        from detectron2.structures import ImageList

        return ImageList(inputs, [self.image_size] * len(inputs))


@contextmanager
def _mode(network: nn.Module, training: bool) -> Iterator[None]:
    """Every part but batch norms and dropout in train or eval mode; as found, afterwards."""
    modes = [
        (part, part.training) for part in network.modules() if not isinstance(part, _BatchNorm | _DropoutNd)
    ]
    try:
        for part, _ in modes:
            part.training = training
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _normalizer(network: nn.Module) -> float | None:
    """The running number of objects by which dense detectors divide their losses: an attribute that every loss moves."""
    return vars(network).get("loss_normalizer")


def _set_normalizer(network: nn.Module, value: float | None) -> None:
    vars(network).pop("loss_normalizer", None)
    if value is not None:
        vars(network)["loss_normalizer"] = value
