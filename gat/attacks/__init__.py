"""Attacks by name. One line here enrols an attack in the configuration, the command line and the contract tests."""

from functools import reduce
from operator import or_
from typing import Annotated

from pydantic import Field

from gat.attacks.latent import LatentAttack
from gat.attacks.pgd import FGSM, PGD
from gat.attacks.run import Compute, Outcome

ATTACKS = {
    "latent": LatentAttack,
    "pgd": PGD,
    "fgsm": FGSM,
}

Attack = LatentAttack | PGD | FGSM
AttackConfig = Annotated[reduce(or_, ATTACKS.values()), Field(discriminator="name")]

__all__ = ["ATTACKS", "FGSM", "PGD", "Attack", "AttackConfig", "Compute", "LatentAttack", "Outcome"]
