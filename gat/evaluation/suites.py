"""Named sets of attacks, under the settings their papers published or under strict ones.

A suite holds the attacks that models are judged by, and beside them controls (see `gat.evaluation.records`) that tell how far to
believe those.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from gat.attacks import (
    APGD,
    CW,
    JPEG,
    LPA,
    PGD,
    AutoAttack,
    DeepFool,
    Elastic,
    Fog,
    Gabor,
    LatentAttack,
    Recolor,
    Snow,
    Spatial,
    Square,
    WorstOf,
)
from gat.attacks.steps import Norm
from gat.attacks.unforeseen import Unforeseen
from gat.evaluation.plan import AnyAttack

Protocol = Literal["paper", "strict"]

STRICT_PERCEPTUAL_BOUND = 0.05
"""In features of a judge that is small and robust itself the published 0.5 is so wide that nothing survives it, and a column of
zeros tells no defence from another."""


@dataclass(frozen=True)
class Suite:
    """Attacks to evaluate with.

    Attributes:
        attacks: name in tables -> attack, controls included.
        judged: those that means and unions are over; controls and second opinions are not.
        transfer: the one whose images are also shown to the other models.
        num: glob of names -> examples, where a control needs fewer.
    """

    attacks: dict[str, AnyAttack]
    judged: tuple[str, ...]
    transfer: str
    num: dict[str, int] = field(
        default_factory=lambda: {"*-long": 100, "*-unbounded": 100, "*-blackbox": 100}
    )


def suite(name: str, protocol: Protocol = "strict", network: str | None = None) -> Suite:
    """The suite of this name.

    Args:
        name: one of `SUITES`.
        protocol: 'paper': published settings and behaviour, the last iterate included; 'strict': the worst per example over several
            settings, best iterates, exact bounds.
        network: whose features measure perceptual distances, besides the attacked model's own; None: only those.

    Raises:
        ValueError: for an unknown suite.
    """
    if name not in SUITES:
        raise ValueError(f"no suite {name!r}; on offer: {', '.join(SUITES)}")
    return SUITES[name](protocol, network)


def _under(protocol: Protocol, paper: AnyAttack, strict: AnyAttack) -> AnyAttack:
    return paper if protocol == "paper" else strict


def _pgd(protocol: Protocol, norm: Norm, eps: float, long: bool = False) -> AnyAttack:
    """20 steps from a random point; under 'strict' Auto-PGD too, on cross entropy and towards each of the three likeliest classes.

    Args:
        long: several times the steps, from other points.
    """
    if protocol == "paper":
        return PGD(norm=norm, eps=eps, steps=100 if long else 20, seed=int(long))
    steps, seed = (300, 1) if long else (100, 0)
    return WorstOf(
        attacks=(
            PGD(norm=norm, eps=eps, seed=seed),
            APGD(norm=norm, eps=eps, steps=steps, seed=seed),
            APGD(norm=norm, eps=eps, steps=steps, seed=seed, loss="targeted_dlr", n_targets=3),
        )
    )


def _doubts(protocol: Protocol, name: str, eps: float) -> dict[str, AnyAttack]:
    """Controls of PGD in the largest norm."""
    return {
        f"{name}-random": PGD(eps=eps, steps=0),
        f"{name}-long": _pgd(protocol, "linf", eps, long=True),
        f"{name}-unbounded": PGD(eps=1.0, steps=100),
        f"{name}-blackbox": Square(eps=eps, queries=1000),
    }


def _table2(protocol: Protocol, network: str | None) -> Suite:
    """What Table 2 of Poursaeed et al. asks: GAT's own attack, PGD, spatial, recolor, perceptual."""
    judge = network or "self"
    bound = STRICT_PERCEPTUAL_BOUND if network and protocol == "strict" else 0.5
    attacks: dict[str, AnyAttack] = {
        "gat": _under(protocol, LatentAttack(goal="least_likely"), LatentAttack()),
        "pgd-linf": _pgd(protocol, "linf", 8 / 255),
        "spatial": _under(protocol, Spatial.paper(), Spatial.strict()),
        "recolor": _under(protocol, Recolor.paper(), Recolor.strict()),
        "perceptual": _under(protocol, LPA.paper(network=judge), LPA.strict(bound, judge)),
    }
    judged = tuple(attacks)
    if network is not None:
        attacks["lpa-self"] = _under(protocol, LPA.paper(), LPA.strict())
    attacks |= _doubts(protocol, "pgd-linf", 8 / 255)
    attacks["spatial-random"] = Spatial(steps=0, random_start=True)
    attacks["recolor-random"] = Recolor(steps=0, random_start=True)
    attacks["perceptual-random"] = LPA(bound=bound, steps=0, noise=1.0, network=judge)
    return Suite(attacks, judged, "pgd-linf")


def _norms(protocol: Protocol, network: str | None) -> Suite:
    """Norm-bounded attacks. Those that look for the smallest change count where it is within the bound."""
    linf, l2, l1 = 8 / 255, 0.5, 12.0
    attacks: dict[str, AnyAttack] = {
        "pgd-linf": _pgd(protocol, "linf", linf),
        "pgd-l2": _pgd(protocol, "l2", l2),
        "pgd-l1": _pgd(protocol, "l1", l1),
        "apgd-linf": APGD(eps=linf),
        "autoattack-linf": AutoAttack(eps=linf),
        "autoattack-l2": AutoAttack(norm="l2", eps=l2),
        "cw-l2": CW(eps=l2),
        "deepfool-l2": DeepFool(eps=l2),
    }
    return Suite(attacks | _doubts(protocol, "pgd-linf", 8 / 255), tuple(attacks), "pgd-linf")


def _unforeseen(protocol: Protocol, network: str | None) -> Suite:
    """Optimised corruptions, each with its random control."""
    offers: dict[str, type[Unforeseen]] = {
        "jpeg": JPEG,
        "elastic": Elastic,
        "fog": Fog,
        "snow": Snow,
        "gabor": Gabor,
    }
    attacks = {name: _under(protocol, offer.paper(), offer.strict()) for name, offer in offers.items()}
    controls: dict[str, AnyAttack] = {f"{name}-random": offer(steps=0) for name, offer in offers.items()}
    return Suite(attacks | controls, tuple(offers), "jpeg")


SUITES: dict[str, Callable[[Protocol, str | None], Suite]] = {
    "table2": _table2,
    "norms": _norms,
    "unforeseen": _unforeseen,
}
