"""The benchmark on scenes compares like with like, too."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.utils.data import default_collate

from gat.attacks import LatentAttack
from tasks.segmentation import SegmentationTask
from tests.toys import tiny_scenes, tiny_spade


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Random, and moved by what it sees."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16, affine=False, momentum=None), nn.Conv2d(16, 16, 1)
    ).eval()


def setting_of(
    script: ModuleType,
    model: nn.Module,
    group: str = "fine",
    n: int = 9,
    step_size: float = 0.2,
    use_vae: bool = False,
):
    """Labels are the model's own answers to the renderings, but for a few scenes: some scenes withstand, some do not."""
    space, batch = tiny_spade(use_vae=use_vae), default_collate([tiny_scenes(num=n)[i] for i in range(n)])
    start = space.sample(batch["layouts"], batch["ids"], seed=0)
    with torch.no_grad():
        images = space.freeze(start, list(space.sites))(
            {name: start[name] for name in space.sites}, torch.arange(n)
        )
        labels = model(images).argmax(1)
    sizes = {"gamma/*": step_size, "beta/*": step_size}
    attack = LatentAttack(group=group, step_size=sizes, max_steps=3)
    names = [str(i) for i in range(16)]
    after = attack.model_copy(update={"stop_when_fooled": False}).run(
        SegmentationTask(names, fooled_at=0.0), model, space, start, labels
    )
    halfway = SegmentationTask(names).score(after.predictions, labels).median() + 1e-4
    labels[::4] = (labels[::4] + 1) % 16
    task = SegmentationTask(names, fooled_at=float(halfway))
    return script.Setting(task, space, attack, batch["layouts"], labels, start, 4)


@pytest.mark.parametrize(("group", "use_vae"), [("fine", False), ("all", False), ("fine", True)])
def test_all_loops_find_the_same(script: ModuleType, model: nn.Module, group: str, use_vae: bool):
    setting = setting_of(script, model, group, use_vae=use_vae)
    chain = script.variants(setting, model)
    found = [variant.run(torch.arange(9)) for variant in chain]
    assert found[0].attacked.tolist() == [i % 4 != 0 for i in range(9)]
    assert 0 < found[0].success.sum() < found[0].attacked.sum(), "the test should see both outcomes"
    for variant, other in zip(chain, found, strict=True):
        assert torch.equal(other.attacked, found[0].attacked), variant.name
        assert torch.equal(other.success, found[0].success), variant.name
        assert torch.equal(other.iterations[other.attacked], found[0].iterations[other.attacked]), (
            variant.name
        )


def test_the_report_has_what_it_promises(script: ModuleType, model: nn.Module, tmp_path: Path):
    setting = setting_of(script, model, n=4)
    result = script.bench(setting, {"undefended": model, "trained": model}, repeats=2) | script.machine()
    result["seeds"] = [0]
    script.write_results(result, tmp_path, "segmentation")
    written = json.loads((tmp_path / "table.json").read_text())
    assert {row["task"] for row in written["rows"]} == {"segmentation"}
    for name in ("undefended", "trained"):
        assert written[f"success_agrees_{name}"] and written[f"ratio_{name}"] > 0
        gain = 1.0
        for row in written["ideas"]:
            if row["model"] == name:
                gain *= row["ratio_to_previous"] or 1
        assert gain == pytest.approx(written[f"ratio_{name}"], rel=0.05), "the ideas multiply to the whole"
    assert "label branch once" in script.show(result)


def test_an_attack_the_straightforward_loop_does_not_do_is_refused(script: ModuleType, model: nn.Module):
    setting = setting_of(script, model, n=4)
    aimed = replace(setting, attack=setting.attack.model_copy(update={"goal": "targeted"}))
    with pytest.raises(ValueError, match="sign steps, without targets"):
        script.bench(aimed, {"undefended": model}, repeats=1)
