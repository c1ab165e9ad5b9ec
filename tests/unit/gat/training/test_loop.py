"""The loop: it learns, it stops where it should, and a run that was killed ends bit-equal to one that was not."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from gat.attacks import LatentAttack
from gat.training.loop import DivergedError, TrainSettings, train
from gat.training.methods import GAT, TRADES, Batch, Lesson, Method, Standard, Tools
from tasks.classification import ClassificationTask
from tests.toys import CLASSES, Blobs, conv_classifier

TASK = ClassificationTask(CLASSES)
QUICK = {"batch_size": 8, "warmup_steps": 2, "log_every": 2, "save_every": 3}


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def run(
    folder: Path,
    accelerator: Accelerator,
    settings: TrainSettings,
    method: Any = None,
    seed: int = 0,
    **options: Any,
):
    """Train a new model; `start` seeds its weights."""
    data, tools = options.get("data") or Blobs(), options.get("tools") or Tools(TASK)
    model = conv_classifier(seed=options.get("start", 0))
    return train(model, data, method or Standard(), tools, settings, accelerator, folder, seed)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_equal(a: nn.Module, b: nn.Module) -> None:
    one, other = a.state_dict(), b.state_dict()
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, f"not bit-equal: {different}"


class Killed(Exception):
    """The machine went away."""


class Until(Method):
    """A method that is killed in the middle of a step, or teaches damaged images from there on."""

    name: str = "until"
    method: Method
    step: int
    damage: Any = None

    @property
    def kept_branch(self) -> Any:
        return self.method.kept_branch

    @property
    def steps_at_once(self) -> int:
        return self.method.steps_at_once

    def lesson(self, tools: Tools, model: nn.Module, batch: Batch, key: int) -> Lesson:
        raise AssertionError("not asked for")

    def lessons(
        self, tools: Tools, model: nn.Module, batches: Sequence[Batch], keys: Sequence[int]
    ) -> list[Lesson]:
        if self.step in keys and self.damage is None:
            raise Killed
        lessons = self.method.lessons(tools, model, batches, keys)
        return [
            replace(lesson, images=self.damage(lesson.images)) if key >= self.step else lesson
            for key, lesson in zip(keys, lessons, strict=True)
        ]


def until(method: Method, step: int, damage: Any = None) -> Until:
    return Until(method=method, step=step, damage=damage)


def test_a_toy_data_set_is_learned(tmp_path, accelerator):
    model = run(tmp_path, accelerator, TrainSettings(steps=40, batch_size=16, lr=0.02, warmup_steps=5))
    test = Blobs(60, seed=1)
    accuracy = (model.eval()(test.images).argmax(1) == test.labels).float().mean()
    assert accuracy > 0.95
    logged = rows(tmp_path)
    assert logged[-1]["loss"] < 0.5 * logged[0]["loss"]


def test_reports_are_finite_and_where_they_should_be(tmp_path, accelerator):
    run(tmp_path, accelerator, TrainSettings(steps=7, lr=0.01, **QUICK))
    logged = rows(tmp_path)
    assert [row["step"] for row in logged] == [2, 4, 6, 7]
    for row in logged:
        assert row["stage"] == "train"
        assert all(math.isfinite(value) for name, value in row.items() if name != "stage")
        assert {"loss", "loss_clean", "lr", "images_per_sec"} <= row.keys()


def test_the_clean_loss_is_that_of_images_with_a_label_loss(tmp_path, accelerator):
    """Anchors, which stand among the clean images with weight 0, do not thin it."""

    class Anchored(Standard):
        def lesson(self, tools: Tools, model: nn.Module, batch: Batch, key: int) -> Lesson:
            plain, n = super().lesson(tools, model, batch, key), len(batch.images)
            return replace(
                plain,
                images=plain.images.repeat(2, 1, 1, 1),
                labels=plain.labels.repeat(2),
                num_clean=2 * n,
                weights=torch.arange(2 * n).lt(n).float(),
            )

    settings = TrainSettings(steps=1, **QUICK)
    for method in (Standard(), Anchored()):
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
        nn.init.constant_(model[1].weight, 0.01)
        nn.init.zeros_(model[1].bias)
        train(model, Blobs(), method, Tools(TASK), settings, accelerator, tmp_path / type(method).__name__)
    plain, anchored = (rows(tmp_path / name)[0] for name in ("Standard", "Anchored"))
    assert anchored["loss_clean"] == pytest.approx(plain["loss_clean"])
    assert anchored["loss"] == pytest.approx(plain["loss"])


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
    folder: Path, accelerator: Accelerator, method: Method, tools: Tools
) -> tuple[nn.Module, nn.Module]:
    """The model of a run that was killed and went on, and that of one that was not."""
    settings = TrainSettings(steps=4, lr=0.01, batch_size=4, warmup_steps=1, log_every=1, save_every=2)

    def go(name: str, method: Method, start: int) -> nn.Module:
        data = Blobs(n=12, side=16)
        return run(folder / name, accelerator, settings, method, data=data, tools=tools, start=start)

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
        {"train_on": "iterates", "ahead": 2, "only_fooling": False},
    ],
    ids=lambda o: next(iter(o)),
)
def test_so_does_one_of_gat_with_its_options(tmp_path, accelerator, tools, options):
    attack = LatentAttack(step_size={"style/*": 0.2, "noise/*": 1.0}, max_steps=3)
    method = GAT(attack=attack, rotation=(("fine", "noise"), ("all", "both")), **options)
    killed, whole = killed_and_whole(tmp_path, accelerator, method, tools)
    assert_equal(killed, whole)
    assert all("fooled_share" in row for row in rows(tmp_path / "whole"))


def test_trades_without_its_divergence_is_standard_training(tmp_path, accelerator):
    settings = TrainSettings(steps=4, lr=0.01, **QUICK)
    one = run(tmp_path / "trades", accelerator, settings, TRADES(beta=0))
    other = run(tmp_path / "standard", accelerator, settings)
    assert_equal(one, other)


def test_pulled_images_are_accumulated_with_their_anchors(tmp_path, accelerator):
    """Without batch norm and dropout a step of micro-batches is a step of the batch. One step: rounding apart, the attack of the
    second would see the same model, and the sign of a gradient near zero does not forgive that."""

    def go(folder: str, accumulate: int) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
        settings = TrainSettings(steps=1, lr=0.5, optimizer="sgd", accumulate=accumulate, **QUICK)
        method = TRADES(steps=2, start_noise=0.01)
        return train(model, Blobs(), method, Tools(TASK), settings, accelerator, tmp_path / folder)

    one, three = go("one", 1), go("three", 3)
    torch.testing.assert_close(one[1].weight, three[1].weight, rtol=1e-4, atol=1e-6)
    ours, theirs = rows(tmp_path / "one")[-1], rows(tmp_path / "three")[-1]
    for name in ("loss", "loss_clean", "loss_adversarial"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.5}], ids=["plain", "average"])
def test_interpolated_weights_lie_between_the_start_and_the_trained(tmp_path, accelerator, options):
    start = conv_classifier(seed=0).state_dict()
    settings = TrainSettings(steps=5, lr=0.01, **QUICK, **options)
    trained = run(tmp_path / "whole", accelerator, settings).state_dict()
    for share in (0.25, 1.0):
        some = settings.model_copy(update={"interpolate": share})
        found = run(tmp_path / str(share), accelerator, some).state_dict()
        assert found.keys() == trained.keys()
        for name, value in found.items():
            counted = not value.is_floating_point()
            wanted = trained[name] if counted else (1 - share) * start[name] + share * trained[name]
            torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-7)


def test_a_start_that_was_not_saved_is_missed(tmp_path, accelerator):
    settings = TrainSettings(steps=3, **QUICK)
    run(tmp_path, accelerator, settings)
    with pytest.raises(
        ValueError, match=r"state\.pt is of a run with other settings and has no start; choose another folder"
    ):
        run(tmp_path, accelerator, settings.model_copy(update={"interpolate": 0.5}))


def test_images_made_at_once_are_of_the_model_before_the_first_of_their_steps(tmp_path, accelerator, tools):
    """Also behind a number of steps that they do not divide."""
    seen: list[tuple[list[int], bytes]] = []

    class Watched(GAT):
        def lessons(self, tools, model, batches, keys):
            seen.append((list(keys), model[0].weight.detach().numpy().tobytes()))
            return super().lessons(tools, model, batches, keys)

    method = Watched(rotation=(("all", "both"),), ahead=3)
    data = Blobs(n=12, side=16)
    for steps in (4, 8):  # the second run goes on behind the first one's last step
        settings = TrainSettings(steps=steps, batch_size=4, lr=0.01, save_every=3)
        run(tmp_path, accelerator, settings, method, data=data, tools=tools)
    assert [keys for keys, _ in seen] == [[0, 1, 2], [3], [4, 5], [6, 7]]
    assert len({weights for _, weights in seen}) == 4


def test_a_checkpoint_between_images_made_at_once_is_refused(tmp_path, accelerator, tools):
    with pytest.raises(
        ValueError, match=r"gat makes the images of 4 steps at once .* multiple of that as save_every, got 6"
    ):
        run(tmp_path, accelerator, TrainSettings(steps=8, save_every=6), GAT(ahead=4), tools=tools)


def test_smooth_labels_are_for_training(tmp_path, accelerator):
    """At the start the loss of an untrained model says which one was used."""
    settings = TrainSettings(steps=1, **QUICK | {"log_every": 1})
    logged = {}
    for smoothing in (0.0, 0.5):
        tools = Tools(ClassificationTask(CLASSES, smoothing))
        run(tmp_path / str(smoothing), accelerator, settings, tools=tools)
        logged[smoothing] = rows(tmp_path / str(smoothing))[0]["loss"]
    assert logged[0.0] != pytest.approx(logged[0.5], rel=1e-3)


class Faulty(Blobs):
    """A data set that does not fit."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change = change

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.change(dict(super().__getitem__(index)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda item: item | {"images": item["images"] * 255}, "divide by 255"),
        (lambda item: item | {"images": item["images"] * 2 - 1}, r"must lie in \[0, 1\]"),
        (lambda item: item | {"labels": item["labels"] + 1}, "do they count from 1"),
        (lambda item: item | {"labels": float(item["labels"])}, "labels must be int64"),
    ],
    ids=["8-bit", "signed", "from one", "float"],
)
def test_a_data_set_that_does_not_fit_is_refused_at_once(tmp_path, accelerator, change, says):
    with pytest.raises(ValueError, match=says):
        run(tmp_path, accelerator, TrainSettings(steps=3, **QUICK), data=Faulty(change))
    assert not (tmp_path / "state.pt").exists()


