"""Everything a report says in numbers, as pure functions of records.

Accuracies are shares in [0, 1]; an example counts as right only if the model was right before the attack and after it
(`Record.correct`). Intervals of shares are Wilson's (E. B. Wilson, 1927) at 95 %, those of means over attacks are percentiles of
a bootstrap over examples (B. Efron, 1979); they cover the choice of test examples, not the choice of training seed.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from gat.evaluation.records import Record, budget, control

_Z = NormalDist().inv_cdf(0.975)

SIGNIFICANT = 0.05
"""p-value below which two models are said to differ."""

BASELINE = "original"
"""Name of the undefended model. Without one of that name, the first model in the records is the one others are compared to."""


class Column(NamedTuple):
    """What two numbers must share to be comparable."""

    attack: str
    protocol: str
    source: str


class Key(NamedTuple):
    """One cell of the tables: a model under a column."""

    model: str
    column: Column


@dataclass(frozen=True)
class Proportion:
    """`hits` of `n`, with the 95 % Wilson interval from `low` to `high`."""

    hits: int
    n: int
    value: float
    low: float
    high: float

    @property
    def width(self) -> float:
        """Of the interval."""
        return self.high - self.low


@dataclass(frozen=True)
class Paired:
    """Two models on the same examples.

    Attributes:
        n: examples that both models were tried on.
        both, only_first, only_second, neither: how many of them each got right.
        difference: accuracy of the second minus that of the first, on these examples.
        p_value: of `mcnemar`.
    """

    n: int
    both: int
    only_first: int
    only_second: int
    neither: int
    difference: float
    p_value: float


@dataclass(frozen=True)
class Summary:
    """One model under one attack.

    Attributes:
        accuracy: after the attack.
        accuracy_before: on the starting images.
        successes: attacks that succeeded.
        mean_iterations: over successes; None without any.
        max_iterations: most gradient steps spent on one example.
        mean_passes: forward and backward passes through the model per example.
        oracle_before: starting images on which the oracle reads the label; None if no oracle was asked.
        oracle_agreement: see `oracle_agreement`.
        accuracy_valid: see `accuracy_valid`.
        blind_steps: share of the gradients asked for that were zero; None if none was asked for.
    """

    key: Key
    accuracy: Proportion
    accuracy_before: Proportion
    successes: int
    mean_iterations: float | None
    max_iterations: int
    mean_passes: float
    oracle_before: Proportion | None
    oracle_agreement: Proportion | None
    accuracy_valid: Proportion | None
    blind_steps: float | None


@dataclass(frozen=True)
class Estimate:
    """A mean over attacks or a difference of two, with its 95 % bootstrap interval.

    Attributes:
        n: examples it was resampled from.
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Aggregate:
    """One model under several attacks.

    Attributes:
        name: 'mean_unseen', 'union' or 'worst'.
        columns: the very attacks.
    """

    model: str
    name: str
    columns: tuple[Column, ...]
    share: Estimate | Proportion


