"""The one loop, held to closed forms and laws on objectives whose optimum is known."""

import pytest
import torch
from torch import Tensor

from gat.attacks.ascent import ascend
from gat.attacks.steps import Steps, l2_norm, linf_norm
from gat.latents import Latents

DIM = 6


def linear(weights: Tensor, threshold: float = float("inf")):
    """loss_i = <w_i, x_i>, fooled where it exceeds the threshold."""

    def objective(latents: Latents, rows: Tensor) -> tuple[Tensor, Tensor]:
        loss = (latents["x"] * weights[rows]).sum(dim=1)
        return loss, loss > threshold

    return objective


def at_x(latents: Latents, rows: Tensor) -> Tensor:
    return latents["x"]


@pytest.fixture
def weights() -> Tensor:
    return torch.randn(11, DIM)


@pytest.fixture
def start() -> Latents:
    return {"x": torch.randn(11, DIM)}


def gain(weights: Tensor, before: Latents, after: Latents) -> Tensor:
    return (weights * (after["x"] - before["x"])).sum(dim=1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("width", [1, 4, 64])
def test_bounded_ascent_reaches_the_optimum_of_a_linear_loss(weights, start, norm, width):
    eps = 0.3
    steps = Steps({"x": 0.1}, norm, {"x": eps})
    result = ascend(linear(weights), start, steps, 10, stop_when_fooled=False, width=width)
    dual = weights.abs().sum(dim=1) if norm == "linf" else weights.norm(dim=1)
    torch.testing.assert_close(gain(weights, start, result.latents), eps * dual, rtol=1e-4, atol=1e-4)
    distance = (linf_norm if norm == "linf" else l2_norm)((result.latents["x"] - start["x"]).double())
    assert (distance <= eps * (1 + 1e-5)).all()


def test_unbounded_sign_steps_are_equation_1_of_the_paper(weights, start):
    result = ascend(linear(weights), start, Steps({"x": 0.07}), 5, stop_when_fooled=False)
    torch.testing.assert_close(result.latents["x"], start["x"] + 5 * 0.07 * weights.sign())


def test_an_example_stops_at_the_first_iterate_that_fools(weights, start):
    start = {"x": torch.zeros(11, DIM)}
    step = 0.1
    per_step = step * weights.abs().sum(dim=1)  # the loss after t steps is t times this
    threshold = 1.05
    expected = torch.floor(threshold / per_step).long() + 1
    result = ascend(linear(weights, threshold), start, Steps({"x": step}), 10, width=3)
    reached = expected <= 10
    assert (result.fooled == reached).all()
    assert (result.iterations == expected.clamp(max=10)).all()
    assert (result.forwards == result.iterations + 1).all()
    torch.testing.assert_close(result.loss, result.iterations * per_step)


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize("width", [1, 2, 3, 5, 11])
@pytest.mark.parametrize("sync_every", [1, 3])
def test_slots_and_waiting_do_not_change_the_outcome(weights, start, stop, width, sync_every):
    def run(**options):
        return ascend(linear(weights, 1.0), start, Steps({"x": 0.1}), 6, stop_when_fooled=stop, **options)

    one_by_one, refilled = run(width=11, sync_every=1), run(width=width, sync_every=sync_every)
    for name in ("loss", "fooled", "iterations", "forwards"):
        torch.testing.assert_close(getattr(refilled, name), getattr(one_by_one, name))
    assert torch.equal(refilled.latents["x"], one_by_one.latents["x"])


def test_the_batch_stays_full_until_the_queue_is_empty(weights):
    n, width, seen = 40, 8, []
    easy = torch.arange(n) % 2 == 0

    def objective(latents: Latents, rows: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(len(rows))
        loss = latents["x"].sum(dim=1)
        return loss, easy[rows] & (loss > 0.15)

    ascend(objective, {"x": torch.zeros(n, DIM)}, Steps({"x": 0.1}), 9, width=width)
    total_work = int((torch.where(easy, 1, 9) + 1).sum())
    assert sum(seen) == total_work  # no pass is spent on an example that is done
    assert seen[: (total_work - 9 * width) // width] == [width] * ((total_work - 9 * width) // width)
    assert sorted(seen, reverse=True) == seen


def test_more_steps_never_end_lower(start):
    def bumpy(latents: Latents, rows: Tensor) -> tuple[Tensor, Tensor]:
        loss = torch.sin(7 * latents["x"]).sum(dim=1)
        return loss, torch.zeros(len(rows), dtype=torch.bool)

    losses = [
        ascend(bumpy, start, Steps({"x": 0.3}), n, stop_when_fooled=False).loss for n in (0, 1, 2, 5, 10)
    ]
    for fewer, more in zip(losses, losses[1:], strict=False):
        assert (more >= fewer).all()


def test_last_iterate_is_kept_when_asked(start):
    def bumpy(latents: Latents, rows: Tensor) -> tuple[Tensor, Tensor]:
        loss = torch.sin(7 * latents["x"]).sum(dim=1)
        return loss, torch.zeros(len(rows), dtype=torch.bool)

    last = ascend(bumpy, start, Steps({"x": 0.3}), 7, stop_when_fooled=False, keep="last", record=at_x)
    assert torch.equal(last.latents["x"], last.trajectory[-1])


def test_the_trajectory_starts_at_the_start_and_rests_at_the_end(weights, start):
    result = ascend(linear(weights, 1.0), start, Steps({"x": 0.1}), 6, width=3, record=at_x)
    path = result.trajectory
    assert torch.equal(path[0], start["x"])
    assert torch.equal(path[-1], result.latents["x"])
    for i, steps in enumerate(result.iterations.tolist()):
        assert (path[steps:, i] == path[steps, i]).all()
        moves = (path[1 : steps + 1, i] - path[:steps, i]).abs()
        torch.testing.assert_close(moves, torch.full_like(moves, 0.1))


@pytest.mark.parametrize(("width", "sync_every"), [(1, 1), (3, 1), (3, 4), (64, 2)])
def test_what_is_recorded_depends_neither_on_slots_nor_on_when_they_are_freed(
    weights, start, width, sync_every
):
    def record(latents: Latents, rows: Tensor) -> Tensor:
        return torch.cat([latents["x"], rows[:, None].float()], 1)  # each its own

    move, loss = Steps({"x": 0.1}), linear(weights, 1.0)
    result = ascend(loss, start, move, 6, width=width, sync_every=sync_every, record=record)
    path = ascend(loss, start, move, 6, record=at_x).trajectory
    assert torch.equal(result.trajectory[..., :-1], path)
    assert (result.trajectory[..., -1] == torch.arange(11)).all()


def test_zero_steps_only_look(weights, start):
    result = ascend(linear(weights), start, Steps({"x": 0.1}), 0)
    assert torch.equal(result.latents["x"], start["x"])
    assert result.backwards.sum() == 0


def test_examples_without_a_gradient_are_counted(start):
    def flat(latents: Latents, rows: Tensor) -> tuple[Tensor, Tensor]:
        return latents["x"].sum(dim=1) * (rows % 2), torch.zeros(len(rows), dtype=torch.bool)

    result = ascend(flat, start, Steps({"x": 0.1}), 4, stop_when_fooled=False)
    assert result.zero_gradients.tolist() == [4 if i % 2 == 0 else 0 for i in range(11)]


def test_a_nan_gradient_moves_nothing_and_is_counted(start):
    def broken(latents: Latents, rows: Tensor) -> tuple[Tensor, Tensor]:
        return latents["x"].sum(dim=1) * float("nan"), torch.zeros(len(rows), dtype=torch.bool)

    result = ascend(broken, start, Steps({"x": 0.1}), 2, stop_when_fooled=False)
    assert torch.equal(result.latents["x"], start["x"])
    assert (result.zero_gradients == 2).all()


def test_gradient_scale_does_not_change_sign_steps(weights, start):
    plain = ascend(linear(weights), start, Steps({"x": 0.1}), 3, stop_when_fooled=False)
    scaled = ascend(
        linear(weights), start, Steps({"x": 0.1}), 3, stop_when_fooled=False, gradient_scale=4096.0
    )
    assert torch.equal(plain.latents["x"], scaled.latents["x"])


def test_bad_options_are_refused(weights, start):
    with pytest.raises(ValueError, match="common number of examples"):
        ascend(linear(weights), {"x": torch.zeros(2, 3), "y": torch.zeros(3, 3)}, Steps({"x": 0.1}), 1)
    with pytest.raises(ValueError, match="at least one example"):
        ascend(linear(weights), {"x": torch.zeros(0, 3)}, Steps({"x": 0.1}), 1)
