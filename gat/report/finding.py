"""The sentence the page opens with, computed from the numbers."""

from collections.abc import Mapping, Sequence

from gat.evaluation.records import Record
from gat.report.metrics import Metrics, inline, overlap, shown
from gat.report.names import attack_name, model_name
from gat.report.statistics import (
    SIGNIFICANT,
    Aggregate,
    Column,
    Estimate,
    Key,
    Paired,
    Summary,
    clean_column,
    columns,
    compare,
    difference_of_means,
    main_attack,
    models,
    summarize,
)
from gat.report.tables import percent, points


def compared_model(names: Sequence[str]) -> str | None:
    """The trained model the page is about: 'gat', else the first after the baseline; None if there is only one."""
    return "gat" if "gat" in names[1:] else next(iter(names[1:]), None)


def ranking(cells: Mapping[Key, Sequence[Record]], aggregates: Sequence[Aggregate]) -> str | None:
    """Which of several models keeps most over attacks it was not trained on, and whether the examples can tell it from the next.

    None if fewer than two models have a mean over at least two unseen attacks.
    """
    means = [a for a in aggregates if a.name == "mean_unseen" and len(a.columns) > 1]
    if len(means) < 2:
        return None
    best, second, *_ = sorted(means, key=lambda mean: -mean.share.value)

    def of(mean: Aggregate) -> list[Sequence[Record]]:
        return [cells[Key(mean.model, column)] for column in mean.columns]

    apart = difference_of_means(of(second), of(best))
    low, high = (points(bound).removesuffix(" points") for bound in (apart.low, apart.high))
    lead = f"{points(apart.value)}, 95% interval {low} to {high}"
    told = "ahead of" if apart.low > 0 else "but these examples do not tell it from"
    sentence = (
        f"Over attacks it was not trained on, {model_name(best.model)} keeps {percent(best.share.value)}, the most of "
        f"{len(means)} models, {told} {model_name(second.model)} at {percent(second.share.value)} ({lead})"
    )
    clean = clean_column(columns(cells))
    names = models(cells)
    if clean and (mine := cells.get(Key(best.model, clean))):
        score = percent(summarize(Key(best.model, clean), mine).accuracy.value)
        sentence += f"; its clean accuracy is {score}"
        if best.model != names[0] and (other := cells.get(Key(names[0], clean))):
            whose = percent(summarize(Key(names[0], clean), other).accuracy.value)
            sentence += f", against {whose} for the {_plain(names[0])} classifier"
    return sentence + "."


def finding(cells: Mapping[Key, Sequence[Record]]) -> str:
    """What the run shows, in one sentence: the main attack on the baseline, on the trained model, and clean images.

    It says less where less was measured, and no more than the numbers do: differences that McNemar's test puts down to chance
    are called that.
    """
    if not cells:
        return "There are no records in this run, so there is nothing to report yet."
    shown, names = columns(cells), models(cells)
    trained = compared_model(names)
    attack, clean = main_attack(shown), clean_column(shown)

    original, other = f"the {_plain(names[0])} classifier", f"the {_plain(trained)}" if trained else ""

    def measured(column: Column | None) -> tuple[Summary | None, Summary | None, Paired | None]:
        """Baseline, trained model, and the two on the examples they share."""
        keys = [Key(names[0], column), Key(trained or "", column)] if column else []
        first, second = ([cells.get(key, ()) for key in keys] + [(), ()])[:2]
        return (
            summarize(keys[0], first) if first else None,
            summarize(keys[1], second) if second else None,
            compare(first, second),
        )

    clauses = []
    first, second, paired = measured(attack)
    if attack and first:
        drawn = attack.attack.startswith("gat")
        means = "pictures drawn to fool it" if drawn else f"{attack_name(attack.attack)} attacks"
        before, after = percent(first.accuracy_before.value), percent(first.accuracy.value)
        clauses.append(f"{means} take {original} from {before} to {after}")
        if second:
            value = percent(second.accuracy.value)
            if paired and paired.p_value >= SIGNIFICANT:
                clauses.append(f"{other} one, at {value}, is not clearly better")
            elif second.accuracy.value > first.accuracy.value:
                clauses.append(f"{other} one keeps {value}")
            else:
                clauses.append(f"{other} one does no better, at {value}")
    first, second, paired = measured(clean)
    if clean and first:
        images = "clean images" if clean.source == "real" else "untouched generated images"
        score = percent(first.accuracy.value)
        if second:
            change = points(second.accuracy.value - first.accuracy.value)
            if paired and paired.p_value >= SIGNIFICANT:
                change += ", within chance"
            who = "it" if len(clauses) == 2 else f"{other} classifier"
            clauses.append(
                f"on {images} {who} scores {percent(second.accuracy.value)}, against {score} ({change})"
            )
        elif not clauses:
            clauses.append(f"on {images} {original} scores {score}; no attack was run")
    if not clauses:
        return f"{original[0].upper()}{original[1:]} was not measured under the main attack."
    sentence = "; ".join(clauses) + "."
    return sentence[0].upper() + sentence[1:]


