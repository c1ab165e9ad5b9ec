"""The benchmark against the peers: what it counts. No times are judged."""

import json
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from gat.attacks import FGSM, PGD


def linf(model: nn.Module, images: Tensor, attacked: Tensor) -> Tensor:
    return (attacked.double() - images.double()).abs().flatten(1).amax(1)


def l2(model: nn.Module, images: Tensor, attacked: Tensor) -> Tensor:
    return (attacked.double() - images.double()).flatten(1).norm(dim=1)


def contest(script: ModuleType, **changes: object) -> object:
    settings = {
        "name": "fgsm",
        "ours": FGSM(eps=0.02),
        "peers": {"still": lambda model, images, labels: images},
        "settings": "linf 0.02",
        "bound": 0.02,
        "distance": linf,
    }
    return script.Contest(**(settings | changes))


def test_a_row_says_who_is_stronger_and_who_is_faster(
    script: ModuleType, model: nn.Module, images: Tensor, labels: Tensor
) -> None:
    def slow(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        time.sleep(0.3)
        return images

    labels = labels.clone()
    labels[7] = 1  # wrong from the start: withstood by nobody
    (row,) = script.hold(
        contest(script, peers={"slow": slow}), "trained", model, images, labels, width=4, repeats=2, seed=0
    )
    # An FGSM step of 0.02 takes 0.04 from the difference of the halves, and the rows' differences rise by 0.0123 from 0.004.
    assert row["ours_accuracy"] == 4 / 8
    assert row["peer_accuracy"] == row["clean_accuracy"] == 7 / 8
    assert row["ratio"] > 1 and row["peer_examples_per_sec"] < 8 / 0.6
    assert (row["attack"], row["model"], row["peer"], row["n"], row["repeats"]) == (
        "fgsm",
        "trained",
        "slow",
        8,
        2,
    )


def test_an_image_that_fools_beyond_the_bound_counts_as_withstood(
    script: ModuleType, model: nn.Module, images: Tensor, labels: Tensor
) -> None:
    flipped = images.flip(3)
    assert (model(flipped).argmax(1) == 1).all()
    verdicts, far = script.judge(contest(script), model, images, labels, flipped)
    assert verdicts.all()
    assert (far > 0.02).all() and far.isfinite().all()
    unbounded = contest(script, bound=None, distance=None)
    assert not script.judge(unbounded, model, images, labels, flipped)[0].any()
    assert script.judge(unbounded, model, images, labels, flipped - 1)[0].all(), "beyond [0, 1]"


def test_our_attack_is_not_measured_if_it_breaks_its_bound(
    script: ModuleType, model: nn.Module, images: Tensor, labels: Tensor
) -> None:
    class Bold(PGD):
        @property
        def bounds(self) -> dict[str, float]:
            return {"linf_pixels": self.eps / 2}

    with pytest.raises(RuntimeError, match="pgd broke its bound: linf_pixels"):
        script.run_ours(Bold(eps=0.02), model, images, labels, 4, 0)


def test_dear_contests_take_a_share_of_the_examples_and_few_repeats(
    script: ModuleType, model: nn.Module, images: Tensor, labels: Tensor
) -> None:
    (row,) = script.hold(
        contest(script, share=0.5, repeats=1), "trained", model, images, labels, width=4, repeats=3, seed=0
    )
    assert (row["n"], row["repeats"]) == (4, 1)


def test_the_median_distance_counts_what_was_not_found_as_infinitely_far(
    script: ModuleType, model: nn.Module, images: Tensor, labels: Tensor
) -> None:
    def some(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        moved = images.clone()
        moved[:3] = images[:3].flip(3)
        return moved

    def rows(peer: object) -> dict[str, object]:
        smallest = contest(script, peers={"some": peer}, smallest_change=True, bound=0.01, distance=l2)
        return script.hold(smallest, "trained", model, images, labels, width=8, repeats=1, seed=0)[0]

    assert rows(some)["peer_median_distance"] is None
    everything = l2(model, images, images.flip(3)).sort().values
    assert rows(lambda model, images, labels: images.flip(3))["peer_median_distance"] == pytest.approx(
        float(everything[4]), abs=1e-4
    )


def test_the_benchmark_goes_on_where_it_stopped(
    script: ModuleType, model: nn.Module, images: Tensor, labels: Tensor, tmp_path: Path
) -> None:
    calls: list[str] = []

    def counted(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        calls.append("")
        return images

    chosen = [contest(script, name=name, peers={"counted": counted}) for name in ("a", "b")]
    settings = {"width": 8, "fingerprint": script.fingerprint({"m": model}), "seeds": [0]}

    def save(rows: list[dict[str, object]]) -> None:
        script.write_results({**settings, "contests": rows}, tmp_path)
        if len(calls) == 3:
            raise KeyboardInterrupt

    def bench(known: object) -> list[dict[str, object]]:
        models = {"undefended": model, "trained": model}
        return script.bench(
            models, images, labels, chosen, width=8, repeats=1, seed=0, known=known, save=save
        )

    with pytest.raises(KeyboardInterrupt):
        bench([])
    rows = bench(script.known_rows(tmp_path, settings))
    assert len(calls) == 4
    assert [(row["attack"], row["model"]) for row in rows] == [
        ("a", "undefended"),
        ("a", "trained"),
        ("b", "undefended"),
        ("b", "trained"),
    ]
    assert script.known_rows(tmp_path, settings | {"width": 4}) == []
    written = json.loads((tmp_path / "table.json").read_text())
    assert written["contests"] == rows
    assert {
        "task", "attack", "protocol", "n", "seeds", "model", "metric", "value", "low", "high",
    } == written["rows"][0].keys()  # fmt: skip
    assert {row["metric"] for row in written["rows"]} == {
        "throughput_ratio_to_counted", "accuracy_ours", "accuracy_counted",
    }  # fmt: skip


def test_a_change_of_weights_is_noticed(script: ModuleType, model: nn.Module) -> None:
    before = script.fingerprint({"m": model})
    assert script.fingerprint({"m": model}) == before
    with torch.no_grad():
        model.scale.add_(1e-6)
        model.maps.weight[0, 0, 0, 0] += 1e-6
    assert script.fingerprint({"m": model}) != before


@pytest.mark.parametrize("name", ["bench_peers.py", "contests.py", "published_loops.py", "pgd.py"])
def test_rows_are_not_used_again_once_the_code_behind_them_changed(
    script: ModuleType, model: nn.Module, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before, read = script.fingerprint({"m": model}), Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"#" * (path.name == name))
    assert script.fingerprint({"m": model}) != before


# Everything, at its smallest.


@pytest.mark.slow
def test_every_contest_is_held(
    script: ModuleType, model: nn.Module, images: Tensor, labels: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    from tasks.models.small_resnet import SmallResNetConfig

    small = SmallResNetConfig(widths=(8, 8), blocks=(1, 1)).build(10, 16).eval()
    labels = small(images).argmax(1)
    chosen = [c for c in script.contests() if c.name != "autoattack"]
    rows = script.bench({"undefended": small}, images[:2], labels[:2], chosen, width=2, repeats=1, seed=0)
    assert {row["attack"] for row in rows} == {
        "pgd-20", "pgd-40", "apgd", "deepfool", "cw", "spatial", "recolor", "ppgd-0.5", "lpa-0.5", "ppgd-1", "lpa-1",
    }  # fmt: skip
    for row in rows:
        assert {
            "attack", "model", "peer", "ratio", "ours_accuracy", "peer_accuracy", "n", "repeats", "settings",
            "ours_examples_per_sec", "peer_examples_per_sec",
        } <= row.keys()  # fmt: skip
        assert row["ratio"] > 0
        assert 0 <= row["ours_accuracy"] <= row["clean_accuracy"] == 1
        assert 0 <= row["peer_accuracy"] <= 1
    json.dumps(rows)
    script.show(rows)
    printed = capsys.readouterr().out
    assert "torchattacks" in printed and "published loop" in printed


def test_a_tiny_pair_is_trained_and_the_images_do_not_depend_on_the_order(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        script,
        "tiny_pair",
        lambda seed, data: {name: nn.Flatten() for name in script.MODELS},
    )
    models, images, labels = script.prepare(None, None, 5, 0)
    assert list(models) == ["undefended", "trained"]
    assert images.shape == (5, 3, 32, 32) and labels.shape == (5,)
    assert torch.equal(images, script.prepare(None, None, 5, 0)[1])
    assert not torch.equal(images, script.prepare(None, None, 5, 1)[1])


def test_tiny_pair_differs_by_its_second_training(script: ModuleType) -> None:
    data = [{"images": torch.rand(3, 32, 32), "labels": i % 10, "ids": i} for i in range(20)]
    models = script.tiny_pair(0, data, steps=(1, 1))
    assert set(models) == {"undefended", "trained"}
    assert not any(model.training for model in models.values())
    first, second = (torch.cat([p.flatten() for p in model.parameters()]) for model in models.values())
    assert not torch.equal(first, second)
