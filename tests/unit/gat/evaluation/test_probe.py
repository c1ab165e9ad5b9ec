"""What makes attacks look weak is found by asking the model itself."""

import pytest
import torch
from torch import Tensor, nn

from gat.evaluation.probe import probe
from gat.logits import LogitsTask
from tests.toys import Blobs, conv_classifier

DATA = Blobs(24)


def ask(model: nn.Module) -> dict[str, float]:
    return probe(LogitsTask(3), model, DATA.images, DATA.labels)


class Then(nn.Module):
    """A sound classifier with something behind it."""

    def __init__(self, change) -> None:
        super().__init__()
        self.classifier, self.change = conv_classifier().eval(), change

    def forward(self, images: Tensor) -> Tensor:
        return self.change(self.classifier(images))


def test_nothing_is_found_in_a_sound_model():
    assert ask(conv_classifier()) == {"random_outputs": 0.0, "probabilities": 0.0, "zero_gradients": 0.0}


@pytest.mark.parametrize(
    "name, change",
    [
        ("random_outputs", lambda x: x + torch.randn_like(x)),
        ("probabilities", lambda x: x.softmax(1)),
        ("zero_gradients", lambda x: (x * 100).round()),
        ("zero_gradients", torch.detach),
        ("zero_gradients", lambda x: (x - x.detach()) * float("nan") + x),
    ],
)
def test_each_defect_is_found_and_no_other(name, change):
    found = ask(Then(change))
    assert found[name] > 0.9
    assert [other for other, share in found.items() if share > 0.05] == [name]


def test_dense_outputs_are_asked_too():
    class Dense(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return (images * 3).softmax(1)

    class Task(LogitsTask):
        def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
            return outputs[:, 0].flatten(1).sum(1)

    found = probe(Task(3), Dense(), DATA.images, DATA.labels)
    assert found == {"random_outputs": 0.0, "probabilities": 1.0, "zero_gradients": 0.0}


def test_the_model_and_the_dice_are_left_as_found():
    model = Then(lambda x: x + torch.randn_like(x)).train()
    state, before = (
        torch.get_rng_state(),
        {name: value.clone() for name, value in model.state_dict().items()},
    )
    ask(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