def _plain(model: str | None) -> str:
    name = model_name(model or "")
    return name.lower() if model == "original" else name


def scene_finding(metrics: Metrics | None) -> str:
    """What a run on scenes shows, in one sentence: the headline metric under the main attack and on clean images.

    Two values whose intervals overlap are not said to differ.
    """
    if metrics is None:
        return "There are no metrics in this run, so there is nothing to report yet."
    what, names = inline(metrics.headline), metrics.models
    trained, attack, clean = (
        compared_model(names),
        main_attack(metrics.columns),
        clean_column(metrics.columns),
    )
    kind = _KINDS.get(metrics.task, "model")
    original, other = f"the {_plain(names[0])} {kind}", f"the {_plain(trained)}" if trained else ""

    def told(value: float) -> str:
        return shown(metrics.headline, value)

    def measured(column: Column | None) -> tuple[Estimate | None, Estimate | None]:
        return metrics.value(names[0], column), metrics.value(trained, column) if trained else None

    clauses = []
    first, second = measured(attack)
    before, after = measured(clean)
    if attack and first:
        drawn = attack.attack.startswith("gat")
        means = "pictures drawn to fool it" if drawn else f"{attack_name(attack.attack)} attacks"
        start = metrics.row(names[0], attack)
        earlier = start.clean_metrics.get(metrics.headline) if start else None
        if earlier is not None:
            clauses.append(
                f"{means} take the {what} of {original} from {told(earlier.value)} to {told(first.value)}"
            )
        elif before is not None:
            clauses.append(
                f"{means} take the {what} of {original} from {told(before.value)} on clean images to {told(first.value)}"
            )
        else:
            clauses.append(f"{means} leave {original} with {what} {told(first.value)}")
        if second:
            if overlap(first, second):
                clauses.append(f"{other} one, at {told(second.value)}, is not clearly better")
            elif second.value > first.value:
                clauses.append(f"{other} one keeps {told(second.value)}")
            else:
                clauses.append(f"{other} one does no better, at {told(second.value)}")
    if clean and before:
        images = "clean images" if clean.source != "generated" else "untouched generated images"
        if after:
            change = points(after.value - before.value)
            change += ", within the intervals" if overlap(before, after) else ""
            who = "it" if len(clauses) == 2 else f"{other} {kind}"
            clauses.append(
                f"on {images} {who} has {told(after.value)}, against {told(before.value)} ({change})"
            )
        elif not clauses:
            clauses.append(f"on {images} {original} has {what} {told(before.value)}; no attack was run")
    if not clauses:
        return f"{original[0].upper()}{original[1:]} was not measured under the main attack."
    sentence = "; ".join(clauses) + "."
    return sentence[0].upper() + sentence[1:]


_KINDS = {"segmentation": "segmenter", "detection": "detector"}