@pytest.mark.parametrize(
    ("ending", "says"),
    [(nn.Softmax(1), "probabilities"), (nn.Linear(3, 4), r"got .*4")],
    ids=["softmax", "four"],
)
def test_a_model_that_does_not_fit_is_refused_at_once(tmp_path, accelerator, ending, says):
    model = nn.Sequential(conv_classifier(), ending)
    settings = TrainSettings(steps=3, **QUICK)
    with pytest.raises(ValueError, match=says):
        train(model, Blobs(), Standard(), Tools(TASK), settings, accelerator, tmp_path)


def test_a_finished_run_is_not_trained_further(tmp_path, accelerator):
    settings = TrainSettings(steps=4, lr=0.01, **QUICK)
    first = run(tmp_path, accelerator, settings)
    log = (tmp_path / "metrics.jsonl").read_text()
    again = run(tmp_path, accelerator, settings, until(Standard(), 0), start=1)
    assert_equal(again, first)
    assert (tmp_path / "metrics.jsonl").read_text() == log


def test_the_seed_decides_the_run(tmp_path, accelerator):
    settings = TrainSettings(steps=4, lr=0.01, **QUICK)
    a, b, c = (
        run(tmp_path / name, accelerator, settings, seed=s) for name, s in (("a", 0), ("b", 0), ("c", 1))
    )
    assert_equal(a, b)
    assert not torch.equal(a[0].weight, c[0].weight)


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


