"""From models to the page: a defect that flatters a model is planted, evaluated, and doubted; a sound model is not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from gat.attacks import PGD
from gat.evaluation.evaluate import evaluate
from gat.evaluation.plan import EvaluationSettings
from gat.evaluation.records import read_records, write_records
from gat.report.checks import check
from gat.report.folder import read_run
from gat.training.methods import Tools
from tasks.classification import ClassificationTask
from tests.toys import CLASSES, Blobs, linear_classifier

SIDE, EPS = 4, 0.12
SETTINGS = EvaluationSettings(
    attacks={
        "pgd": PGD(eps=EPS, steps=6),
        "pgd-random": PGD(eps=EPS, steps=0),
        "pgd-long": PGD(eps=EPS, steps=12),
        "pgd-unbounded": PGD(eps=1.0, steps=10),
    },
    budgets=(0.9,),
    num_real=400,
    num={"pgd-*": 100},
    width=400,
    transfer="pgd",
    num_pictures=2,
)


def colours() -> nn.Module:
    """The brightest colour on average: the best answer there is for `Blobs`."""
    weights = torch.eye(3).repeat_interleave(SIDE * SIDE, dim=1) * 8 / SIDE**2
    return linear_classifier(weights).eval()


class Then(nn.Module):
    """The sound classifier with something before or behind it."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.classifier, self.change = colours(), change

    def forward(self, images: Tensor) -> Tensor:
        return self.change(self.classifier(images))


def masked(outputs: Tensor) -> Tensor:
    """The same answers without a gradient: every logit rounded."""
    return (outputs * 100).round()


def misleading(outputs: Tensor) -> Tensor:
    """The same answers with the gradient turned around."""
    return 2 * outputs.detach() - outputs


def noisy(outputs: Tensor) -> Tensor:
    return outputs + 0.05 * torch.randn_like(outputs)


def doubts_of(model: nn.Module, folder: Path, **settings: object) -> list[str]:
    """What the report says about this model beside an ordinary one."""
    tools = Tools(ClassificationTask(CLASSES))
    chosen = SETTINGS.model_copy(update=settings)
    models = {"original": colours(), "odd": model}
    evaluate(models, Blobs(400, side=SIDE), tools, chosen, Accelerator(cpu=True), folder)
    return [
        f"{doubt.level}: {doubt.text}"
        for doubt in check(read_run(folder))
        if not any(words in doubt.text for words in ("is missing", "independent oracle"))
        and doubt.level != "note"
    ]


def test_a_sound_model_raises_no_doubt(tmp_path):
    assert doubts_of(colours(), tmp_path) == []
    accuracy = [r.correct for r in read_records(tmp_path / "records.jsonl") if r.attack == "pgd"]
    assert 0.1 < sum(accuracy) / len(accuracy) < 0.9  # or nothing would be shown


@pytest.mark.parametrize(
    "change, words",
    [
        (masked, ["gives a gradient that is zero", "of the gradients were zero", "without a bound", "beaten by the images that"]),
        (misleading, ["without a bound", "beaten by the images that"]),
        (noisy, ["answers the same image differently"]),
        (lambda outputs: outputs.softmax(1), ["returns probabilities, not logits"]),
    ],
    ids=["masked", "misleading", "noisy", "softmax"],
)  # fmt: skip
def test_a_planted_defect_is_doubted(change, words, tmp_path):
    found = doubts_of(Then(change), tmp_path)
    for some in words:
        assert any(some in text and "odd" in text for text in found), (some, found)
    assert not [text for text in found if "Original" in text and "odd" not in text]


def test_an_attack_that_chance_beats_is_doubted(tmp_path):
    attacks = {"pgd": PGD(eps=0.25, steps=6, random_start=False), "pgd-random": PGD(eps=0.25, steps=0)}
    blurred = Then(lambda outputs: (outputs * 100).round() + 400 * torch.sin(outputs.detach() * 900))
    found = doubts_of(blurred, tmp_path, attacks=attacks, budgets=(), transfer=None)
    assert any("odd is beaten by the same change, drawn at random" in text for text in found), found
    assert not any("Original is beaten" in text for text in found)


def test_an_attack_that_stops_too_early_has_not_converged(tmp_path):
    attacks = {"pgd": PGD(eps=EPS, steps=1, step_size=EPS / 20), "pgd-long": SETTINGS.attacks["pgd-long"]}
    found = doubts_of(colours(), tmp_path, attacks=attacks, budgets=(), transfer=None)
    assert len([text for text in found if "has not converged" in text]) == 2


def test_more_steps_or_a_larger_budget_that_help_the_model_are_doubted(tmp_path):
    doubts_of(colours(), tmp_path)
    records = read_records(tmp_path / "records.jsonl")
    write_records(
        tmp_path / "records.jsonl",
        [
            type(r)(**{**vars(r), "prediction": r.label, "success": False})
            if r.attack in ("pgd-long", "pgd")
            else r
            for r in records
            if r.attack != "pgd-long" or r.model == "odd"
        ],
    )
    texts = [doubt.text for doubt in check(read_run(tmp_path))]
    assert sum("weaker at ×1 of its budget than at ×0.9" in text for text in texts) == 2
    swapped = [
        type(r)(**{**vars(r), "attack": {"pgd": "pgd-long", "pgd-long": "pgd"}.get(r.attack, r.attack)})
        for r in records
    ]
    fewer = [r for r in swapped if not (r.attack == "pgd-long" and r.id % 2)]
    held = [
        type(r)(**{**vars(r), "prediction": r.label, "success": False}) if r.attack == "pgd-long" else r
        for r in fewer
    ]
    write_records(tmp_path / "records.jsonl", held)
    texts = [doubt.text for doubt in check(read_run(tmp_path))]
    assert sum("is weaker with more steps" in text for text in texts) == 2
