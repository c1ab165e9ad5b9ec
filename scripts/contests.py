"""Who meets whom in `bench_peers.py`: every attack and its peers, at equal bounds and steps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from published_loops import lagrange, perceptual_pgd, recoloradv, stadv
from torch import Tensor, nn

from gat.attacks import APGD, CW, LPA, PGD, PPGD, AutoAttack, DeepFool, ImageAttack, Recolor, Spatial
from gat.attacks.steps import l2_norm, linf_norm
from gat.latents import Images, PerExample
from gat.perceptual import perceptual_distance

Side = Callable[[nn.Module, Images, Tensor], Images]
"""A model, images in [0, 1] and labels -> attacked images. The batch is what it is given."""


def peer_torchattacks(name: str, **settings: Any) -> Side:
    """An attack of torchattacks."""
    import torchattacks

    def attack(model: nn.Module, images: Images, labels: Tensor) -> Images:
        return getattr(torchattacks, name)(model, **settings)(images, labels)

    return attack


def peer_foolbox(name: str, eps: float | None, **settings: Any) -> Side:
    """An attack of foolbox."""
    import foolbox

    def attack(model: nn.Module, images: Images, labels: Tensor) -> Images:
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=images.device)
        return getattr(foolbox.attacks, name)(**settings)(wrapped, images, labels, epsilons=eps)[1]

    return attack


def peer_apgd(eps: float, steps: int) -> Side:
    """APGD-CE of AutoAttack's package."""
    from pyautoattack.autopgd_base import APGDAttack

    def attack(model: nn.Module, images: Images, labels: Tensor) -> Images:
        theirs = APGDAttack(model, n_iter=steps, norm="Linf", eps=eps, loss="ce", device=images.device)
        return theirs.perturb(images, labels)

    return attack


def peer_autoattack(eps: float, steps: int, queries: int) -> "Whole":
    """The standard version of AutoAttack's package, which makes batches itself, of what is not fooled yet."""
    from pyautoattack import AutoAttack as Theirs

    def attack(model: nn.Module, images: Images, labels: Tensor, width: int) -> Images:
        theirs = Theirs(model, norm="Linf", eps=eps, version="standard", seed=0, device=images.device)
        for part in (theirs.apgd, theirs.apgd_targeted, theirs.fab):
            part.n_iter = part.n_iter_orig = steps
        theirs.square.n_queries = queries
        return theirs.run_standard_evaluation(images, labels, batch_size=width)[0]

    return Whole(attack)


@dataclass(frozen=True)
class Whole:
    """A peer that gets all images at once, and the batch width."""

    attack: Callable[[nn.Module, Images, Tensor, int], Images]


@dataclass(frozen=True)
class Contest:
    """One attack, ours against each peer's.

    Attributes:
        ours, peers: equal in bound and steps.
        bound: radius at which the judge looks, in `distance` of the model, the images and the attacked images. None for bounds of
            something that cannot be seen in the images (flows, colour maps): each side keeps to its own.
        settings: what all share, in a line.
        share: of the examples that are attacked, for what takes long.
        repeats: at most.
    """

    name: str
    ours: ImageAttack
    peers: Mapping[str, Side | Whole]
    settings: str
    bound: float | None = None
    distance: Callable[[nn.Module, Images, Images], PerExample] | None = None
    share: float = 1.0
    repeats: int = 99
    smallest_change: bool = False


def linf(model: nn.Module, images: Images, attacked: Images) -> PerExample:
    """Largest change of a pixel."""
    return linf_norm(attacked.double() - images.double())


def l2(model: nn.Module, images: Images, attacked: Images) -> PerExample:
    """Euclidean length of the change."""
    return l2_norm(attacked.double() - images.double())


# On Fashion-MNIST, 16/255 is about what 8/255 is on CIFAR-10: an undefended network is left next to nothing.
EPS, RADIUS, FLOW, COLOR = 16 / 255, 1.5, 0.05, 0.06
CW_ROUNDS, CW_STEPS = 6, 50


