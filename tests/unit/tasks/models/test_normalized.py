"""Normalisation inside the model."""

import pytest
import torch
from torch import nn

from tasks.models import Normalized

MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)


def test_normalisation_equals_the_one_by_hand():
    images = torch.rand(2, 3, 4, 5)
    got = Normalized(nn.Identity(), MEAN, STD)(images)
    wanted = torch.stack([(images[:, c] - MEAN[c]) / STD[c] for c in range(3)], 1)
    torch.testing.assert_close(got, wanted)


def test_gradient_of_the_image_is_the_one_of_the_network_over_std():
    images = torch.rand(2, 3, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(Normalized(nn.Identity(), MEAN, STD)(images).sum(), images)
    torch.testing.assert_close(gradient, (1 / torch.tensor(STD)).reshape(3, 1, 1).expand_as(images))


def test_statistics_are_saved_with_the_weights_and_are_not_trained():
    model = Normalized(nn.Linear(2, 2), MEAN, STD)
    assert set(model.state_dict()) == {"mean", "std", "network.weight", "network.bias"}
    assert {name for name, _ in model.named_parameters()} == {"network.weight", "network.bias"}


def test_half_precision_images_are_normalised_in_float32():
    assert Normalized(nn.Identity(), MEAN, STD)(torch.rand(1, 3, 2, 2).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("side", [4, 16])
def test_resizing_keeps_a_flat_image_flat_and_lets_gradients_through(side):
    images = torch.full((1, 3, 8, 8), 0.25, requires_grad=True)
    resized = Normalized(nn.Identity(), (0.0,) * 3, (1.0,) * 3, resize=side)(images)
    torch.testing.assert_close(resized, torch.full((1, 3, side, side), 0.25))
    (gradient,) = torch.autograd.grad(resized.sum(), images)
    torch.testing.assert_close(gradient.sum(), torch.tensor(3.0 * side * side))
    assert (gradient > 0).all()


def test_images_of_the_wanted_size_are_not_resampled():
    images = torch.rand(1, 3, 8, 8)
    assert torch.equal(Normalized(nn.Identity(), (0.0,) * 3, (1.0,) * 3, resize=8)(images), images)


def test_grey_images_are_refused_by_an_rgb_model_with_the_way_to_repeat_them():
    with pytest.raises(ValueError, match=r"of 3 channels, got \[2, 1, 4, 4\]; repeat the grey channel"):
        Normalized(nn.Identity(), MEAN, STD)(torch.rand(2, 1, 4, 4))


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.5, 0.5)), ((0.5,), (0.0,)), ((), ())])
def test_impossible_statistics_are_refused(mean, std):
    with pytest.raises(ValueError, match="one number per channel, std above 0"):
        Normalized(nn.Identity(), mean, std)
