"""Adaptive discriminator augmentation: the discriminator only ever sees augmented images, real and generated alike.

After Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", reduced to what small images need:
one random affine map (translation, scale, rotation, squeeze) and one random brightness / contrast change, each applied to an
example with probability `p`, which follows how confidently the discriminator calls real images real.
"""

from math import log, pi

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def augment(
    images: Float[Tensor, "b c h w"], p: float, generator: torch.Generator, flip: bool = False
) -> Float[Tensor, "b c h w"]:
    """Randomly transformed copies; twice differentiable. At p = 0 (and no flip) the images themselves are returned.

    Args:
        images: in [-1, 1]; what moves in from outside is -1 (black).
        p: probability of each transformation, per example.
        generator: source of randomness, on the CPU.
        flip: mirror half of the images left-right, whatever p is.
    """
    if p <= 0 and not flip:
        return images
    b = len(images)

    def normal(std: float) -> Tensor:
        chosen = torch.rand(b, generator=generator) < p
        return torch.randn(b, generator=generator) * std * chosen

    shift_x, shift_y = normal(0.1), normal(0.1)
    scale, squeeze = (normal(0.15) * log(2)).exp(), (normal(0.15) * log(2)).exp()
    angle = normal(0.05) * pi
    mirror = torch.ones(b) if not flip else torch.randint(2, (b,), generator=generator) * 2.0 - 1
    cos, sin = angle.cos() / scale, angle.sin() / scale
    theta = torch.stack(
        [cos * squeeze * mirror, -sin, shift_x, sin * mirror, cos / squeeze, shift_y], dim=1
    ).reshape(b, 2, 3)
    brightness, contrast = normal(0.1), (normal(0.2) * log(2)).exp()

    device = images.device
    grid = F.affine_grid(theta.to(device), list(images.shape), align_corners=False)
    moved = F.grid_sample(images.float() + 1, grid, align_corners=False)
    return moved * contrast.to(device)[:, None, None, None] - 1 + brightness.to(device)[:, None, None, None]


class AdaptiveProbability:
    """Controls p so that E[sign D(real)] stays at `target`.

    Args:
        target: 0 switches augmentation off.
        kimg: thousands of images it takes to move p by one.
    """

    def __init__(self, target: float = 0.6, kimg: float = 100.0, p: float = 0.0) -> None:
        self.target, self.kimg, self.p = target, kimg, p

    def update(self, mean_sign: float, num_images: int) -> None:
        """Args: mean_sign: of the discriminator's logits on real images, over the last `num_images` images."""
        if self.target:
            step = num_images / (self.kimg * 1000)
            self.p = min(max(self.p + (step if mean_sign > self.target else -step), 0.0), 0.8)