def contests() -> list[Contest]:
    """All of them, cheapest first."""
    found = []
    for steps in (20, 40):
        size = 2.5 * EPS / steps
        peers = {
            "torchattacks": peer_torchattacks("PGD", eps=EPS, alpha=size, steps=steps),
            "foolbox": peer_foolbox("LinfPGD", EPS, abs_stepsize=size, steps=steps),
        }
        found.append(
            Contest(
                f"pgd-{steps}", PGD(eps=EPS, steps=steps, step_size=size), peers,
                f"linf 16/255, {steps} steps of {size * 255:.3g}/255, random start", EPS, linf,
            )
        )  # fmt: skip
    peers = {
        "torchattacks": peer_torchattacks("APGD", eps=EPS, steps=50),
        "pyautoattack": peer_apgd(EPS, 50),
    }
    found.append(
        Contest("apgd", APGD(eps=EPS, steps=50), peers, "linf 16/255, cross entropy, 50 steps", EPS, linf)
    )
    peers = {
        "torchattacks": peer_torchattacks("DeepFool", steps=50, overshoot=0.02),
        "foolbox": peer_foolbox("L2DeepFoolAttack", None, steps=50, candidates=10, overshoot=0.02),
    }
    found.append(
        Contest(
            "deepfool", DeepFool(steps=50), peers, f"l2, 50 steps, overshoot 0.02; judged at {RADIUS:g}", RADIUS, l2,
            share=0.5, smallest_change=True,
        )
    )  # fmt: skip
    peers = {
        "torchattacks": peer_torchattacks("CW", c=1, steps=CW_ROUNDS * CW_STEPS, lr=0.01),
        "foolbox": peer_foolbox(
            "L2CarliniWagnerAttack", None, binary_search_steps=CW_ROUNDS, steps=CW_STEPS, stepsize=0.01
        ),
    }
    found.append(
        Contest(
            "cw", CW(rounds=CW_ROUNDS, steps=CW_STEPS, step_size=0.01), peers,
            f"l2, {CW_ROUNDS} x {CW_STEPS} steps of 0.01 (torchattacks: c = 1 for all of them); judged at {RADIUS:g}",
            RADIUS, l2, share=0.5, smallest_change=True,
        )
    )  # fmt: skip
    found.append(
        Contest(
            "spatial", Spatial(bound=FLOW, steps=100, step_size=0.01 / FLOW, padding="zeros"),
            {"published loop": partial(stadv, bound=FLOW, steps=100)},
            f"flow <= {FLOW:g} grid units, 100 Adam steps of 0.01, smoothness 0.05",
        )
    )  # fmt: skip
    found.append(
        Contest(
            "recolor", Recolor(bound=COLOR, steps=100),
            {"published loop": partial(recoloradv, bound=COLOR, steps=100)},
            f"color <= {COLOR:g}, 16 x 32 x 32 nodes, 100 Adam steps (theirs of 0.001, as published), smoothness 0.06", share=0.5,
        )
    )  # fmt: skip
    for looks in (0.5, 1.0):  # published for a classifier's own features, and for another network's
        found.append(
            Contest(
                f"ppgd-{looks:g}", PPGD(bound=looks, steps=20),
                {"published loop": partial(perceptual_pgd, bound=looks, steps=20, cg_steps=5)},
                f"own features <= {looks:g}, 20 steps of 5 CG steps", looks, perceptual_distance, share=0.5,
            )
        )  # fmt: skip
        found.append(
            Contest(
                f"lpa-{looks:g}", LPA(bound=looks, steps=20),
                {"published loop": partial(lagrange, bound=looks, steps=20, rounds=5)},
                f"own features <= {looks:g}, 5 x 20 steps", looks, perceptual_distance, share=0.5,
            )
        )  # fmt: skip
    steps, queries = 25, 1000  # 100 and 5000 are standard, and take as much longer on both sides
    found.append(
        Contest(
            "autoattack", AutoAttack(eps=EPS, steps=steps, queries=queries),
            {"pyautoattack": peer_autoattack(EPS, steps, queries)},
            f"linf 16/255, standard but for {steps} steps and {queries} queries", EPS, linf, share=0.5, repeats=1,
        )
    )  # fmt: skip
    return found
