"""All numbers of a run, computed once, and the words for them that the page and the Markdown share."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gat.evaluation.records import Record
from gat.report.checks import check
from gat.report.doubt import Doubt
from gat.report.finding import compared_model, finding, ranking, scene_finding
from gat.report.folder import RunFolder
from gat.report.metric_tables import all_metrics_table, metric_rows, metric_table, pixel_class_table
from gat.report.names import (
    attack_name,
    definition,
    variant,
)
from gat.report.plots import (
    flatten,
)
from gat.report.statistics import (
    Aggregate,
    Column,
    Estimate,
    Key,
    Paired,
    Proportion,
    Summary,
    aggregate,
    by_cell,
    clean_column,
    columns,
    compare,
    difference_of_means,
    judging_columns,
    main_attack,
    mean_over,
    models,
    oracle_agreement,
    per_class,
    proportion,
    summarize,
)
from gat.report.tables import (
    Table,
    class_table,
    result_rows,
)

MODELS_SIDE_BY_SIDE = 3  # with large numbers; more models become a heat-map
_ATTACKS_TO_JOIN = 3  # fewer attacks need no mean


@dataclass(frozen=True)
class Results:
    """All numbers of a run, computed once and rendered three times."""

    folder: RunFolder
    cells: Mapping[Key, Sequence[Record]]
    summaries: Sequence[Summary]
    columns: Sequence[Column]
    models: Sequence[str]
    aggregates: Sequence[Aggregate]
    doubts: Sequence[Doubt]
    finding: str

    def records(self, model: str, column: Column) -> Sequence[Record]:
        return self.cells.get(Key(model, column), ())

    def summary(self, model: str, column: Column) -> Summary | None:
        return next((s for s in self.summaries if s.key == (model, column)), None)

    def paired(self, model: str, column: Column) -> Paired | None:
        """Against the baseline; None for the baseline itself."""
        if model == self.models[0]:
            return None
        return compare(self.records(self.models[0], column), self.records(model, column))

    def joined(self, model: str, name: str) -> Aggregate | None:
        return next((a for a in self.aggregates if (a.model, a.name) == (model, name)), None)

    def most_steps(self, column: Column) -> int:
        """That any model was given."""
        return max((s.max_iterations for s in self.summaries if s.key.column == column), default=0)


def compute(folder: RunFolder) -> Results:
    """All numbers of a run."""
    cells = by_cell(folder.records)
    shown = columns(cells)
    judging = judging_columns(shown, folder.suite)
    joined: list[Aggregate] = []
    if len(judging) >= _ATTACKS_TO_JOIN and not folder.scene_task:
        seen = {model: [c for c in judging if folder.seen(model, c)] for model in models(cells)}
        joined = aggregate(cells, seen, judging)
    several = len(models(cells)) >= MODELS_SIDE_BY_SIDE
    sentence = (ranking(cells, joined) if several else None) or finding(cells)
    return Results(
        folder=folder,
        cells=cells,
        summaries=[summarize(key, records) for key, records in cells.items()],
        columns=shown,
        models=models(cells),
        aggregates=joined,
        doubts=check(folder),
        finding=scene_finding(folder.scene_metrics) if folder.scene_task else sentence,
    )


def rows_of(results: Results) -> list[dict[str, Any]]:
    """In the format of `results/<name>/table.json`."""
    if results.folder.scene_task:
        metrics = results.folder.scene_metrics
        return metric_rows(metrics, results.folder.seeds) if metrics else []
    return result_rows(results.summaries, results.folder.task, results.folder.seeds, results.aggregates)


def joint_names(results: Results) -> list[str]:
    """Of means and unions over attacks."""
    return list(dict.fromkeys(a.name for a in results.aggregates))


def mean_differences(results: Results) -> list[tuple[str, str, Estimate]]:
    """Of the model with the best mean over unseen attacks and every other one: its mean less the other's."""
    means = [a for a in results.aggregates if a.name == "mean_unseen"]
    if len(means) < 2:
        return []
    best = max(means, key=lambda a: a.share.value)

    def of(a: Aggregate) -> list[Sequence[Record]]:
        return [results.records(a.model, column) for column in a.columns]

    return [
        (other.model, best.model, difference_of_means(of(other), of(best)))
        for other in means
        if other is not best
    ]


@dataclass(frozen=True)
class Shared:
    """Two models on the attacks that neither was trained on.

    Attributes:
        mean, other_mean: over `columns`.
        difference: of the two, on the same examples.
    """

    other: str
    columns: tuple[Column, ...]
    mean: Estimate
    other_mean: Estimate
    difference: Estimate


