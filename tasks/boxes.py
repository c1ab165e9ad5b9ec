"""How much boxes overlap. A box is x0 y0 x1 y1 on the last axis, in any unit; the other axes broadcast."""

import torch
from jaxtyping import Float
from torch import Tensor

Boxes = Float[Tensor, "... 4"]

_TINY = 1e-7  # keeps boxes without area from dividing by zero


def iou(a: Boxes, b: Boxes) -> Float[Tensor, "..."]:
    """Intersection over union, in [0, 1]; 0 where both have no area."""
    intersection, union = _overlap(a, b)
    return intersection / union.clamp(min=_TINY)


def giou(a: Boxes, b: Boxes) -> Float[Tensor, "..."]:
    """Generalised IoU, in [-1, 1]: IoU minus the share of the smallest box around both that neither covers (Rezatofighi et al.
    2019). Unlike the IoU it has a gradient where they do not meet."""
    intersection, union = _overlap(a, b)
    hull = _size(torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:]))
    return intersection / union.clamp(min=_TINY) - (hull - union) / hull.clamp(min=_TINY)


def clip(boxes: Boxes, sides: Float[Tensor, " 2"]) -> Boxes:
    """What of the boxes lies in an image of this width and height."""
    return torch.minimum(boxes.clamp(min=0), sides.repeat(2))


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    intersection = _size(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    union = _size(a[..., :2], a[..., 2:]) + _size(b[..., :2], b[..., 2:]) - intersection
    return intersection, union


def _size(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp(min=0).prod(-1)
