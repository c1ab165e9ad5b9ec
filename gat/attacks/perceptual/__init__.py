"""Attacks bounded by a perceptual distance: PPGD, LPA, FastLPA (Laidlaw, Singla & Feizi 2021, "Perceptual Adversarial Robustness")."""

from gat.attacks.perceptual.lagrange import LPA, FastLPA
from gat.attacks.perceptual.ppgd import PPGD

__all__ = ["LPA", "PPGD", "FastLPA"]
