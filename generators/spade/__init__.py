"""SPADE (Park et al. 2019): semantic maps to images, with gamma and beta of every norm as latents."""
