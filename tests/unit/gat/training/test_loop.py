"""The loop: it learns, reports what it does, and refuses what does not fit."""

import math
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import nn

from gat.training.batches import EndlessBatches
from gat.training.loop import TrainSettings, train
from gat.training.methods import TRADES, Batch, Lesson, Method, Standard, Tools
from tasks.classification import ClassificationTask
from tests.small_runs import QUICK, TASK, assert_equal, rows, run
from tests.toys import CLASSES, Blobs, conv_classifier


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


def test_steps_that_belong_together_meet_the_model_as_it_is_by_then(tmp_path, accelerator, tools):
    """Also behind a number of steps that they do not divide."""
    seen: list[tuple[list[int], bytes]] = []

    class Watched(Standard):
        @property
        def steps_at_once(self):
            return 3

        def lessons(self, tools, model, batches, keys):
            for lesson in super().lessons(tools, model, batches, keys):
                seen.append((list(keys), model[0].weight.detach().numpy().tobytes()))
                yield lesson

    method = Watched()
    data = Blobs(n=12, side=16)
    for steps in (4, 8):  # the second run goes on behind the first one's last step
        settings = TrainSettings(steps=steps, batch_size=4, lr=0.01, save_every=3)
        run(tmp_path, accelerator, settings, method, data=data, tools=tools)
    wanted = [[0, 1, 2], [3], [4, 5], [6, 7]]
    assert [keys for keys, _ in seen] == [keys for keys in wanted for _ in keys]
    assert len({weights for _, weights in seen}) == 8


def test_what_is_drawn_comes_in_an_order_of_its_own_and_only_if_somebody_draws(tmp_path, accelerator):
    seen: list[tuple[int, list[int]]] = []

    class Drawing(Standard):
        def num_drawn(self, num_clean: int) -> int:
            return num_clean // 2

        def lesson(self, tools: Tools, model: nn.Module, batch: Batch, key: int) -> Lesson:
            assert batch.drawn is not None
            seen.append((len(batch.images), batch.drawn.labels.tolist()))
            return super().lesson(tools, model, batch, key)

    class Numbered(Blobs):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return {**super().__getitem__(index), "labels": index}

    class NeverRead(Blobs):
        def __getitem__(self, index: int) -> dict[str, Any]:
            raise AssertionError

    settings = TrainSettings(steps=3, **QUICK)
    drawing = run(tmp_path / "drawing", accelerator, settings, Drawing(), drawn=Numbered(n=12))
    order = EndlessBatches(12, 4, seed=0)
    assert seen == [(8, rows) for rows in islice(order, 3)]
    assert sorted(row for _, rows in seen for row in rows) == list(range(12))
    plain = run(tmp_path / "plain", accelerator, settings, drawn=NeverRead())
    assert_equal(drawing, plain)


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


def test_the_seed_decides_the_run(tmp_path, accelerator):
    settings = TrainSettings(steps=4, lr=0.01, **QUICK)
    a, b, c = (
        run(tmp_path / name, accelerator, settings, seed=s) for name, s in (("a", 0), ("b", 0), ("c", 1))
    )
    assert_equal(a, b)
    assert not torch.equal(a[0].weight, c[0].weight)


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
