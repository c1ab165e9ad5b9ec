"""The sentence the page opens with, computed from the numbers."""

from collections.abc import Mapping, Sequence

from gat.evaluation.records import Record
from gat.report.names import attack_name, model_name
from gat.report.statistics import (
    SIGNIFICANT,
    Column,
    Key,
    Paired,
    Summary,
    clean_column,
    columns,
    compare,
    main_attack,
    models,
    summarize,
)
from gat.report.tables import percent, points


def compared_model(names: Sequence[str]) -> str | None:
    """The trained model the page is about: 'gat', else the first after the baseline; None if there is only one."""
    return "gat" if "gat" in names[1:] else next(iter(names[1:]), None)


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
