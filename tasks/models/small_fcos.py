"""A small anchor-free detector for images of 64 px, shaped for a CPU."""

import math
from functools import lru_cache
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from gat.latents import PerExample, Rows
from tasks.boxes import clip, giou
from tasks.detection import Candidates, Objects, countable
from tasks.models.normalized import Normalized
from tasks.models.settings import NetworkConfig, check_smallest_side
from tasks.models.small_resnet import Activation, Norm, ResidualBlock, Width, make_activation, make_norm

CENTER_RADIUS = 1.5  # in strides: how far from its centre an object is looked for (FCOS's own repository)
REACH = (
    4.0  # in strides: the largest distance to a side that a level answers for; the last one takes the rest
)
PRIOR = 0.01  # of an object at a location, before training (Lin et al. 2017, "Focal Loss", Sec. 4.1)


class SmallFCOSConfig(NetworkConfig, frozen=True, extra="forbid"):
    """FCOS (Tian et al. 2019), scaled down: every location of every level says what is there, and how far its sides are.

    Attributes:
        name: Registered name.
        widths: Channels of the stages at strides 2, 4, 8, 16, ..., multiples of 8.
        blocks: Residual blocks of two 3x3 convolutions per stage; the stage at stride 2 is one convolution if 0.
        levels: How many of the last stages are levels of the pyramid.
        head_width: Channels of the pyramid and of the head, a multiple of 8.
        head_depth: 3x3 convolutions of the head, which all levels share. Its norm is always over groups, as levels differ.
        norm: Of the backbone: 'batch', or 'group' (groups of 8 channels) for a network whose answer to an image does not depend
            on the training batch.
        activation: 'relu', or 'silu', which is smooth.
    """

    task: ClassVar[str] = "detection"
    name: Literal["small_fcos"] = "small_fcos"
    widths: Annotated[tuple[Width, ...], Field(min_length=2)] = (16, 32, 64, 96)
    blocks: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=2)] = (0, 1, 1, 1)
    levels: PositiveInt = 3
    head_width: Width = 48
    head_depth: PositiveInt = 2
    norm: Norm = "batch"
    activation: Activation = "relu"

    @model_validator(mode="after")
    def _stages_agree(self) -> "SmallFCOSConfig":
        if len(self.widths) != len(self.blocks):
            raise ValueError(
                f"widths and blocks need one number per stage each, got {self.widths} and {self.blocks}"
            )
        if self.levels >= len(self.widths):
            raise ValueError(
                f"levels must be at most {len(self.widths) - 1}: all stages but the first, got {self.levels}"
            )
        if min(self.blocks[1:]) < 1:
            raise ValueError(f"every stage but the first needs a block, got {self.blocks}")
        return self

    def build(self, num_classes: int, image_size: int) -> Normalized:
        """A network for square images; it reads others too, if their sides are multiples of its largest stride.

        Raises:
            ValueError: If there is no class, the side of the images is no multiple of the largest stride, or `weights` do not fit.
        """
        if num_classes < 1:
            raise ValueError(f"a detector needs at least 1 class, got {num_classes}")
        stride = 2 ** len(self.widths)
        check_smallest_side(self.name, image_size, stride)
        if image_size % stride:
            raise ValueError(
                f"{self.name} with these settings needs images whose side is a multiple of {stride} px, got {image_size}"
            )
        network = SmallFCOS(
            num_classes,
            self.widths,
            self.blocks,
            self.levels,
            self.head_width,
            self.head_depth,
            self.norm,
            self.activation,
        )
        return self.finish(network, num_classes)