def proportion(hits: int, n: int) -> Proportion:
    """`hits` of `n` with Wilson's interval.

    Raises:
        ValueError: unless 0 <= hits <= n and n >= 1.
    """
    if not 0 <= hits <= n or n < 1:
        raise ValueError(f"a proportion needs 0 <= hits <= n and n >= 1, got {hits} of {n}")
    value, spread = hits / n, _Z**2 / n
    centre = (value + spread / 2) / (1 + spread)
    half = sqrt(value * (1 - value) * spread + spread**2 / 4) / (1 + spread)
    # Exactly 0 and 1 at the ends, which rounding would miss.
    return Proportion(
        hits, n, value, max(0.0, centre - half) if hits else 0.0, min(1.0, centre + half) if hits < n else 1.0
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """p-value of the exact two-sided test (Q. McNemar, 1947) that, where two models differ, either is as likely to be right."""
    n, fewer = only_first + only_second, min(only_first, only_second)
    ways = term = 1
    for k in range(1, fewer + 1):
        term = term * (n - k + 1) // k
        ways += term
    return min(1.0, 2 * ways / 2**n)


def share(verdicts: Iterable[bool]) -> Proportion | None:
    """How many of `verdicts` are true; None if there are none."""
    counts = Counter(map(bool, verdicts))
    return proportion(counts[True], counts.total()) if counts else None


def by_cell(records: Iterable[Record]) -> dict[Key, list[Record]]:
    """Records per model, attack, protocol and source, in order of first appearance."""
    cells: dict[Key, list[Record]] = defaultdict(list)
    for record in records:
        cells[Key(record.model, Column(record.attack, record.protocol, record.source))].append(record)
    return dict(cells)


def models(keys: Iterable[Key]) -> list[str]:
    """The models, the baseline first."""
    names = list(dict.fromkeys(key.model for key in keys))
    return sorted(names, key=lambda name: name != BASELINE)


def columns(keys: Iterable[Key]) -> list[Column]:
    """The columns: clean first, then attacks in order of appearance, narrower variants behind what they are variants of."""
    found = list(dict.fromkeys(key.column for key in keys))
    attacks = list(dict.fromkeys(column.attack for column in found))
    families = [attack for attack in attacks if parent(attack, attacks) is None]

    def order(column: Column) -> tuple[bool, int, int]:
        family = column.attack
        while (wider := parent(family, attacks)) is not None:
            family = wider
        return column.attack != "none", families.index(family), attacks.index(column.attack)

    return sorted(found, key=order)


def parent(attack: str, attacks: Iterable[str]) -> str | None:
    """The longest other attack this one is a variant of: 'gat-style' for 'gat-style-coarse', 'pgd' for 'pgd@0.5'; None if there
    is none."""
    wider = [other for other in attacks if attack.startswith((other + "-", other + "@"))]
    return max(wider, key=len, default=None)


def mean_iterations(records: Iterable[Record]) -> float | None:
    """Gradient steps until success, over successes; None without any."""
    steps = [record.iterations for record in records if record.success]
    return sum(steps) / len(steps) if steps else None


def oracle_agreement(records: Iterable[Record]) -> Proportion | None:
    """How often the oracle still reads the label on an image that fooled the model.

    Only over examples whose starting image the oracle read right: what it could not read before, the attack did not hide.
    None if the oracle was not asked or there is no such example.
    """
    return share(
        record.oracle == record.label
        for record in records
        if record.success and record.oracle is not None and record.oracle_clean == record.label
    )


def accuracy_valid(records: Sequence[Record]) -> Proportion | None:
    """Accuracy that counts as broken only what a picture broke that still shows its label to the oracle (`Record.broken`).

    Attacks keep the first picture that fools, valid or not, so this is an upper bound on the accuracy against an attacker who
    would go on until the oracle agrees. None if the oracle was not asked about every success.
    """
    if any(record.success and record.oracle is None for record in records):
        return None
    if all(record.oracle is None for record in records):
        return None
    return share(record.clean_prediction == record.label and not record.broken for record in records)


def per_class(records: Iterable[Record]) -> dict[int, list[Record]]:
    """Records by true class, in ascending order."""
    classes: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        classes[record.label].append(record)
    return dict(sorted(classes.items()))


def summarize(key: Key, records: Sequence[Record]) -> Summary:
    """All numbers of one cell.

    Raises:
        ValueError: without records.
    """
    if not records:
        raise ValueError(f"no records of {key}")
    return Summary(
        key=key,
        accuracy=proportion(sum(record.correct for record in records), len(records)),
        accuracy_before=proportion(
            sum(record.clean_prediction == record.label for record in records), len(records)
        ),
        successes=sum(record.success for record in records),
        mean_iterations=mean_iterations(records),
        max_iterations=max(record.iterations for record in records),
        mean_passes=sum(record.forwards + record.backwards for record in records) / len(records),
        oracle_before=share(
            record.oracle_clean == record.label for record in records if record.oracle_clean is not None
        ),
        oracle_agreement=oracle_agreement(records),
        accuracy_valid=accuracy_valid(records),
        blind_steps=blind_steps(records),
    )


def blind_steps(records: Iterable[Record]) -> float | None:
    """Share of all gradients asked for that were zero or not finite; None if none was asked for."""
    asked = blind = 0
    for record in records:
        asked, blind = asked + record.backwards, blind + record.zero_gradients
    return min(1.0, blind / asked) if asked else None


def survival(records: Sequence[Record], max_steps: int) -> list[Proportion]:
    """Share of examples that are right and not yet fooled after t gradient steps, for t = 0 ... `max_steps`.

    It falls from at most the accuracy on the starting images to the accuracy after the attack. For a targeted attack, an
    example counts as fooled when it answers the target.

    Raises:
        ValueError: without records.
    """
    if not records:
        raise ValueError("accuracy against iterations needs at least one record")
    right = sum(record.clean_prediction == record.label for record in records)
    fooled_at = Counter(
        record.iterations for record in records if record.success and record.clean_prediction == record.label
    )
    curve = []
    for step in range(max_steps + 1):
        right -= fooled_at[step]
        curve.append(proportion(right, len(records)))
    return curve


def compare(first: Iterable[Record], second: Iterable[Record]) -> Paired | None:
    """Two models under one column, on the examples that both were tried on; None if there are none."""
    before = {record.id: record.correct for record in first}
    after = {record.id: record.correct for record in second}
    shared = before.keys() & after.keys()
    if not shared:
        return None
    counts = Counter((before[example], after[example]) for example in shared)
    lost, won = counts[True, False], counts[False, True]
    return Paired(
        n=len(shared),
        both=counts[True, True],
        only_first=lost,
        only_second=won,
        neither=counts[False, False],
        difference=(won - lost) / len(shared),
        p_value=mcnemar(lost, won),
    )


def main_attack(columns: Iterable[Column]) -> Column | None:
    """The attack the page is about: 'gat', else the first of its family, else the first attack at all."""
    attacks = [column for column in columns if column.attack != "none"]
    return min(
        attacks,
        key=lambda column: (column.attack != "gat", not column.attack.startswith("gat-")),
        default=None,
    )


def clean_column(columns: Iterable[Column]) -> Column | None:
    """Real images without an attack, else generated ones."""
    clean = [column for column in columns if column.attack == "none"]
    return min(clean, key=lambda column: column.source != "real", default=None)


def headline_columns(columns: Sequence[Column], suite: Collection[str] = ()) -> list[Column]:
    """Clean, the attacks of the suite, and all others that are not mere variants of another one, controls or other budgets."""
    attacks = [column.attack for column in columns]
    return [
        column
        for column in columns
        if column.attack in suite
        or (
            parent(column.attack, attacks) is None
            and control(column.attack) is None
            and budget(column.attack)[1] == 1
        )
    ]


def judging_columns(columns: Sequence[Column], suite: Collection[str] = ()) -> list[Column]:
    """The attacks that means and unions are over: those of the suite, or without one all of the headline."""
    if suite:
        return [column for column in columns if column.attack in suite]
    return [column for column in headline_columns(columns) if column.attack != "none"]


_RESAMPLES = 1000
_AT_ONCE = 100  # resamples held in memory together


def mean_over(cells: Sequence[Sequence[Record]]) -> Estimate:
    """Unweighted mean of the accuracies of several cells.

    Examples are resampled, not records: the same image under all attacks (and, where seeds of training are pooled, of all
    models) stays together. Images and random latents are resampled apart.

    Raises:
        ValueError: without cells, or for an empty one.
    """
    return _estimate([(cell, 1 / len(cells)) for cell in cells])


def difference_of_means(first: Sequence[Sequence[Record]], second: Sequence[Sequence[Record]]) -> Estimate:
    """Mean of the second cells minus that of the first, resampled as in `mean_over`: both on the same examples."""
    return _estimate([(c, -1 / len(first)) for c in first] + [(c, 1 / len(second)) for c in second])


def _estimate(weighted: Sequence[tuple[Sequence[Record], float]]) -> Estimate:
    if not weighted or not all(cell for cell, _ in weighted):
        raise ValueError("a mean over attacks needs at least one attack, and records of each")
    value = sum(weight * sum(r.correct for r in cell) / len(cell) for cell, weight in weighted)
    sources = sorted({record.source for cell, _ in weighted for record in cell})
    draws = np.zeros(_RESAMPLES)
    rng = np.random.default_rng(0)
    n = 0
    for source in sources:
        part = [([r for r in cell if r.source == source], weight) for cell, weight in weighted]
        part = [(cell, weight) for cell, weight in part if cell]
        examples = sorted({record.id for cell, _ in part for record in cell})
        place = {example: i for i, example in enumerate(examples)}
        right, asked = np.zeros((len(examples), len(part))), np.zeros((len(examples), len(part)))
        for j, (cell, _) in enumerate(part):
            for record in cell:
                right[place[record.id], j] += record.correct
                asked[place[record.id], j] += 1
        draws += _resample(rng, right, asked) @ np.array([weight for _, weight in part])
        n += len(examples)
    low, high = (float(bound) for bound in np.quantile(draws, (0.025, 0.975)))
    if round(value, 12) in (0, 1) and all(weight > 0 for _, weight in weighted):
        # All examples agree, so resampling them says nothing; what their number alone says is Wilson's interval.
        value = float(round(value))
        wilson = proportion(round(value) * n, n)
        low, high = wilson.low, wilson.high
    return Estimate(value, low, high, n)


def _resample(
    rng: np.random.Generator, right: Float[np.ndarray, "n a"], asked: Float[np.ndarray, "n a"]
) -> Float[np.ndarray, "r a"]:
    """Accuracies per attack in each resample of the examples. An attack whose examples a resample misses altogether keeps
    its accuracy."""
    n = len(right)
    found = []
    for _ in range(_RESAMPLES // _AT_ONCE):
        times = rng.multinomial(n, np.full(n, 1 / n), size=_AT_ONCE).astype(np.float64)
        hits, total = times @ right, times @ asked
        whole = right.sum(0) / asked.sum(0)
        found.append(np.where(total > 0, hits / np.maximum(total, 1), whole))
    return np.concatenate(found)


def union(cells: Sequence[Sequence[Record]]) -> Proportion | None:
    """Share of the examples common to all cells on which the model is right under every one of them; None without any."""
    if not cells:
        return None
    verdicts: list[dict[tuple[str, int, int], bool]] = []
    for cell in cells:
        seen: Counter[tuple[str, int]] = Counter()
        found = {}
        for record in cell:
            example = record.source, record.id
            found[*example, seen[example]] = record.correct  # pooled seeds of training: each its own example
            seen[example] += 1
        verdicts.append(found)
    shared = set.intersection(*(set(found) for found in verdicts))
    return share(all(found[example] for found in verdicts) for example in shared)


def aggregate(
    cells: Mapping[Key, Sequence[Record]], seen: Mapping[str, Iterable[Column]], chosen: Sequence[Column]
) -> list[Aggregate]:
    """Per model: mean over the attacks it was not trained on, union over all on real images, and the worst attack.

    Args:
        seen: model -> columns of attacks that it was trained on.
        chosen: the columns that count; those without records of a model are left out for it.
    """
    found = []
    for model in models(cells):
        there = {column: cells[Key(model, column)] for column in chosen if cells.get(Key(model, column))}
        known = set(seen.get(model, ()))
        unseen = [column for column in there if column not in known]
        real = [column for column in there if column.source == "real"]
        if unseen:
            mean = mean_over([there[column] for column in unseen])
            found.append(Aggregate(model, "mean_unseen", tuple(unseen), mean))
        if len(real) > 1 and (survived := union([there[column] for column in real])):
            found.append(Aggregate(model, "union", tuple(real), survived))
        if there:
            shares = {column: proportion(sum(r.correct for r in rs), len(rs)) for column, rs in there.items()}
            worst = min(shares, key=lambda column: shares[column].value)
            found.append(Aggregate(model, "worst", (worst,), shares[worst]))
    return found


def classes_seen(cells: Mapping[Key, Sequence[Record]]) -> list[int]:
    """All true classes."""
    return sorted({record.label for records in cells.values() for record in records})
