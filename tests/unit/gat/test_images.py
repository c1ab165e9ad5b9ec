"""The door check of images."""

import pytest
import torch

from gat.images import check_images


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_between_black_and_white_are_accepted(channels, dtype):
    images = torch.rand(2, channels, 5, 4).to(dtype)
    images[0, 0, 0, 0], images[1, 0, 0, 0] = 0, 1
    check_images(images.requires_grad_())


def test_rounding_just_outside_the_range_is_accepted():
    check_images(torch.tensor([-1e-6, 1 + 1e-6]).reshape(1, 1, 1, 2))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), r"got uint8\[2, 3, 4, 4\].*images.float\(\) / 255"),
        (torch.zeros(3, 4, 4), r"got float32\[3, 4, 4\].*images\[None\]"),
        (torch.zeros(2, 4, 4, 3), r"permute\(0, 3, 1, 2\)"),
        (torch.zeros(2, 4, 5, 5), r"images\[:, :3\]"),
        (torch.zeros(2, 7, 5, 5), r"must be \[b, 3, h, w\] or \[b, 1, h, w\], got float32\[2, 7, 5, 5\]$"),
        (torch.zeros(0, 3, 4, 4), "must not be empty"),
        (torch.full((2, 3, 4, 4), 255.0), "from 255 to 255; if they are 8-bit values divide by 255"),
        (torch.linspace(-1, 1, 48).reshape(1, 3, 4, 4), r"from -1 to 1;.*\(images \+ 1\) / 2"),
        (torch.linspace(-2.1, 2.6, 48).reshape(1, 3, 4, 4), r"leave that to the model.*Normalized\(model"),
    ],
)
def test_what_is_no_batch_of_images_is_refused_with_the_likeliest_cause(images, message):
    with pytest.raises(ValueError, match=message):
        check_images(images)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_images_that_are_not_finite_are_counted(value):
    images = torch.rand(3, 3, 4, 4)
    images[1, 2, 3, 3] = value
    images[2, 0, 0, 0] = value
    with pytest.raises(ValueError, match="2 of 3 hold NaN or infinity"):
        check_images(images)
