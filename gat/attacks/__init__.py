"""Attacks by name. Adding one to `Attack` enrols it in the configuration, the command line and the contract tests."""

from typing import Annotated, TypeAlias, get_args

from pydantic import Field

from gat.attacks.latent import LatentAttack
from gat.attacks.pgd import FGSM, PGD
from gat.attacks.run import Compute, Outcome

Attack: TypeAlias = LatentAttack | PGD | FGSM
AttackConfig = Annotated[Attack, Field(discriminator="name")]
ATTACKS: dict[str, type[LatentAttack] | type[PGD] | type[FGSM]] = {
    attack.model_fields["name"].default: attack for attack in get_args(Attack)
}

__all__ = ["ATTACKS", "FGSM", "PGD", "Attack", "AttackConfig", "Compute", "LatentAttack", "Outcome"]
