"""Doubts about a run's numbers, found by looking at them. All of them are printed on the page; none is ever hidden."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from gat.evaluation.records import CONTROLS, Record, budget, control, controlled
from gat.report.doubt import Doubt, Level
from gat.report.folder import RunFolder
from gat.report.gallery import Gallery
from gat.report.metric_checks import MAX_WIDTH, check_metrics
from gat.report.names import attack_name, column_name, model_name
from gat.report.plots import flatten
from gat.report.statistics import (
    BASELINE,
    SIGNIFICANT,
    Column,
    Key,
    Summary,
    by_cell,
    clean_column,
    columns,
    compare,
    models,
    parent,
    summarize,
)
from gat.report.tables import in_brackets, interval, p_value, percent, points

MAX_REJECTED = 0.10
"""Largest share of successful pictures the oracle may reject without a word."""
MIN_ORACLE = 0.90
"""Least share of starting images an oracle should read right to be a judge."""
MAX_BLIND = 0.05
"""Largest share of gradients, or of images without one, that may be zero without a word."""
MAX_UNBOUNDED = 0.05
"""Largest accuracy that may be left by an attack without a bound."""
MIN_GAIN = 0.01
"""Largest accuracy that more steps may take away before the attack is said not to have converged."""
_TOLERANCE = 1e-5  # of a distance against its bound; float32 rounding of pixels is far below


def check(run: RunFolder) -> list[Doubt]:
    """All doubts about a run, the gravest first."""
    cells = by_cell(run.records)
    summaries = [summarize(key, records) for key, records in cells.items()]
    doubts = [Doubt("careful" if problem.missing else "wrong", problem.text) for problem in run.problems]
    if cells:
        doubts += _contradictions(cells)
        doubts += _bounds(cells, (run.provenance or {}).get("protocols"))
        doubts += () if run.scene_task else _weak_attacks(summaries)
        doubts += _controls(cells)
        doubts += _curves(cells)
        doubts += _blind(summaries)
        doubts += _probes(run.probes)
        doubts += _protocols(summaries)
        if not run.scene_task:
            doubts += _precision(summaries)
            doubts += _clean_accuracy(cells)
            doubts += _oracle(cells, summaries)
    if run.scene_metrics:
        doubts += check_metrics(run.scene_metrics)
    if run.gallery:
        doubts += _gallery(run.gallery)
    doubts += _not_finite(cells, run.metrics)
    order: tuple[Level, ...] = ("wrong", "careful", "note")
    return sorted(doubts, key=lambda doubt: order.index(doubt.level))


def _where(key: Key, keys: Iterable[Key]) -> str:
    return (
        f"{model_name(key.model)}, {column_name(key.column, columns(keys))}{in_brackets(key.column.protocol)}"
    )


def _count(found: Sequence[object], noun: str) -> str:
    return f"{len(found)} {noun}{'' if len(found) == 1 else 's'}"


def _ids(ids: Sequence[int]) -> str:
    shown = ", ".join(map(str, ids[:5]))
    return f"ids {shown}, ..." if len(ids) > 5 else f"id {shown}" if len(ids) == 1 else f"ids {shown}"


def _contradictions(cells: Mapping[Key, Sequence[Record]]) -> Iterator[Doubt]:
    for key, records in cells.items():
        where = _where(key, cells)
        repeated = [
            example for example, count in Counter(record.id for record in records).items() if count > 1
        ]
        if repeated:
            yield Doubt(
                "wrong", f"{where}: {_count(repeated, 'example')} counted more than once ({_ids(repeated)})."
            )
        false = [
            record.id
            for record in records
            if record.success != (record.clean_prediction == record.label and _fooled(record))
        ]
        if false:
            yield Doubt(
                "wrong",
                f"{where}: in {_count(false, 'record')} the verdict contradicts the predictions ({_ids(false)}).",
            )


def _fooled(record: Record) -> bool:
    return record.prediction != record.label if record.target is None else record.prediction == record.target


def bounds_of(column: Column, protocols: Any = None) -> dict[str, float]:
    """Largest distances that an attack allows itself, by the names distances have in records.

    They are read off the attack's name or protocol id ('pgd-linf-8/255' -> {'linf_pixels': 0.0314}) and from `protocols`, where
    an entry {id: {'bounds': {name: value}}} says it outright.
    """
    bounds = {}
    for norm, number, divisor in re.findall(
        r"(linf|l2|l1)[-_=]?(\d+(?:\.\d+)?)(?:/(\d+))?", f"{column.attack} {column.protocol}"
    ):
        bounds[f"{norm}_pixels"] = float(number) / float(divisor or 1)
    settings = protocols.get(column.protocol) if isinstance(protocols, dict) else None
    stated = settings.get("bounds") if isinstance(settings, dict) else None
    if isinstance(stated, dict):
        bounds |= {
            str(name): float(value) for name, value in stated.items() if isinstance(value, (int, float))
        }
    return bounds


def _bounds(cells: Mapping[Key, Sequence[Record]], protocols: Any) -> Iterator[Doubt]:
    for key, records in cells.items():
        for name, bound in bounds_of(key.column, protocols).items():
            measured = [(record.distances[name], record.id) for record in records if name in record.distances]
            outside = sorted((pair for pair in measured if not pair[0] <= bound + _TOLERANCE), reverse=True)
            if outside:
                yield Doubt(
                    "wrong",
                    f"{_where(key, cells)}: {_count(outside, 'picture')} beyond the bound {name} ≤ {bound:.5g}, the farthest at "
                    f"{outside[0][0]:.5g} ({_ids([example for _, example in outside])}).",
                )


def _weak_attacks(summaries: Sequence[Summary]) -> Iterator[Doubt]:
    keys = [summary.key for summary in summaries]
    clean = clean_column(columns(keys))
    undefended = models(keys)[0]
    by_key = {summary.key: summary for summary in summaries}
    for summary in summaries:
        key, where = summary.key, _where(summary.key, keys)
        if key.column.attack == "none":
            continue
        if (
            control(key.column.attack) is None
            and key.model == undefended
            and not summary.successes
            and summary.max_iterations
        ):
            yield Doubt(
                "wrong",
                f"{where}: not one success in {summary.accuracy.n} attacks of up to {summary.max_iterations} steps on the "
                "undefended model. The attack is probably broken (no gradient, a wrong sign, or no step at all).",
            )
        before = by_key.get(Key(key.model, clean)) if clean else None
        if before and summary.accuracy.low > before.accuracy.high:
            yield Doubt(
                "careful",
                f"{where}: the accuracy under attack ({percent(summary.accuracy.value)}) is above the clean one "
                f"({percent(before.accuracy.value)}). Either the attacked images are easier or the attack is too weak.",
            )
        if control(key.column.attack) or budget(key.column.attack)[1] != 1:
            continue  # looked at in `_controls` and `_curves`
        wider = parent(key.column.attack, [other.column.attack for other in keys])
        for other in summaries:
            same_setting = other.key.model == key.model and other.key.column.source == key.column.source
            if (
                same_setting
                and other.key.column.attack == wider
                and other.accuracy.low > summary.accuracy.high
            ):
                yield Doubt(
                    "careful",
                    f"{where} fools more often than {column_name(other.key.column, columns(keys))}, which may move more. The "
                    "wider attack is not at its best.",
                )


def _controls(cells: Mapping[Key, Sequence[Record]]) -> Iterator[Doubt]:
    """What a sound attack on a sound model would not let happen."""
    for key, records in cells.items():
        kind = control(key.column.attack)
        if kind is None:
            continue
        summary = summarize(key, records)
        name, left = model_name(key.model), percent(summary.accuracy.value)
        base_attack = controlled(key.column.attack)
        base_name = attack_name(base_attack)
        if kind == "unbounded":
            if summary.accuracy.value > MAX_UNBOUNDED:
                yield Doubt(
                    "careful",
                    f"{name} keeps {left} under {base_name} without a bound (n = {summary.accuracy.n}), where any picture may become "
                    "any other. Its gradients hide the way, so its numbers under gradient attacks are too high.",
                )
            continue
        base = next(
            (
                (other, found)
                for other, found in cells.items()
                if (other.model, other.column.attack) == (key.model, base_attack)
                and other.column.source == key.column.source
            ),
            None,
        )
        paired = compare(base[1], records) if base else None
        if base is None or paired is None:
            continue
        stronger = paired.difference < 0 and paired.p_value < SIGNIFICANT
        weaker = paired.difference > 0 and paired.p_value < SIGNIFICANT
        change = f"{points(paired.difference)} on the same {paired.n}, {p_value(paired.p_value)}"
        if kind == "long" and stronger and -paired.difference > MIN_GAIN:
            yield Doubt(
                "careful",
                f"{base_name} on {name} has not converged: more steps take the accuracy further down ({change}). The number of "
                "the longer attack is the better one.",
            )
        elif kind == "long" and weaker:
            yield Doubt(
                "careful",
                f"{base_name} on {name} is weaker with more steps ({change}). Its steps lead nowhere: the gradient misleads, or the "
                "attack is broken.",
            )
        elif kind != "long" and stronger:
            yield Doubt(
                "careful",
                f"{base_name} on {name} is beaten by {CONTROLS[kind]} ({change}). An attack that sees the gradient should win; the "
                "gradient is masked or the attack is not at its best, so its number is too high.",
            )


def _curves(cells: Mapping[Key, Sequence[Record]]) -> Iterator[Doubt]:
    """A larger budget cannot help the model."""
    curves: dict[tuple[str, str, str], list[tuple[float, Sequence[Record]]]] = {}
    for key, records in cells.items():
        base, factor = budget(key.column.attack)
        curves.setdefault((key.model, base, key.column.source), []).append((factor, records))
    for (model, base, _), points_of in curves.items():
        ordered = sorted(points_of, key=lambda point: point[0])
        for (small, before), (large, after) in pairwise(ordered):
            paired = compare(before, after)
            if small < large and paired and paired.difference > 0 and paired.p_value < SIGNIFICANT:
                yield Doubt(
                    "careful",
                    f"{attack_name(base)} on {model_name(model)} is weaker at ×{large:g} of its budget than at ×{small:g} "
                    f"({points(paired.difference)} on the same {paired.n}, {p_value(paired.p_value)}): at the larger one it is not at "
                    "its best.",
                )


def _blind(summaries: Sequence[Summary]) -> Iterator[Doubt]:
    """Attacks that could not see. An unbounded one may well push the loss to where it is flat."""
    keys = [summary.key for summary in summaries]
    for summary in summaries:
        share = summary.blind_steps
        if control(summary.key.column.attack) is None and share is not None and share > MAX_BLIND:
            yield Doubt(
                "careful",
                f"{_where(summary.key, keys)}: {percent(share)} of the gradients were zero or not finite. The attack could not see "
                "there, so the accuracy says little about robustness.",
            )


_PROBES: dict[str, tuple[Level, str]] = {
    "random_outputs": (
        "careful",
        "answers the same image differently from one pass to the next ({share} of the images asked). Its numbers hold for one draw "
        "of the dice only; attacks must average over them.",
    ),
    "probabilities": (
        "careful",
        "returns probabilities, not logits ({share} of the images asked). A loss on top of a second softmax has almost no gradient, "
        "which makes it look robust.",
    ),
    "zero_gradients": (
        "careful",
        "gives a gradient that is zero or not finite for {share} of the clean images asked. Attacks that follow the gradient cannot "
        "start there, which makes it look robust.",
    ),
}


def _probes(probes: Mapping[str, Mapping[str, float]]) -> Iterator[Doubt]:
    for model, found in probes.items():
        for name, (level, text) in _PROBES.items():
            share = found.get(name, 0.0)
            if share > MAX_BLIND:
                yield Doubt(level, f"{model_name(model)} {text.format(share=percent(share))}")


def _protocols(summaries: Sequence[Summary]) -> Iterator[Doubt]:
    used: dict[tuple[str, str], dict[str, set[str]]] = {}
    for summary in summaries:
        column = summary.key.column
        used.setdefault((column.attack, column.source), {}).setdefault(summary.key.model, set()).add(
            column.protocol
        )
    for (attack, source), by_model in used.items():
        if len(by_model) > 1 and not set.intersection(*by_model.values()):
            protocols = "; ".join(
                f"{model_name(model)}: {', '.join(sorted(ids))}" for model, ids in by_model.items()
            )
            name = column_name(Column(attack, "", source), [])
            yield Doubt(
                "careful",
                f"{name} ran under different protocols and does not compare across models ({protocols}).",
            )


def _precision(summaries: Sequence[Summary]) -> Iterator[Doubt]:
    summaries = [
        summary for summary in summaries if control(summary.key.column.attack) is None
    ]  # those are small on purpose
    wide = [summary for summary in summaries if summary.accuracy.width > MAX_WIDTH]
    if not wide:
        return
    keys = [summary.key for summary in summaries]
    worst = max(wide, key=lambda summary: summary.accuracy.width)
    yield Doubt(
        "careful",
        f"Too few examples: {len(wide)} of {len(summaries)} accuracies have a 95% interval wider than "
        f"{100 * MAX_WIDTH:.0f} points. The widest: {_where(worst.key, keys)}, "
        f"{interval(worst.accuracy)} from n = {worst.accuracy.n}.",
    )


def _clean_accuracy(cells: Mapping[Key, Sequence[Record]]) -> Iterator[Doubt]:
    clean = clean_column(columns(cells))
    names = models(cells)
    if clean is None:
        yield Doubt("careful", "No clean accuracy was measured: there are no records of attack 'none'.")
        return
    if len(names) == 1:
        kind = "nothing to compare it to" if names[0] == BASELINE else "no undefended model to compare it to"
        yield Doubt("note", f"Only one model was evaluated ({model_name(names[0])}): there is {kind}.")
    baseline = cells.get(Key(names[0], clean), ())
    for name in names[1:]:
        paired = compare(baseline, cells.get(Key(name, clean), ()))
        if paired is None or paired.difference >= 0:
            continue
        lost = paired.p_value < SIGNIFICANT
        yield Doubt(
            "careful" if lost else "note",
            f"{model_name(name)} is worse than {model_name(names[0])} on clean images: {points(paired.difference)} on the same "
            f"{paired.n} ({p_value(paired.p_value)}, McNemar)"
            + ("." if lost else ", which chance alone could explain."),
        )


def _oracle(cells: Mapping[Key, Sequence[Record]], summaries: Sequence[Summary]) -> Iterator[Doubt]:
    attacked = [
        summary
        for summary in summaries
        if summary.key.column.attack != "none"
        and summary.successes
        and not control(summary.key.column.attack)
    ]
    if attacked and all(summary.oracle_before is None for summary in summaries):
        yield Doubt(
            "careful",
            "No independent oracle was asked, so nobody knows how many of the pictures still show their label.",
        )
        return
    judged = [summary for summary in attacked if summary.oracle_before is not None]
    weak = [s for s in judged if s.oracle_before is not None and s.oracle_before.value < MIN_ORACLE]
    if weak:
        value, worst = min((s.oracle_before.value, i) for i, s in enumerate(weak) if s.oracle_before)
        yield Doubt(
            "careful",
            f"The oracle is a poor judge: it reads only {percent(value)} of the starting images right "
            f"({_where(weak[worst].key, cells)}). Agreement counts only those.",
        )
    rejected = [
        (1 - agreement.value, agreement.n - agreement.hits, agreement.n, _where(summary.key, cells))
        for summary in judged
        if (agreement := summary.oracle_agreement) and agreement.hits < agreement.n
    ]
    if rejected:
        share, count, n, where = max(rejected)
        every, of = (
            sum(row[1] for row in rejected),
            sum(s.oracle_agreement.n for s in judged if s.oracle_agreement),
        )
        text = (
            f"The oracle no longer reads the label on {every} of {of} pictures that fooled a model; most often under {where}: "
            f"{count} of {n} ({percent(share)})."
        )
        if share > MAX_REJECTED:
            yield Doubt(
                "careful",
                text + " Some of these may be pictures of something else rather than adversarial examples.",
            )
        else:
            yield Doubt("note", text)


def _gallery(gallery: Gallery) -> Iterator[Doubt]:
    verdicts = {panel.success for item in gallery.items for panel in item.panels}
    if len(verdicts) == 1:
        kind = "successes" if verdicts == {True} else "failures"
        yield Doubt(
            "note", f"All pictures of the gallery happen to be {kind}; the table says how common they are."
        )


def _not_finite(
    cells: Mapping[Key, Sequence[Record]], metrics: Sequence[Mapping[str, Any]]
) -> Iterator[Doubt]:
    for key, records in cells.items():
        bad = [
            record.id
            for record in records
            if not all(map(math.isfinite, (record.loss, *record.distances.values())))
        ]
        if bad:
            yield Doubt(
                "wrong",
                f"{_where(key, cells)}: a loss or distance of {_count(bad, 'record')} is not finite ({_ids(bad)}).",
            )
    counts: Counter[str] = Counter()
    first: dict[str, Any] = {}
    for index, row in enumerate(metrics):
        flat = flatten(row)
        for name, value in flat.items():
            if isinstance(value, float) and not math.isfinite(value):
                counts[name] += 1
                first.setdefault(name, flat.get("step", index))
    for name, count in counts.items():
        yield Doubt(
            "wrong",
            f"During training, {name} was not finite at {count} of {len(metrics)} reports, first at step {first[name]}.",
        )
