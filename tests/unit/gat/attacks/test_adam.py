"""Adam per example is torch's Adam, run on each example alone, whatever else is in the slots."""

import torch
from torch import Tensor

from gat.attacks.adam import Adam
from gat.attacks.ascent import ascend
from gat.attacks.steps import Steps

TARGETS = torch.tensor([[1.0, -2.0], [0.3, 0.1], [-4.0, 9.0], [0.0, 2.0], [7.0, 7.0]])


def bowl(latents: dict[str, Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
    """Highest at the example's target; fooled within 0.5 of it."""
    distance = (latents["x"] - TARGETS[rows]).square().sum(1)
    return -distance * (1 + rows), distance < 0.25


def torch_adam(example: int, steps: int) -> Tensor:
    """The iterates of one example."""
    x = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([x], lr=0.5)
    iterates = [x.detach().clone()]
    for _ in range(steps):
        optimizer.zero_grad()
        (-bowl({"x": x[None]}, torch.tensor([example]))[0].sum()).backward()
        optimizer.step()
        iterates.append(x.detach().clone())
    return torch.stack(iterates)


def test_every_example_moves_as_under_torchs_adam_through_changing_slots():
    """Two slots for five examples that finish at different times."""
    adam = Adam({"x": 0.5})
    for _ in range(2):  # an object may serve again
        result = ascend(bowl, {"x": torch.zeros(5, 2)}, adam, 12, width=2, record=lambda at, rows: at["x"])
        for example in range(5):
            taken = int(result.iterations[example])
            expected = torch_adam(example, taken)
            torch.testing.assert_close(
                result.trajectory[: taken + 1, example], expected, rtol=1e-5, atol=1e-5
            )
    assert len(result.iterations.unique()) >= 3


def test_it_serves_latents_of_another_shape_next():
    adam = Adam({"x": 0.1})
    for side in (2, 3):
        start = torch.zeros(4, side)
        result = ascend(lambda x, rows: (x["x"].sum(1), rows < 0), {"x": start}, adam, 3)
        torch.testing.assert_close(result.latents["x"], start + 0.3, rtol=0, atol=1e-5)


def test_it_keeps_within_limits():
    confine = Steps({}, "linf", {"x": 0.25}).confine
    start, adam = {"x": torch.zeros(5, 2)}, Adam({"x": 0.1}, confine)
    result = ascend(bowl, start, adam, 12, keep="last", stop_when_fooled=False)
    expected = TARGETS.clamp(-0.25, 0.25)
    torch.testing.assert_close(result.latents["x"], expected, rtol=0, atol=0.06)
    assert result.latents["x"].abs().max() <= 0.25
