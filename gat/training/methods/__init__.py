"""Training methods by name. One file each; adding one to `AnyMethod` enrols it in the configuration and in the contract tests."""

from typing import Annotated, TypeAlias, get_args

from pydantic import Field

from gat.training.method import Batch, Lesson, Method, Tools
from gat.training.methods.adversarial import AdversarialTraining
from gat.training.methods.advprop import AdvProp
from gat.training.methods.gat import GAT
from gat.training.methods.mixed import Mixed
from gat.training.methods.pat import PAT
from gat.training.methods.random_latents import RandomLatents
from gat.training.methods.standard import Standard
from gat.training.methods.trades import TRADES

AnyMethod: TypeAlias = Standard | AdversarialTraining | TRADES | PAT | AdvProp | GAT | RandomLatents | Mixed
MethodConfig = Annotated[AnyMethod, Field(discriminator="name")]
METHODS: dict[str, type[Method]] = {
    method.model_fields["name"].default: method for method in get_args(AnyMethod)
}

__all__ = [
    "GAT",
    "METHODS",
    "PAT",
    "TRADES",
    "AdvProp",
    "AdversarialTraining",
    "Batch",
    "Lesson",
    "Method",
    "MethodConfig",
    "Mixed",
    "RandomLatents",
    "Standard",
    "Tools",
]
