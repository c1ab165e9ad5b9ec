"""The perceptual distance against closed forms, two other libraries, and the laws of a metric."""

import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gat import perceptual
from gat.perceptual import (
    ImageNetFeatures,
    Phi,
    _Unit,
    add_network,
    distance,
    find_layers,
    open_network,
    perceptual_distance,
)
from tasks.models.small_convnet import SmallConvNetConfig
from tasks.models.small_resnet import SmallResNetConfig
from tests.toys import conv_classifier, linear_classifier

ALEXNET = [f"features.{i}" for i in (1, 4, 7, 9, 11)]


@pytest.fixture
def pairs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(5, 3, 64, 64, generator=generator)
    return images, (images + 0.2 * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def random_alexnet() -> ImageNetFeatures:
    from torchvision import models

    with torch.device("meta"):
        features = models.alexnet(weights=None).features
    features.to_empty(device="cpu")
    torch.manual_seed(7)
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()
    return ImageNetFeatures(features).eval()


def small(images: Tensor) -> Tensor:
    return images[..., ::4, ::4]


def test_it_is_the_mean_over_positions_of_the_distance_of_directions():
    identity = nn.Conv2d(3, 3, 1, bias=False)
    identity.weight.data = torch.eye(3)[:, :, None, None]
    # Two positions: the first turns by a right angle (distance sqrt 2), the second only grows (distance 0).
    a = torch.tensor([[[[0.5, 0.1]], [[0.0, 0.1]], [[0.0, 0.1]]]])
    b = torch.tensor([[[[0.0, 0.4]], [[0.9, 0.4]], [[0.0, 0.4]]]])
    network = nn.Sequential(identity).eval()
    found = perceptual_distance(network, a, b, layers=["0"])
    torch.testing.assert_close(found, torch.tensor([math.sqrt((2 + 0) / 2)]))


def test_layers_add_up_in_squares(pairs):
    network = conv_classifier().eval()
    each = [perceptual_distance(network, *pairs, layers=[name]) for name in ("2", "4")]
    both = perceptual_distance(network, *pairs, layers=["2", "4"])
    torch.testing.assert_close(both, (each[0].square() + each[1].square()).sqrt())


def test_it_agrees_with_adv_lib(pairs):
    lpips = pytest.importorskip("adv_lib.distances.lpips", reason="adv-lib is not installed")
    ours = random_alexnet()

    class Theirs(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            x, found = (x - ours.mean) / ours.std, []
            for name, layer in ours.features.named_children():
                x = layer(x)
                if f"features.{name}" in ALEXNET:
                    found.append(x)
            return tuple(found)

    with torch.no_grad():
        theirs = lpips.LPIPS(Theirs(), squared=False)(*pairs)
    found = perceptual_distance(ours, *pairs, layers=ALEXNET)
    assert found.min() > 0.05
    torch.testing.assert_close(found, theirs.flatten(), rtol=1e-5, atol=1e-6)


def test_it_is_the_square_root_of_unlearned_lpips(pairs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips calls torchvision in its old way
        import lpips

        theirs = lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True, lpips=False, verbose=False)
    ours = random_alexnet()
    for number, layer in ours.features.named_children():
        for part in theirs.net.children():
            if number in dict(part.named_children()):
                part[int(number) - int(next(iter(dict(part.named_children()))))].load_state_dict(
                    layer.state_dict()
                )
    with torch.no_grad():
        squared = theirs(*pairs, normalize=True).flatten()
    found = perceptual_distance(ours, *pairs, layers=ALEXNET)
    # Their constants for the normalisation have three digits.
    torch.testing.assert_close(found, squared.sqrt(), rtol=5e-3, atol=1e-5)


def test_it_is_a_metric_that_sees_no_batch(pairs):
    a, b = map(small, pairs)
    network = SmallResNetConfig().build(4, 16).eval()
    forth, back = perceptual_distance(network, a, b), perceptual_distance(network, b, a, width=2)
    torch.testing.assert_close(forth, back, rtol=1e-4, atol=1e-6)
    alone = torch.cat([perceptual_distance(network, a[i : i + 1], b[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(forth, alone, rtol=1e-4, atol=1e-6)
    assert perceptual_distance(network, a, a).eq(0).all()
    c = a.flip(0)
    through = forth + perceptual_distance(network, b, c)
    assert (perceptual_distance(network, a, c) <= through + 1e-5).all()


def test_at_distance_zero_the_gradient_is_zero_and_finite():
    center = torch.rand(2, 7)
    leaf = center.clone().requires_grad_()
    found = distance(leaf, center)
    (gradient,) = torch.autograd.grad(found.sum(), leaf)
    assert torch.equal(found.detach(), torch.zeros(2))
    assert torch.equal(gradient, torch.zeros(2, 7))


def test_the_derivative_is_that_of_the_formula():
    maps = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: _Unit.apply(x), maps)
    dead = torch.zeros(1, 2, 3, requires_grad=True)  # as behind a ReLU
    assert _Unit.apply(dead).sum().isfinite()


def test_stages_of_a_residual_network_and_of_a_plain_one_are_found():
    images = torch.rand(2, 3, 32, 32)
    assert find_layers(SmallResNetConfig().build(4, 32).eval(), images) == [
        ("network.body.0", 0),
        ("network.body.1", 0),
        ("network.activation", 0),
    ]
    names = [name for name, _ in find_layers(SmallConvNetConfig().build(4, 32).eval(), images)]
    assert names == ["network.features.2", "network.features.9", "network.features"]


def test_a_module_that_serves_several_resolutions_is_seen_at_each():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 3, 3, padding=1), nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            first = self.act(self.conv(x).repeat(1, 2, 1, 1))
            second = self.act(nn.functional.avg_pool2d(first, 2))
            return self.act(nn.functional.avg_pool2d(second, 2)).mean((2, 3))

    network, images = Shared().eval(), torch.rand(2, 3, 8, 8)
    assert find_layers(network, images) == [("act", 0), ("act", 1), ("act", 2)]
    with Phi(network, None, images) as phi:
        assert phi(images).shape == (2, 6 * (64 + 16 + 4))
    with Phi(network, ["act"], images) as phi:
        assert phi(images).shape == (2, 6 * 4)


def test_a_network_without_maps_is_seen_by_its_vectors():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    assert find_layers(network, torch.rand(1, 3, 2, 2)) == [("2", 0), ("3", 0)]
    assert find_layers(linear_classifier(torch.rand(4, 12)), torch.rand(1, 3, 2, 2)) == [("1", 0)]
    with pytest.raises(ValueError, match="name some `layers`"):
        find_layers(nn.Flatten(), torch.rand(1, 3, 2, 2))


def test_one_pass_serves_the_classifier_and_the_distance():
    network, images = conv_classifier().eval(), torch.rand(4, 3, 8, 8)
    passes: list[int] = []
    network.register_forward_hook(lambda *_: passes.append(1))
    with Phi(network, ["2", "4"], images) as phi:
        apart = phi(images)
        network(images)
        assert phi.has_seen(images)
        assert not phi.has_seen(images.clone())
        together = phi.recall(images)
        assert len(passes) == 2
        assert not phi.has_seen(images)  # once
        network(images)
        images.mul_(0.5)  # no longer what the network saw
        assert not phi.has_seen(images)
    torch.testing.assert_close(apart, together)


def test_no_hook_stays():
    network, images = conv_classifier().eval(), torch.rand(1, 3, 8, 8)
    with pytest.raises(ZeroDivisionError), Phi(network, None, images):
        raise ZeroDivisionError
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())


def test_what_cannot_work_is_refused_with_what_is_on_offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    network, images = conv_classifier().eval(), torch.rand(1, 3, 8, 8)
    with pytest.raises(ValueError, match=r"no \['7'\]; on offer: 0, 1, 2"):
        Phi(network, ["7"], images)
    with pytest.raises(ValueError, match="'alex' is not known; on offer: self, alexnet, vgg"):
        open_network("alex", network, images)
    with pytest.raises(ValueError, match="63 px at least"):
        open_network("alexnet", network, images)
    with pytest.raises(ValueError, match=r"not on this machine; put https://.* at .*alexnet"):
        open_network("alexnet", network, torch.rand(1, 3, 64, 64))
    with pytest.raises(ValueError, match="taken"):
        add_network("vgg", network)
    with pytest.raises(ValueError, match=r"network\.eval\(\)"):
        perceptual_distance(network.train(), images, images)
    skips = nn.ModuleDict({"used": nn.Conv2d(3, 3, 1), "not": nn.Conv2d(3, 3, 1)})
    skips.forward = skips["used"].forward  # type: ignore[method-assign]
    with Phi(skips, ["not"], images) as phi, pytest.raises(ValueError, match="did not run 'not'"):
        phi(images)


def test_imagenet_weights_are_read_from_disk_and_take_grey_images(tmp_path: Path, monkeypatch, pairs):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    weights = {name: value for name, value in random_alexnet().state_dict().items() if "features" in name}
    torch.save(
        weights | {"classifier.1.bias": torch.ones(4)}, tmp_path / "checkpoints/alexnet-owt-7be5be79.pth"
    )
    try:
        opened = open_network("alexnet", nn.Identity(), pairs[0])
        found = perceptual_distance(opened.module, *pairs, layers=opened.layers)
        torch.testing.assert_close(found, perceptual_distance(random_alexnet(), *pairs, layers=ALEXNET))
        grey = pairs[0][:, :1]
        assert torch.equal(opened.module(grey), opened.module(grey.expand(-1, 3, -1, -1)))
    finally:
        perceptual._pretrained.cache_clear()


def test_a_network_of_ones_own_is_found_by_its_name():
    network, images = conv_classifier().eval(), torch.rand(1, 3, 8, 8)
    add_network("mine", network, ["2"])
    opened = open_network("mine", nn.Identity(), images)
    assert opened.module is network
    assert opened.layers == ("2",)
    assert open_network("self", network, images).module is network
