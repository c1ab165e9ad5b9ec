"""Generators by name: spaces with weights. One line here enrols one in the configuration and the contract tests."""

from typing import Annotated

from pydantic import Field

from generators.spade.settings import SPADESpaceConfig
from generators.stylegan2.settings import StyleGAN2SpaceConfig

GENERATORS: dict[str, type[SPADESpaceConfig] | type[StyleGAN2SpaceConfig]] = {
    "spade": SPADESpaceConfig,
    "stylegan2": StyleGAN2SpaceConfig,
}
GeneratorConfig = Annotated[SPADESpaceConfig | StyleGAN2SpaceConfig, Field(discriminator="name")]

__all__ = ["GENERATORS", "GeneratorConfig"]
