"""Which examples belong to train, val and test: seeded, class-balanced, disjoint."""

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int64

from tasks.datasets.protocol import Split


def part_to_read(split: Split, parts: Collection[str]) -> tuple[str, tuple[Split, ...]]:
    """Says where a split comes from, given the official parts that a dataset has.

    Numbers are reported on "test" and models chosen on "val", so the two never share an image: a dataset with
    only train and val parts, as most have, reports on its val part, and the images to choose models by are
    held out from its train part.

    Args:
        split: The split wanted.
        parts: The official parts found: some of "train", "val", "test", or "all" if the dataset has none.

    Returns:
        The part to read, and the splits to hold out from it, in the order in which they are to be drawn.

    Raises:
        ValueError: If no part found can serve the split.
    """
    report_part = next((part for part in ("test", "val") if part in parts), None)
    if split == "test" and report_part:
        return report_part, ()
    if split == "val" and {"val", "test"} <= set(parts):
        return "val", ()
    for part in ("train", "all"):
        if part in parts:
            held: tuple[Split, ...] = () if report_part else ("test",)
            return part, held if {"val", "test"} <= set(parts) else (*held, "val")
    raise ValueError(f"the split {split!r} needs a train part, but only {', '.join(sorted(parts))} was found")


def choose(
    labels: Int64[np.ndarray, " n"],
    classes: Sequence[str],
    split: Split,
    held: Sequence[Split],
    shares: Mapping[str, int | float],
    seed: int,
    limit: int | None = None,
) -> Int64[np.ndarray, " m"]:
    """Chooses the examples of a split, in listing order.

    The held-out splits are drawn one after the other, so the first does not depend on the size of the second.
    Draws come from `numpy.random.RandomState`, whose stream is frozen across versions of numpy.

    Args:
        labels: Class of every example of the part read.
        classes: Name of every class, for messages.
        split: The split wanted; if it is not in `held`, it is what the held-out splits leave.
        held: Splits to hold out, in the order of drawing.
        shares: Size of each held-out split, per class: a count (int) or a fraction (float; at least one
            example unless it is 0).
        seed: Seed of the draws.
        limit: Keep at most this many examples per class, the first ones of the listing. None keeps all.

    Raises:
        ValueError: If a class would be left without examples.
    """
    rng = np.random.RandomState(seed)
    chosen = np.arange(len(labels))
    for name in held:
        drawn = [
            rng.permutation(members)[: _count(shares[name], len(members))]
            for members in _members_of_each_class(labels, chosen, len(classes))
        ]
        held_out = np.sort(np.concatenate(drawn))
        if name == split:
            chosen = held_out
            break
        chosen = np.setdiff1d(chosen, held_out, assume_unique=True)
    if limit is not None:
        first = [members[:limit] for members in _members_of_each_class(labels, chosen, len(classes))]
        chosen = np.sort(np.concatenate(first))
    counts = np.bincount(labels[chosen], minlength=len(classes))
    if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
        sizes = ", ".join(f"{name}: {shares[name]}" for name in held) or "none"
        raise ValueError(
            f"the {split} split would have no examples of {', '.join(empty[:5])} ({len(empty)} of "
            f"{len(classes)} classes); {len(labels)} examples were found, held out per class - {sizes}"
        )
    return chosen


def _count(share: int | float, available: int) -> int:
    if isinstance(share, int):
        return share
    return max(1, round(share * available)) if share > 0 else 0


def _members_of_each_class(
    labels: Int64[np.ndarray, " n"], among: Int64[np.ndarray, " m"], num_classes: int
) -> Iterator[Int64[np.ndarray, " k"]]:
    by_class = among[np.argsort(labels[among], kind="stable")]
    ends = np.cumsum(np.bincount(labels[among], minlength=num_classes))
    yield from np.split(by_class, ends[:-1])