class FCOSOutputs(NamedTuple):
    """Answers at n locations of all levels; `tasks.detection.DetectorOutputs`. A tuple of tensors, so that Accelerate and DDP see
    them.

    Attributes:
        logits: [b, n, k], of every class by itself.
        sides: [b, n, 4], distances to the left, top, right and bottom of the object, in px, positive.
        quality: [b, n], logit of centre-ness: how much the location is in the middle of its object.
        grid: [n, 5], constants of every location: x, y, stride and the least and largest distance it answers for, in px.
    """

    logits: Tensor
    sides: Tensor
    quality: Tensor
    grid: Tensor

    def boxes(self) -> Float[Tensor, "b n 4"]:
        sides, at = self.sides.float(), self.grid[:, :2]
        return torch.cat([at - sides[..., :2], at + sides[..., 2:]], dim=2)

    def candidates(self) -> Candidates:
        """Scores are the geometric mean of probability and centre-ness."""
        scores = (self.logits.float().sigmoid() * self.quality.float().sigmoid()[..., None]).sqrt()
        image = (self.grid[:, :2] + self.grid[:, 2:3] / 2).amax(0)
        return Candidates(clip(self.boxes(), image), scores)

    def losses(self, labels: Objects) -> PerExample:
        """Focal loss of the classes + GIoU loss of the boxes, weighted by centre-ness + cross entropy of centre-ness (Tian et al.
        2019, Sec. 3), each normalised by the image's own locations on objects. Locations on nothing but a crowd do not count.
        """
        assignment = assign(self.grid, labels)
        positive, owner = assignment.positive, assignment.owner
        own = labels.gather(1, owner[..., None].expand(-1, -1, 6))
        # A location on an object asks for one class; all others for none.
        wanted = torch.arange(self.logits.shape[2], device=owner.device) == own[..., 4:5]
        focal = sigmoid_focal_loss(self.logits.float(), (wanted & positive[..., None]).float())
        count = positive.sum(1).clamp(min=1)
        classes = (focal.sum(2) * ~assignment.ignored).sum(1) / count

        weight = assignment.centerness
        apart = 1 - giou(self.boxes(), own[..., :4])
        boxes = (apart * weight).sum(1) / weight.sum(1).clamp(min=1e-3)
        quality = F.binary_cross_entropy_with_logits(self.quality.float(), weight, reduction="none")
        return classes + boxes + (quality * positive).sum(1) / count

    def divergence(self, anchors: Rows) -> PerExample:
        """How far the answer to every image is from that to image `anchors`, in the terms of `losses`: KL of what is there + (1 -
        GIoU) of the boxes + KL of centre-ness, where the last two count as much as the anchor sees something. All are normalised by
        how much it sees, at least one location (ours)."""
        logits, quality = self.logits.float(), self.quality.float()
        classes = _bernoulli_kl(logits[anchors], logits).sum((1, 2))
        seen = logits.detach()[anchors].sigmoid().amax(2)
        boxes = self.boxes()
        apart = 1 - giou(boxes[anchors], boxes) + _bernoulli_kl(quality[anchors], quality)
        return (classes + (seen * apart).sum(1)) / seen.sum(1).clamp(min=1)


def _bernoulli_kl(wanted: Tensor, logits: Tensor) -> Tensor:
    """KL between yes-or-no answers given by their logits; differentiable in both."""
    yes = wanted.sigmoid() * (F.logsigmoid(wanted) - F.logsigmoid(logits))
    return yes + (-wanted).sigmoid() * (F.logsigmoid(-wanted) - F.logsigmoid(-logits))


class Assignment(NamedTuple):
    """Which object every location answers for.

    Attributes:
        positive: [b, n], on an object.
        owner: [b, n], row of the labels; 0 where there is none.
        ignored: [b, n], on a crowd and on no object.
        centerness: [b, n] in [0, 1], of the location in its object; 0 where there is none.
    """

    positive: Tensor
    owner: Tensor
    ignored: Tensor
    centerness: Tensor


@torch.no_grad()
def assign(grid: Float[Tensor, "n 5"], labels: Objects) -> Assignment:
    """The smallest of the objects that contain the location near their centre and whose farthest side its level answers for (Tian
    et al. 2019, Sec. 3.1 and 3.2).

    Args:
        grid: See `FCOSOutputs`.
    """
    x, y, stride, least, most = grid[:, :, None].unbind(1)  # [n, 1] beside [b, 1, m]
    x0, y0, x1, y1, label, crowd = labels[:, None].unbind(3)
    left, top, right, bottom = x - x0, y - y0, x1 - x, y1 - y
    inside = torch.minimum(torch.minimum(left, top), torch.minimum(right, bottom)) > 0
    farthest = torch.maximum(torch.maximum(left, top), torch.maximum(right, bottom))
    # Distances to the centre: half the difference of those to opposite sides.
    off_center = torch.maximum((left - right).abs(), (top - bottom).abs()) / 2
    fits = (
        countable(labels)[:, None]
        & inside
        & (off_center < CENTER_RADIUS * stride)
        & (farthest > least)
        & (farthest <= most)
    )
    area = torch.where(fits, (x1 - x0) * (y1 - y0), float("inf"))
    smallest, owner = area.min(2)
    positive = smallest.isfinite()
    ignored = (inside & (label >= 0) & (crowd == 1)).any(2) & ~positive

    def of_owner(values: Tensor) -> Tensor:
        return values.gather(2, owner[..., None]).squeeze(2)

    left, top, right, bottom = (of_owner(side) for side in (left, top, right, bottom))
    ratio = (torch.minimum(left, right) * torch.minimum(top, bottom)) / (
        torch.maximum(left, right) * torch.maximum(top, bottom)
    )
    return Assignment(positive, owner, ignored, torch.where(positive, ratio.sqrt(), 0))


