"""Endless, seeded, resumable order of examples."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class EndlessBatches(Sampler[list[int]]):
    """Batches of example indices for ever, each epoch a new permutation.

    The order is a pure function of (seed, step), so a run resumes at any step without storing a random state, and
    `num_processes` processes together see exactly what one process with the same total batch would see.

    Args:
        num_examples: size of the data set.
        batch_size: examples per step of this process.
        start_step: first step to yield.
        rank, num_processes: which slice of every total batch is ours.

    Raises:
        ValueError: if the total batch exceeds the data set.
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        self.num_examples, self.batch_size, self.seed, self.start_step = (
            num_examples,
            batch_size,
            seed,
            start_step,
        )
        self.rank, self.total = rank, batch_size * num_processes
        if self.total > num_examples:
            raise ValueError(
                f"a batch of {self.total} ({num_processes} x {batch_size}) is larger than the data set of {num_examples} "
                "examples; lower batch_size"
            )

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        return torch.randperm(self.num_examples, generator=generator).tolist()

    def __iter__(self) -> Iterator[list[int]]:
        steps_per_epoch = self.num_examples // self.total
        epoch, within = divmod(self.start_step, steps_per_epoch)
        while True:
            order = self._order(epoch)
            for i in range(within, steps_per_epoch):
                start = i * self.total + self.rank * self.batch_size
                yield order[start : start + self.batch_size]
            epoch, within = epoch + 1, 0
