"""The sentence the page opens with, computed from the numbers."""

from collections.abc import Mapping, Sequence

from gat.evaluation.records import Record
from gat.report.names import attack_name, model_name
from gat.report.statistics import Key, Summary, clean_column, columns, main_attack, models, summarize
from gat.report.tables import percent, points


def compared_model(names: Sequence[str]) -> str | None:
    """The trained model the page is about: 'gat', else the first after the baseline; None if there is only one."""
    return "gat" if "gat" in names[1:] else next(iter(names[1:]), None)


def finding(cells: Mapping[Key, Sequence[Record]]) -> str:
    """What the run shows, in one sentence: the main attack on the baseline, on the trained model, and clean images.

    It says less where less was measured, and no more than the numbers do.
    """
    if not cells:
        return "There are no records in this run, so there is nothing to report yet."
    shown, names = columns(cells), models(cells)
    trained = compared_model(names)
    attack, clean = main_attack(shown), clean_column(shown)

    def measured(model: str | None, column: object) -> Summary | None:
        found = next((key for key in cells if (key.model, key.column) == (model, column)), None)
        return summarize(found, cells[found]) if found else None

    clauses = []
    if attack and (first := measured(names[0], attack)):
        means = (
            "Pictures drawn to fool it"
            if attack.attack.startswith("gat")
            else f"{attack_name(attack.attack)} attacks"
        )
        clauses.append(
            f"{means} take the {_plain(names[0])} classifier from {percent(first.accuracy_before.value)} "
            f"to {percent(first.accuracy.value)}"
        )
        if second := measured(trained, attack):
            better = second.accuracy.value > first.accuracy.value
            clauses.append(
                f"the {_plain(trained)} one {'keeps' if better else 'does no better, at'} {percent(second.accuracy.value)}"
            )
    if clean and (first := measured(names[0], clean)):
        images = "clean images" if clean.source == "real" else "untouched generated images"
        if second := measured(trained, clean):
            change = points(second.accuracy.value - first.accuracy.value)
            clauses.append(
                f"on {images} {'it' if len(clauses) == 2 else f'the {_plain(trained)} classifier'} scores "
                f"{percent(second.accuracy.value)}, against {percent(first.accuracy.value)} ({change})"
            )
        elif not clauses:
            clauses.append(
                f"on {images} the {_plain(names[0])} classifier scores {percent(first.accuracy.value)}; no attack was run"
            )
    if not clauses:
        return f"The {_plain(names[0])} classifier was not measured under the main attack."
    sentence = "; ".join(clauses) + "."
    return sentence[0].upper() + sentence[1:]


def _plain(model: str | None) -> str:
    name = model_name(model or "")
    return name.lower() if model == "original" else name
