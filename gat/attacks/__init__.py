"""Attacks by name. Adding one to `Attack` enrols it in the configuration, the command line and the contract tests."""

from typing import Annotated, TypeAlias, get_args

from pydantic import Field

from gat.attacks.apgd import APGD
from gat.attacks.autoattack import AutoAttack
from gat.attacks.carlini_wagner import CW
from gat.attacks.combined import Combined
from gat.attacks.deepfool import DeepFool
from gat.attacks.fab import FAB
from gat.attacks.image_attack import ImageAttack
from gat.attacks.latent import LatentAttack
from gat.attacks.perceptual import LPA, PPGD, FastLPA
from gat.attacks.pgd import BIM, FGSM, PGD
from gat.attacks.recolor import Recolor
from gat.attacks.run import Compute, Outcome
from gat.attacks.segpgd import CosPGD, SegPGD
from gat.attacks.spatial import Spatial
from gat.attacks.square import Square
from gat.attacks.unforeseen import JPEG, Elastic, Fog, Gabor, Snow
from gat.attacks.worst import WorstOf

OnImages: TypeAlias = (
    PGD
    | FGSM
    | BIM
    | SegPGD
    | CosPGD
    | APGD
    | Square
    | AutoAttack
    | DeepFool
    | CW
    | FAB
    | Spatial
    | Recolor
    | Combined
    | PPGD
    | LPA
    | FastLPA
    | JPEG
    | Elastic
    | Fog
    | Snow
    | Gabor
    | WorstOf
)  # fmt: skip
"""Attacks that start from images."""

Attack: TypeAlias = LatentAttack | OnImages
AttackConfig = Annotated[Attack, Field(discriminator="name")]
ImageAttackConfig = Annotated[OnImages, Field(discriminator="name")]
ATTACKS: dict[str, type[LatentAttack] | type[ImageAttack]] = {
    attack.model_fields["name"].default: attack for attack in get_args(Attack)
}

__all__ = [
    "APGD",
    "ATTACKS",
    "BIM",
    "CW",
    "FAB",
    "FGSM",
    "JPEG",
    "LPA",
    "PGD",
    "PPGD",
    "Attack",
    "AttackConfig",
    "AutoAttack",
    "Combined",
    "Compute",
    "CosPGD",
    "DeepFool",
    "Elastic",
    "FastLPA",
    "Fog",
    "Gabor",
    "ImageAttack",
    "ImageAttackConfig",
    "LatentAttack",
    "OnImages",
    "Outcome",
    "Recolor",
    "SegPGD",
    "Snow",
    "Spatial",
    "Square",
    "WorstOf",
]
