import math

import pytest
import torch

from gat.latents import lookup, seeded_normal, seeded_uniform, select, split

NAMES = ["style/4/conv1", "noise/4/conv1", "style/8/conv0", "noise/8/conv0"]


def test_globs_select_in_order_of_the_names():
    assert select(NAMES, ["noise/*", "style/4/*"]) == ["style/4/conv1", "noise/4/conv1", "noise/8/conv0"]


def test_a_glob_that_matches_nothing_says_what_there_is():
    with pytest.raises(ValueError, match=r"no latent matches 'style/16/conv0'; did you mean 'style/8/conv0'"):
        select(NAMES, ["style/16/conv0"])


def test_later_globs_refine_earlier_ones():
    table = {"*": 1.0, "style/*": 2.0, "style/8/*": 3.0}
    assert [lookup(table, name) for name in NAMES] == [2.0, 1.0, 3.0, 1.0]
    assert lookup({"noise/*": 1.0}, "style/4/conv1") is None


def test_split_and_merge_is_the_identity():
    latents = {name: torch.randn(2, 3) for name in NAMES}
    moved, kept = split(latents, NAMES[:2])
    assert (moved | kept).keys() == latents.keys()
    with pytest.raises(ValueError, match="no latent named"):
        split(latents, ["style/99/conv0"])


def test_random_numbers_of_an_example_do_not_depend_on_its_batch():
    ids = torch.tensor([5, 900, 7])
    together = seeded_normal(3, ids, (4, 2), "z")
    for i, example in enumerate(ids):
        assert torch.equal(seeded_normal(3, example[None], (4, 2), "z")[0], together[i])


def test_seeds_and_streams_give_other_numbers():
    ids = torch.arange(3)
    base = seeded_normal(3, ids, (50,), "z")
    assert not torch.isclose(base, seeded_normal(4, ids, (50,), "z")).any()
    assert not torch.isclose(base, seeded_normal(3, ids, (50,), "noise/4")).any()


def test_numbers_have_the_moments_of_their_distributions_and_are_uncorrelated():
    n = 400_000
    normal = seeded_normal(0, torch.arange(400), (1000,)).double()
    assert abs(normal.mean()) < 5 / math.sqrt(n)
    assert abs(normal.square().mean() - 1) < 5 * math.sqrt(2 / n)
    assert abs(normal.pow(4).mean() - 3) < 5 * math.sqrt(96 / n)
    uniform = seeded_uniform(0, torch.arange(400), (1000,)).double()
    assert abs(uniform.mean() - 0.5) < 5 / math.sqrt(12 * n)
    assert 0 < uniform.min() < uniform.max() < 1
    between_examples = (normal[:-1] * normal[1:]).mean()
    between_entries = (normal[:, :-1] * normal[:, 1:]).mean()
    assert max(abs(between_examples), abs(between_entries)) < 5 / math.sqrt(n)
