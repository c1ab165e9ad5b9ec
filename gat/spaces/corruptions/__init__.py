"""Corruptions as spaces: the parameters of JPEG artefacts, elastic warps, fog, snow and Gabor noise are latents.

A space is made of the images of a batch, which do not move, and the ids of the examples where something is drawn for each (where
flakes fall, how a kernel is turned): that depends on (seed, id) alone and is computed once. At `rest` there is no corruption, and
the images come back bit for bit.

Definitions from Kang et al. 2019, "Testing Robustness Against Unforeseen Adversaries", and Kaufmann et al. 2023 (ImageNet-UA),
written anew.
"""

from gat.spaces.corruptions.elastic import ElasticSpace
from gat.spaces.corruptions.fog import FogSpace
from gat.spaces.corruptions.gabor import GaborSpace
from gat.spaces.corruptions.jpeg import JPEGSpace
from gat.spaces.corruptions.snow import SnowSpace

__all__ = ["ElasticSpace", "FogSpace", "GaborSpace", "JPEGSpace", "SnowSpace"]
