"""A run that was killed, or went wrong, goes on from what it saved and ends as one that was not."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from gat.attacks import LatentAttack
from gat.training.loop import DivergedError, TrainSettings, train
from gat.training.methods import GAT, Method, Standard, Tools
from tests.small_runs import QUICK, TASK, Killed, assert_equal, rows, run, until
from tests.toys import Blobs, conv_classifier


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adamw"},
        {"optimizer": "adamw", "ema_decay": 0.8},
        {"optimizer": "sgd", "momentum": 0.9, "accumulate": 2},
        {"optimizer": "sgd", "momentum": 0.0, "ema_decay": 0.5},
        {"optimizer": "adamw", "interpolate": 0.7},
    ],
    ids=lambda o: "-".join(map(str, o.values())),
)
@pytest.mark.parametrize("killed_at", [2, 8])
def test_a_killed_run_ends_bit_equal_to_one_that_was_not(tmp_path, accelerator, options, killed_at):
    settings = TrainSettings(steps=11, lr=0.01, **QUICK, **options)
    whole = run(tmp_path / "whole", accelerator, settings)
    with pytest.raises(Killed):
        run(tmp_path / "killed", accelerator, settings, until(Standard(), killed_at))
    start = (
        0 if killed_at < 3 else 1
    )  # nothing was saved before step 3; after that the given weights do not matter
    resumed = run(tmp_path / "killed", accelerator, settings, start=start)
    assert_equal(resumed, whole)
    ours, theirs = rows(tmp_path / "killed"), rows(tmp_path / "whole")
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]  # none twice, none missing
    assert ours[-1]["lr"] == theirs[-1]["lr"]


def killed_and_whole(
    folder: Path, accelerator: Accelerator, method: Method, tools: Tools, drawn: Any = None
) -> tuple[nn.Module, nn.Module]:
    """The model of a run that was killed and went on, and that of one that was not."""
    settings = TrainSettings(steps=4, lr=0.01, batch_size=4, warmup_steps=1, log_every=1, save_every=2)

    def go(name: str, method: Method, start: int) -> nn.Module:
        data = Blobs(n=12, side=16)
        return run(
            folder / name, accelerator, settings, method, data=data, tools=tools, start=start, drawn=drawn
        )

    whole = go("whole", method, 0)
    with pytest.raises(Killed):
        go("killed", until(method, 3), 0)
    return go("killed", method, 1), whole


def test_whatever_the_method_a_killed_run_ends_bit_equal(tmp_path, accelerator, tools, small_method):
    killed, whole = killed_and_whole(tmp_path, accelerator, small_method, tools)
    assert_equal(killed, whole)
    assert killed.state_dict().keys() == conv_classifier().state_dict().keys()


@pytest.mark.parametrize(
    "options",
    [
        {"train_on": "trajectory", "turns_per_step": 2},
        {"consistency": 1.0, "weight": 0.5},
        {"batch_norm": "auxiliary"},
        {"train_on": "iterates", "only_fooling": False},
        {"train_on": "iterates", "only_fooling": False, "in_step": True},
    ],
    ids=lambda o: next(iter(o)),
)
def test_so_does_one_of_gat_with_its_options(tmp_path, accelerator, tools, options):
    steps = {"max_steps": 2, "stop_when_fooled": False} if "in_step" in options else {"max_steps": 3}
    attack = LatentAttack(step_size={"style/*": 0.2, "noise/*": 1.0}, **steps)
    method = GAT(attack=attack, rotation=(("fine", "noise"), ("all", "both")), **options)
    killed, whole = killed_and_whole(tmp_path, accelerator, method, tools)
    assert_equal(killed, whole)
    assert all("adversarial_share" in row for row in rows(tmp_path / "whole"))


def test_so_does_one_that_draws_other_examples_than_it_learns_from(tmp_path, accelerator, tools):
    attack = LatentAttack(step_size={"style/*": 0.2, "noise/*": 1.0}, max_steps=3)
    method = GAT(attack=attack, rotation=(("fine", "noise"), ("all", "both")))
    others = Blobs(n=9, side=16)
    killed, whole = killed_and_whole(tmp_path, accelerator, method, tools, others)
    assert_equal(killed, whole)
    _, usual = killed_and_whole(tmp_path / "usual", accelerator, method, tools)
    with pytest.raises(AssertionError, match="not bit-equal"):
        assert_equal(whole, usual)


def test_a_start_that_was_not_saved_is_missed(tmp_path, accelerator):
    settings = TrainSettings(steps=3, **QUICK)
    run(tmp_path, accelerator, settings)
    with pytest.raises(
        ValueError, match=r"state\.pt is of a run with other settings and has no start; choose another folder"
    ):
        run(tmp_path, accelerator, settings.model_copy(update={"interpolate": 0.5}))


def test_a_checkpoint_within_an_attack_in_step_is_refused(tmp_path, accelerator, tools):
    attack = LatentAttack(stop_when_fooled=False, max_steps=4)
    method = GAT(attack=attack, train_on="iterates", only_fooling=False, in_step=True)
    with pytest.raises(
        ValueError, match=r"gat attacks the same images for 4 steps .* multiple of that as save_every, got 6"
    ):
        run(tmp_path, accelerator, TrainSettings(steps=8, save_every=6), method, tools=tools)


def test_a_finished_run_is_not_trained_further(tmp_path, accelerator):
    settings = TrainSettings(steps=4, lr=0.01, **QUICK)
    first = run(tmp_path, accelerator, settings)
    log = (tmp_path / "metrics.jsonl").read_text()
    again = run(tmp_path, accelerator, settings, until(Standard(), 0), start=1)
    assert_equal(again, first)
    assert (tmp_path / "metrics.jsonl").read_text() == log


@pytest.mark.parametrize("save_every", [1, 2, 3])
def test_a_loss_that_is_no_number_stops_the_run_and_leaves_the_saved_state_intact(
    tmp_path, accelerator, save_every
):
    settings = TrainSettings(steps=20, lr=0.01, batch_size=8, log_every=5, save_every=save_every)
    with pytest.raises(
        DivergedError, match=r"train: .* at step \d+; lower lr.*The last checkpoint is intact"
    ):
        run(tmp_path, accelerator, settings, until(Standard(), 6, lambda images: images * float("nan")))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] <= 6
    assert all(value.isfinite().all() for value in state["model"].values())
    model = run(tmp_path, accelerator, settings)  # goes on from there, and gets to the end
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert rows(tmp_path)[-1]["step"] == 20


def test_weights_that_are_no_numbers_are_not_saved(tmp_path, accelerator):
    """The loss of a step is finite, its gradient is not: the next checkpoint must not replace the last good one."""

    class Cliff(nn.Module):
        """Its gradient becomes NaN at the fourth step, its output stays finite."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.calls = conv_classifier(), 0

        def forward(self, images):
            self.calls += 1
            logits = self.body(images)
            return logits if self.calls < 5 else logits + 0 * (logits - logits).sqrt().nan_to_num()

    settings = TrainSettings(steps=12, lr=0.01, batch_size=8, log_every=1, save_every=1)
    with pytest.raises(DivergedError):
        train(Cliff(), Blobs(), Standard(), Tools(TASK), settings, accelerator, tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert all(value.isfinite().all() for value in state["model"].values())


def test_the_state_of_other_settings_is_refused(tmp_path, accelerator):
    run(tmp_path, accelerator, TrainSettings(steps=3, **QUICK))
    before = (tmp_path / "state.pt").read_bytes()
    for changed in ({"batch_size": 4}, {"ema_decay": 0.5}, {"optimizer": "sgd"}):
        with pytest.raises(
            ValueError, match=r"state\.pt is of a run with .*choose another folder or remove it"
        ):
            run(tmp_path, accelerator, TrainSettings(steps=3, **(QUICK | changed)))
    assert (tmp_path / "state.pt").read_bytes() == before


def test_a_hostile_state_is_not_executed(tmp_path, accelerator):
    class Payload:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'owned')!r}, 'w')",)

    torch.save({"step": 0, "model": Payload()}, tmp_path / "state.pt")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        run(tmp_path, accelerator, TrainSettings(steps=1, **QUICK))
    assert not (tmp_path / "owned").exists()
