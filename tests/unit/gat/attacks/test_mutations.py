"""The laws have teeth: an attack that is broken on purpose breaks the law that it should."""

import pytest
import torch

from gat.attacks import PGD, ascent, steps
from gat.attacks.ascent import Slots
from gat.attacks.steps import Steps
from tests.laws import LAWS


def wrong_sign(patch: pytest.MonkeyPatch) -> None:
    honest = Steps.__call__
    patch.setattr(
        Steps, "__call__", lambda self, x, g, start: honest(self, x, {k: -v for k, v in g.items()}, start)
    )


def does_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Steps, "__call__", lambda self, x, g, start: dict(x))


def no_projection(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Steps, "confine", lambda self, name, x, start: x.clamp(0, 1))


def no_clipping(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        Steps, "confine", lambda self, name, x, start: steps.project(x, start, self.eps[name], self.norm)
    )


def l1_ball_left_before_the_range(patch: pytest.MonkeyPatch) -> None:
    """What is cut by the range is not spent elsewhere."""
    honest = steps._project_l1
    patch.setattr(
        steps, "_project_l1", lambda x, center, eps, bounds: honest(x, center, eps, None).clamp(*bounds)
    )


def last_for_best(patch: pytest.MonkeyPatch) -> None:
    honest = Slots.keep
    patch.setattr(Slots, "keep", lambda self, loss, fooled, keep: honest(self, loss, fooled, "last"))


def half_the_step(patch: pytest.MonkeyPatch) -> None:
    honest = Steps.__call__

    def mutant(self, x, g, start):
        full = honest(self, x, g, start)
        return {name: x[name] + 0.3 * (full[name] - x[name]) for name in x}

    patch.setattr(Steps, "__call__", mutant)


def one_norm_for_the_whole_batch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(steps, "l2_norm", lambda x: x.norm().expand(len(x)))


def loss_reduced_over_the_batch(patch: pytest.MonkeyPatch) -> None:
    """Everyone's gradient is the sum of all."""
    honest = ascent.gradient

    def mutant(objective, latents, rows, scale):
        found, loss, fooled = honest(objective, latents, rows, scale)
        return {name: g.sum(0, keepdim=True).expand_as(g) for name, g in found.items()}, loss, fooled

    patch.setattr(ascent, "gradient", mutant)


def rows_mixed_up(patch: pytest.MonkeyPatch) -> None:
    """The results of the slots go to the wrong examples."""
    honest = Slots.write

    def mutant(self, slots, result):
        self.rows = self.rows.flip(0)
        honest(self, slots, result)

    patch.setattr(Slots, "write", mutant)


def noise_by_position(patch: pytest.MonkeyPatch) -> None:
    """Random starts that depend on the place in the batch."""
    patch.setattr(PGD, "_noise", lambda self, x, ids, restart: (torch.rand(x.shape) * 2 - 1) * self.eps)


MUTANTS = {
    wrong_sign: {"optimum linf", "optimum l2", "optimum l1", "planted weakness", "best iterate"},
    does_nothing: {"optimum linf", "optimum l2", "optimum l1", "planted weakness", "best iterate"},
    no_projection: {"ball linf", "ball l2", "ball l1", "optimum linf", "optimum l2", "optimum l1"},
    no_clipping: {"range linf", "range l2", "range l1"},
    l1_ball_left_before_the_range: {"box l1"},
    last_for_best: {"best iterate"},
    half_the_step: {"optimum linf"},
    one_norm_for_the_whole_batch: {"optimum l2", "independence l2"},
    loss_reduced_over_the_batch: {"optimum linf", "optimum l2"},
    rows_mixed_up: {"optimum linf", "optimum l2", "independence linf", "independence l2", "independence l1"},
    noise_by_position: {"independence l2"},
}


@pytest.mark.parametrize("law", LAWS)
def test_the_real_attack_keeps_the_law(law: str):
    LAWS[law]()


@pytest.mark.parametrize(
    ("mutant", "law"),
    [(mutant, law) for mutant, laws in MUTANTS.items() for law in sorted(laws)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_broken_attack_breaks_the_law(mutant, law: str, monkeypatch: pytest.MonkeyPatch):
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        LAWS[law]()


def test_every_law_catches_some_mutant():
    assert set().union(*MUTANTS.values()) == set(LAWS)
