"""The order of examples is a function of (seed, step) alone."""

from itertools import chain, islice

import pytest

from gat.training.batches import EndlessBatches


def first(n: int, sampler: EndlessBatches) -> list[list[int]]:
    return list(islice(iter(sampler), n))


def test_every_epoch_is_another_permutation_of_all_examples():
    batches = first(9, EndlessBatches(12, 4, seed=0))
    epochs = [list(chain(*batches[i : i + 3])) for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_what_does_not_fill_a_batch_waits_for_another_epoch():
    batches = first(6, EndlessBatches(11, 4, seed=0))
    assert all(len(batch) == 4 for batch in batches)
    for epoch in (batches[:2], batches[2:4], batches[4:]):
        assert len(set(chain(*epoch))) == 8


@pytest.mark.parametrize("start", [0, 1, 3, 4, 17])
def test_resumed_order_is_that_of_an_uninterrupted_run(start: int):
    whole = first(25, EndlessBatches(13, 4, seed=5))
    assert first(25 - start, EndlessBatches(13, 4, seed=5, start_step=start)) == whole[start:]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_together_see_what_one_with_the_same_total_batch_sees(world: int):
    whole = first(10, EndlessBatches(25, 2 * world, seed=1))
    parts = [first(10, EndlessBatches(25, 2, seed=1, rank=r, num_processes=world)) for r in range(world)]
    assert [list(chain(*step)) for step in zip(*parts, strict=True)] == whole


def test_the_order_depends_on_the_seed():
    assert first(5, EndlessBatches(20, 4, seed=0)) != first(5, EndlessBatches(20, 4, seed=1))
    assert first(5, EndlessBatches(20, 4, seed=7)) == first(5, EndlessBatches(20, 4, seed=7))


def test_a_batch_larger_than_the_data_set_is_refused():
    assert first(1, EndlessBatches(8, 4, seed=0, num_processes=2))
    with pytest.raises(ValueError, match=r"a batch of 9 \(3 x 3\) is larger than the data set of 8 examples"):
        EndlessBatches(8, 3, seed=0, num_processes=3)