def unseen_by_both(results: Results, model: str) -> list[Shared]:
    """A model against every other one. Means over all that a model has not seen are over different attacks; these are not."""
    unseen = {
        a.model: [c for c in a.columns if results.records(a.model, c)]
        for a in results.aggregates
        if a.name == "mean_unseen"
    }
    found = []
    for other in unseen:
        shared = tuple(column for column in unseen.get(model, ()) if column in unseen[other])
        if other != model and shared:
            ours = [results.records(model, column) for column in shared]
            theirs = [results.records(other, column) for column in shared]
            difference = difference_of_means(theirs, ours)
            found.append(Shared(other, shared, mean_over(ours), mean_over(theirs), difference))
    return found


def valid_accuracy(results: Results, model: str, column: Column) -> Proportion | None:
    """Accuracy against pictures that still show their label, where nothing else holds the attack to that."""
    summary = results.summary(model, column)
    if summary is None or column.attack == "none" or results.folder.bounded(column):
        return None
    return summary.accuracy_valid


def classes_table(results: Results, column: Column) -> Table:
    """Of the baseline and the trained model."""
    trained = compared_model(results.models)
    chosen = [model for model in (results.models[0], trained) if model and results.records(model, column)]
    by_class = {model: per_class(results.records(model, column)) for model in chosen}
    return class_table(
        column,
        {
            model: {label: proportion(sum(r.correct for r in rs), len(rs)) for label, rs in found.items()}
            for model, found in by_class.items()
        },
        {
            model: {label: oracle_agreement(rs) for label, rs in found.items()}
            for model, found in by_class.items()
        },
        results.folder.classes,
    )


def scene_tables(results: Results) -> list[Table]:
    """Of scenes: the headline metric, everything measured, and class by class where the records tell; [] without metrics."""
    folder, metrics = results.folder, results.folder.scene_metrics
    if metrics is None:
        return []
    found = [
        metric_table(metrics, folder.suite, folder.seen),
        all_metrics_table(metrics, results.cells),
        pixel_classes(results),
    ]
    return [table for table in found if table is not None]


def pixel_classes(results: Results) -> Table | None:
    """Of the baseline and the trained segmenter, on clean images and under the main attack."""
    metrics = results.folder.scene_metrics
    if metrics is None or results.folder.scene_task != "segmentation":
        return None
    chosen = [model for model in (metrics.models[0], compared_model(metrics.models)) if model]
    among = [c for c in (clean_column(metrics.columns), main_attack(metrics.columns)) if c]
    return pixel_class_table(metrics, results.cells, chosen, among, results.folder.classes)


def definitions(results: Results) -> list[dict[str, Any]]:
    """Each family of attacks with what it does and what its variants leave out."""
    families: dict[str, list[str]] = {}
    for attack in dict.fromkeys(column.attack for column in results.columns):
        families.setdefault(attack.split("-")[0], []).append(attack)
    return [
        {
            "name": attack_name(family),
            "text": definition(family, scenes=results.folder.scene_task is not None)
            or f"Not described here; the configuration says what '{family}' is.",
            "variants": [(attack_name(attack), text) for attack in attacks if (text := variant(attack))],
        }
        for family, attacks in families.items()
    ]


def protocols(results: Results) -> list[dict[str, Any]]:
    """Each protocol id, the attacks that ran under it, and its settings where the provenance tells them."""
    settings = results.folder.protocols
    found = []
    for protocol in dict.fromkeys(column.protocol for column in results.columns if column.protocol):
        attacks = dict.fromkeys(attack_name(c.attack) for c in results.columns if c.protocol == protocol)
        stated = settings.get(protocol)
        facts = (
            flat_facts(stated)
            if isinstance(stated, dict)
            else [("", str(stated))]
            if stated is not None
            else []
        )
        summary = next((text for name, text in facts if name in {"", "summary"}), "")
        facts = [fact for fact in facts if fact[0] not in {"", "summary"}]
        found.append({"id": protocol, "attacks": "; ".join(attacks), "summary": summary, "settings": facts})
    return found


def flat_facts(values: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Nested values as a flat list of names and texts."""
    return [
        (
            name.strip("/").replace("/", " › "),
            "; ".join(map(_fact, value)) or "none" if isinstance(value, list) else str(value),
        )
        for name, value in flatten(values or {}).items()
        if name not in {"command"} and not name.startswith(("protocols/", "command/"))
    ]


def _fact(value: Any) -> str:
    """Settings in a list, for example of the attacks that one tries in turn, on one line."""
    if isinstance(value, Mapping):
        return " ".join(f"{name}={part}" for name, part in flatten(value).items())
    return str(value)


def command_line(folder: RunFolder) -> str:
    command = (folder.provenance or {}).get("command", "")
    return shlex.join(map(str, command)) if isinstance(command, list) else str(command)
