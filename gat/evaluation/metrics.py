"""Numbers of a whole data set, such as mean IoU or average precision, from the evidence in the records."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gat.evaluation.records import Record
from gat.protocols import Task

RESAMPLES = 40
"""Bootstrap samples behind a standard error: one known to 11 % will do."""


def metric_rows(records: Sequence[Record], task: Task, seed: int = 0) -> list[dict[str, Any]]:
    """One row per model and attack, in the order of the records.

    Returns:
        Rows {model, attack, protocol, source, n, metrics, score, oracle, shown, oracle_metrics}. `metrics` are the task's, `score`
        the means over examples of its scores before and after the attack, `oracle` of the oracle's, `shown` of the scores among the
        pixels that the oracle reads, `oracle_metrics` the task's of what the oracle reads; None if none was asked, the last two also
        if the labels are not pixels. Intervals are the value and 1.96
        standard errors to both sides, by bootstrap over examples (Efron 1979), within [0, 1].
    """
    cells: dict[tuple[str, str, str, str], list[Record]] = {}
    for record in records:
        if record.evidence is not None:
            cells.setdefault((record.model, record.attack, record.protocol, record.source), []).append(record)
    rows: list[dict[str, Any]] = []
    for (model, attack, protocol, source), found in cells.items():
        oracle_reads = [record.oracle_evidence for record in found if record.oracle_evidence is not None]
        rows.append(
            {
                "model": model,
                "attack": attack,
                "protocol": protocol,
                "source": source,
                "n": len(found),
                "metrics": _with_intervals(task, [record.evidence for record in found], seed),
                "score": _means(found, "score"),
                "oracle": _means(found, "oracle_score"),
                "shown": _means([r for r in found if r.shown_score is not None], "shown_score"),
                "oracle_metrics": task.metrics(oracle_reads) if len(oracle_reads) == len(found) else None,
            }
        )
    return rows


def _with_intervals(task: Task, evidence: list[Any], seed: int) -> dict[str, dict[str, float]]:
    generator = np.random.default_rng(seed)
    draws = task.resampled_metrics(
        evidence, [generator.integers(len(evidence), size=len(evidence)).tolist() for _ in range(RESAMPLES)]
    )
    found = {}
    for name, value in task.metrics(evidence).items():
        error = 1.96 * float(np.nanstd([draw[name] for draw in draws], ddof=1))
        found[name] = {"value": value, "low": max(value - error, 0.0), "high": min(value + error, 1.0)}
    return found


def _means(records: list[Record], name: str) -> dict[str, float] | None:
    """Before and after the attack."""
    pairs = [(getattr(record, f"clean_{name}"), getattr(record, name)) for record in records]
    if not pairs or any(after is None for _, after in pairs):
        return None
    before, after = (float(np.mean(side)) for side in zip(*pairs, strict=True))
    return {"before": before, "after": after}