class SmallFCOS(nn.Module):
    """Residual backbone, pyramid by sums from the top, one head for all levels (ours)."""

    def __init__(
        self,
        num_classes: int,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        levels: int,
        head_width: int,
        head_depth: int,
        norm: Norm = "batch",
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        # A 4x4 kernel with stride 2 sees every pixel equally often.
        self.stem = nn.Conv2d(3, widths[0], 4, 2, padding=1, bias=False)
        stages: list[nn.Module] = []
        width = widths[0]
        for stage, (out_width, num_blocks) in enumerate(zip(widths, blocks, strict=True)):
            body: list[nn.Module] = []
            for i in range(num_blocks):
                body.append(ResidualBlock(width, out_width, stage > 0 and i == 0, norm, activation))
                width = out_width
            stages.append(nn.Sequential(*body))
        self.stages = nn.ModuleList(stages)
        self.finest_stride_px = 2 ** (len(widths) - levels + 1)
        self.lateral = nn.ModuleList(
            nn.Sequential(
                make_norm(norm, channels), make_activation(activation), nn.Conv2d(channels, head_width, 1)
            )
            for channels in widths[-levels:]
        )
        tower: list[nn.Module] = []
        for _ in range(head_depth):
            tower += [
                nn.Conv2d(head_width, head_width, 3, padding=1, bias=False),
                make_norm("group", head_width),
                make_activation(activation),
            ]
        self.tower = nn.Sequential(*tower)
        self.classes = nn.Conv2d(head_width, num_classes, 3, padding=1)
        self.geometry = nn.Conv2d(head_width, 5, 3, padding=1)  # four sides and centre-ness
        for layer, bias in ((self.classes, math.log(PRIOR / (1 - PRIOR))), (self.geometry, 1.0)):
            assert layer.bias is not None
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, bias)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> FCOSOutputs:
        x = self.stem(x)
        stages = []
        for stage in self.stages:
            x = stage(x)
            stages.append(x)
        levels = [lateral(x) for lateral, x in zip(self.lateral, stages[-len(self.lateral) :], strict=True)]
        for i in reversed(range(len(levels) - 1)):
            levels[i] = levels[i] + F.interpolate(levels[i + 1], scale_factor=2.0)
        sizes = tuple((level.shape[2], level.shape[3]) for level in levels)
        grid = make_grid(sizes, self.finest_stride_px, x.device)
        answers = []
        for level in levels:
            features = self.tower(level)
            answers.append(torch.cat([self.classes(features), self.geometry(features)], dim=1).flatten(2))
        raw = torch.cat(answers, dim=2).transpose(1, 2)
        logits, sides, quality = raw.split([raw.shape[2] - 5, 4, 1], dim=2)
        return FCOSOutputs(logits, F.softplus(sides.float()) * grid[:, 2:3], quality.squeeze(2), grid)


@lru_cache(maxsize=8)
def make_grid(
    sizes: tuple[tuple[int, int], ...], finest_stride_px: int, device: torch.device
) -> Float[Tensor, "n 5"]:
    """The constants of all locations, see `FCOSOutputs`: those in the middle of the cells of every level.

    Args:
        sizes: Height and width of every level, from the finest; strides double.
    """
    rows = []
    with torch.inference_mode(False):  # what is kept must serve a backward pass later
        for i, (height, width) in enumerate(sizes):
            stride = float(finest_stride_px * 2**i)
            y, x = torch.meshgrid(
                (torch.arange(height, device=device) + 0.5) * stride,
                (torch.arange(width, device=device) + 0.5) * stride,
                indexing="ij",
            )
            least = 0.0 if i == 0 else REACH * stride / 2
            most = REACH * stride if i < len(sizes) - 1 else float("inf")
            constants = torch.tensor([stride, least, most], device=device).expand(height * width, 3)
            rows.append(torch.cat([x.reshape(-1, 1), y.reshape(-1, 1), constants], dim=1))
        return torch.cat(rows)
