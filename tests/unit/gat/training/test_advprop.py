"""Two sets of batch norms: who goes through which, and what is left of them in the end."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from gat.attacks import FGSM, PGD
from gat.training.batch_norm import DualBatchNorm, join_batch_norms, routed, split_batch_norms
from gat.training.loop import TrainSettings, train
from gat.training.methods import GAT, AdversarialTraining, AdvProp, Batch, Standard, Tools
from tasks.classification import ClassificationTask
from tests.toys import CLASSES, Blobs, conv_classifier, tiny_space

TASK = ClassificationTask(CLASSES)
SETTINGS = TrainSettings(steps=4, batch_size=8, lr=0.01, warmup_steps=1)
STRONG = PGD(eps=0.3, steps=2, stop_when_fooled=False)


def norm_first() -> nn.Sequential:
    """Its statistics are those of the images alone, whatever was learned."""
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 3))


def go(folder: Path, method: Any, model: nn.Module, **options: Any) -> nn.Module:
    settings = SETTINGS.model_copy(update=options)
    return train(model, Blobs(), method, Tools(TASK), settings, Accelerator(cpu=True), folder)


def test_twins_change_no_answer_and_leave_without_a_trace():
    model, plain, images = conv_classifier(), conv_classifier(), torch.rand(6, 3, 8, 8)
    modules = list(model.modules())
    split_batch_norms(model)
    assert isinstance(model[1], DualBatchNorm)
    assert torch.equal(model.eval()(images), plain.eval()(images))
    with routed(model, 2):
        assert torch.equal(model(images), plain(images))
    join_batch_norms(model, "main")
    assert list(model.modules()) == modules
    assert list(model.state_dict()) == list(plain.state_dict())


def test_the_first_images_go_through_the_main_norms_the_others_through_the_auxiliary_ones():
    x = torch.randn(10, 3, 4, 4)
    model, clean, attacked = (nn.Sequential(nn.BatchNorm2d(3)) for _ in range(3))
    split_batch_norms(model)
    with routed(model, 7):
        together = model(x)
    apart = torch.cat([clean(x[:7]), attacked(x[7:])])
    torch.testing.assert_close(together, apart)
    for kept, expected in (("main", clean), ("auxiliary", attacked)):
        statistics = getattr(model[0], kept).state_dict()
        assert all(torch.equal(value, statistics[name]) for name, value in expected[0].state_dict().items())
    model(x)  # outside, all images take the main ones
    assert model[0].main.num_batches_tracked == 2
    assert model[0].auxiliary.num_batches_tracked == 1


@pytest.mark.parametrize("num_main", [0, 3, 6])
def test_every_parameter_has_a_gradient_in_every_step(num_main):
    """Distributed training waits for them."""
    model = conv_classifier().train()
    split_batch_norms(model)
    with routed(model, num_main):
        model(torch.rand(6, 3, 8, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    idle = {0: model[1].main, 6: model[1].auxiliary}.get(num_main)
    if idle is not None:
        assert (idle.weight.grad == 0).all()
        assert idle.num_batches_tracked == 0


def test_one_norm_in_two_places_stays_one_norm():
    norm = nn.BatchNorm2d(3)
    model = nn.Sequential(nn.Sequential(norm), nn.Sequential(norm))
    split_batch_norms(model)
    assert model[0][0] is model[1][0]
    assert len(list(model.parameters())) == 4


def test_subclasses_keep_what_they_do():
    class Activated(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    model = nn.Sequential(Activated(3))
    split_batch_norms(model)
    with routed(model, 2):
        assert model(torch.randn(5, 3, 4, 4)).min() == 0


def test_main_statistics_see_clean_images_only(tmp_path):
    standard = go(tmp_path / "standard", Standard(), norm_first())
    advprop = go(tmp_path / "advprop", AdvProp(attack=STRONG), norm_first())
    shared = go(tmp_path / "shared", AdversarialTraining(attack=STRONG, keep_clean=True), norm_first())
    assert torch.equal(advprop[0].running_mean, standard[0].running_mean)
    assert torch.equal(advprop[0].running_var, standard[0].running_var)
    assert not torch.equal(advprop[2].weight, standard[2].weight)  # yet it learned from the others
    assert not torch.equal(shared[0].running_var, standard[0].running_var)


def test_attacks_go_through_the_auxiliary_norms():
    """There the sign of everything is turned around, and with it the direction of the attack."""
    model, images = norm_first().train(), torch.rand(6, 3, 8, 8) * 0.5 + 0.25
    split_batch_norms(model)
    with torch.no_grad():
        model[0].auxiliary.weight.neg_()
        model[-1].bias.zero_()
    labels = model[-1](-model[0].main.eval()(images).flatten(1)).argmax(1)
    moved = (
        AdvProp(attack=FGSM(eps=0.01)).lesson(Tools(TASK), model, Batch(images, labels), 0).images[6:]
        - images
    )
    assert (moved.abs().flatten(1).amax(1) > 0.009).all()  # all are right there
    weights = model[-1].weight.detach()
    logits = -(model[0].main.eval()(images)).flatten(1) @ weights.T
    error = logits.softmax(1) - nn.functional.one_hot(labels, 3)
    torch.testing.assert_close(
        moved, 0.01 * (error @ -weights).sign().reshape(moved.shape), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.5}], ids=["last", "average"])
def test_the_finished_model_is_of_the_plain_architecture(tmp_path, options):
    model = go(tmp_path, AdvProp(attack=STRONG), conv_classifier(), **options)
    plain = conv_classifier()
    plain.load_state_dict(model.state_dict(), strict=True)
    assert not any(isinstance(part, DualBatchNorm) for part in model.modules())
    images = torch.rand(5, 3, 8, 8)
    assert torch.equal(plain.eval()(images), model.eval()(images))
    kept = torch.load(tmp_path / "state.pt", weights_only=True)["model"]
    assert any("auxiliary" in name for name in kept)  # what a killed run goes on with


@pytest.mark.parametrize("kept", ["main", "auxiliary"])
def test_gat_keeps_the_branch_it_is_told(tmp_path, kept):
    space, data = tiny_space(), Blobs(side=16)
    method = GAT(rotation=(("all", "both"),), batch_norm=kept)
    tools = Tools(TASK, space)
    model = train(conv_classifier(), data, method, tools, SETTINGS, Accelerator(cpu=True), tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)["model"]
    assert torch.equal(model[1].running_mean, state[f"1.{kept}.running_mean"])
    assert not torch.equal(state["1.main.running_mean"], state["1.auxiliary.running_mean"])


def test_a_model_without_batch_norms_is_refused_before_training(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(288, 3))
    with pytest.raises(ValueError, match=r"Sequential has none .*BatchNorm2d, or another method"):
        go(tmp_path, AdvProp(), model)
    assert not (tmp_path / "state.pt").exists()
