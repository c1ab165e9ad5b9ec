"""Generators by name: spaces with weights. One line here enrols one in the configuration and the contract tests."""

from generators.stylegan2.settings import StyleGAN2SpaceConfig

GENERATORS = {
    "stylegan2": StyleGAN2SpaceConfig,
}
GeneratorConfig = StyleGAN2SpaceConfig

__all__ = ["GENERATORS", "GeneratorConfig"]