def test_accumulated_micro_batches_are_one_big_batch(tmp_path, accelerator):
    """Without batch norm and dropout, whose answers depend on the batch."""

    def go(folder: str, accumulate: int) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
        settings = TrainSettings(steps=5, lr=0.05, optimizer="sgd", accumulate=accumulate, **QUICK)
        return train(model, Blobs(), Standard(), Tools(TASK), settings, accelerator, tmp_path / folder)

    one, three = go("one", 1), go("three", 3)
    torch.testing.assert_close(one[1].weight, three[1].weight, rtol=1e-4, atol=1e-6)


def test_the_average_is_that_of_the_iterates(tmp_path, accelerator):
    seen = []

    class Watch(Method):
        name: str = "watch"

        def lesson(self, tools, model, batch, key):
            seen.append(model[6].weight.detach().clone())
            return Lesson(batch.images, batch.labels, len(batch.images))

    settings = TrainSettings(steps=6, lr=0.01, ema_decay=0.7, **QUICK)
    average = run(tmp_path, accelerator, settings, Watch())
    last = torch.load(tmp_path / "state.pt", weights_only=True)["model"]["6.weight"]
    expected = seen[1]
    for weights in [*seen[2:], last]:
        expected = 0.7 * expected + 0.3 * weights
    torch.testing.assert_close(average[6].weight, expected)


def test_no_step_is_possible_and_changes_nothing(tmp_path, accelerator):
    assert_equal(run(tmp_path, accelerator, TrainSettings(steps=0, batch_size=8)), conv_classifier())


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_learning_rate_is_a_closed_form_of_the_step(schedule):
    settings = TrainSettings(steps=110, lr=0.4, warmup_steps=10, schedule=schedule)
    assert [settings.lr_at(step) for step in (0, 4, 9)] == pytest.approx([0.04, 0.2, 0.4])
    share = {
        "cosine": [1, 0.5 + 0.25 * 2**0.5, 0.5, 0],
        "linear": [1, 0.75, 0.5, 0],
        "constant": [1, 1, 1, 1],
    }
    assert [settings.lr_at(step) / 0.4 for step in (10, 35, 60, 110)] == pytest.approx(share[schedule])
    rates = [settings.lr_at(step) for step in range(10, 110)]
    assert all(b <= a for a, b in zip(rates, rates[1:], strict=False))
    assert all(rate > 0 for rate in rates)


def test_a_run_that_is_all_warm_up_stays_finite():
    settings = TrainSettings(steps=5, warmup_steps=5, lr=1.0)
    assert [settings.lr_at(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
