"""Suites are what their names say, and their settings survive the way through a configuration."""

import pytest

from gat.attacks import LatentAttack
from gat.evaluation.plan import EvaluationSettings, kinds, protocol_id, protocols
from gat.evaluation.records import CONTROLS, control, controlled
from gat.evaluation.suites import SUITES, suite

PROTOCOLS = ("paper", "strict")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", SUITES)
def test_every_suite_survives_its_settings(name, protocol):
    chosen = suite(name, protocol)
    plain = {key: attack.model_dump(mode="json") for key, attack in chosen.attacks.items()}
    settings = EvaluationSettings.model_validate({"attacks": plain, "protocol": protocol, "num": chosen.num})
    assert settings.attacks == chosen.attacks
    assert all(found.startswith(protocol + "-") for found in protocols(settings))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", SUITES)
def test_judges_are_no_controls_and_every_control_doubts_one(name, protocol):
    chosen = suite(name, protocol, network="judge")
    assert set(chosen.judged) <= set(chosen.attacks)
    assert not [judge for judge in chosen.judged if control(judge)]
    doubted = [controlled(other) for other in chosen.attacks if control(other)]
    assert doubted
    assert set(doubted) <= set(chosen.judged)
    assert chosen.transfer in chosen.judged


def test_table2_asks_what_the_paper_asks():
    assert suite("table2").judged == ("gat", "pgd-linf", "spatial", "recolor", "perceptual")
    controls = {control(name) for name in suite("table2").attacks} - {None}
    assert controls == set(CONTROLS) - {"transfer", "start"}


def test_every_corruption_has_its_random_control():
    chosen = suite("unforeseen", "paper")
    assert chosen.judged == ("jpeg", "elastic", "fog", "snow", "gabor")
    for name in chosen.judged:
        assert chosen.attacks[f"{name}-random"].bounds == chosen.attacks[name].bounds
        assert "0 steps" in chosen.attacks[f"{name}-random"].summary


@pytest.mark.parametrize("name", SUITES)
def test_the_protocols_differ_but_not_in_their_bounds(name):
    paper, strict = (suite(name, protocol) for protocol in PROTOCOLS)
    assert list(paper.attacks) == list(strict.attacks)
    assert {protocol_id(paper.attacks[n]) for n in paper.judged} != {
        protocol_id(strict.attacks[n]) for n in strict.judged
    }
    for attack in paper.judged:
        one, other = paper.attacks[attack].bounds, strict.attacks[attack].bounds
        assert all(one[key] == other[key] for key in one.keys() & other.keys())


def test_whoever_saw_one_attack_of_several_in_turn_has_seen_them():
    assert "pgd" in kinds(suite("table2", "strict").attacks["pgd-linf"])
    assert "worst_of" not in kinds(suite("table2", "strict").attacks["spatial"])
    assert kinds(LatentAttack()) == ["latent"]


def test_unknown_names_are_refused_with_what_is_on_offer():
    with pytest.raises(ValueError, match="no suite 'table3'; on offer: table2, norms, unforeseen"):
        suite("table3")
