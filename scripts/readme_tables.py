"""Write the tables of README.md and docs/results.md from results/: nobody types a measured number into a table.

    python scripts/readme_tables.py             # writes
    python scripts/readme_tables.py --check     # fails where one of them says something else than results/

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; the names are those of `DOCUMENTS`.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean
from typing import Any

from gat.cli.exit_codes import exit_code

REPOSITORY = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fashion_gat(results: Path) -> str:
    return (results / "fashion_gat/table.md").read_text()


def fashion_gat_summary(results: Path) -> str:
    rows = _by(_read(results, "fashion_gat"), "attack", "model", "metric")
    lines = [
        [title, *(_seeds(rows[attack, model, "accuracy"]) for model in _MODELS)]
        for title, attack in (
            ("clean, real images", "clean"),
            ("`gat`: ten steps towards the least likely class, finest layers", "gat"),
            ("the same, all layers", "gat-all"),
            ("the same, uphill on the label's loss", "gat-loss"),
            ("PGD 8/255, real images", "pgd-linf-8/255"),
        )
    ]
    return _table(["accuracy under", "undefended", "trained by GAT"], lines)


def fashion_gat_recipes(results: Path) -> str:
    """Both ways to teach attacked pictures, and a smaller network. Its `gat` is the `gat-large` of the others."""
    names = ("fashion_gat", "fashion_gat_labels", "fashion_gat_narrow")
    found = [_by(_read(results, name), "attack", "model", "metric") for name in names]
    lines = []
    for title, *attacks in (
        ("clean, real images", "clean", "clean", "clean"),
        ("`gat`", "gat", "gat", None),
        ("`gat-large`", "gat-large", "gat-large", "gat"),
        ("`gat-loss`", "gat-loss", "gat-loss", None),
        ("`gat-all`", "gat-all", "gat-all", "gat-all"),
        ("`gat-all-loss`", "gat-all-loss", "gat-all-loss", "gat-all-loss"),
        ("PGD 8/255, real images", *["pgd-linf-8/255"] * 3),
    ):
        cells = [
            _seeds(rows[attack, model, "accuracy"]) if attack else ""
            for rows, attack in zip(found, attacks, strict=True)
            for model in _MODELS
        ]
        lines.append([title, *cells])
    header = [
        "attack",
        "original",
        "gat",
        "original, short start",
        "gat, labels",
        "original, 0.15 M",
        "gat, labels, 0.15 M",
    ]
    return _table(header, lines)


def fashion_gat_shares(results: Path) -> str:
    """Between the clean start and where training led: means of the seeds. Two decimals, as clean numbers differ in the second."""
    found = json.loads((results / "fashion_gat/interpolation.json").read_text())["rows"]
    numbers: dict[tuple[float, str, str], list[float]] = {}
    for row in found:
        for metric in ("clean_accuracy", "accuracy_left"):
            numbers.setdefault((row["share"], metric, row["model"]), []).append(100 * row[metric])
    lines = [
        [f"{share:g}"]
        + [
            f"{mean(numbers[share, metric, model]):.{digits}f}"
            for metric, digits in (("clean_accuracy", 2), ("accuracy_left", 1))
            for model in _MODELS
        ]
        for share in sorted({share for share, _, _ in numbers})
    ]
    return _table(["share", "clean, original", "clean, gat", "`gat`, original", "`gat`, gat"], lines)


def table1(results: Path) -> str:
    found = _read(results, "table1")
    ours = {(row["task"], row["model"], row["attack"] == "clean"): _range(row) for row in found["rows"]}
    paper: dict[tuple[str, str, bool], list[str]] = {}
    for row in found["paper"]:
        paper.setdefault((row["task"], row["model"], row["attack"] == "clean"), []).append(
            _percent(row["value"])
        )
    columns = [
        (task, clean) for task in ("classification", "segmentation", "detection") for clean in (True, False)
    ]
    lines = [[model, *(ours[task, model, clean] for task, clean in columns)] for model in _MODELS]
    lines += [
        [f"*paper, {model}*", *(f"*{' / '.join(paper[task, model, clean])}*" for task, clean in columns)]
        for model in _MODELS
    ]
    header = [
        "model",
        "classification, clean",
        "attacked",
        "segmentation, clean",
        "attacked",
        "detection AP, clean",
        "attacked",
    ]
    return _table(header, lines)


def table1_others(results: Path) -> str:
    found = _read(results, "table1")
    rows = _under_all_attacks(found)

    def sizes(attack: str, of: str = "eps") -> str:
        runs = (found["config"]["runs"][task] for task in ("segmentation", "detection"))
        attacks = (run["evaluation"]["attacks"].get(attack) for run in runs)
        return "; ".join(f"{settings[of]['gamma/*']:g}" for settings in attacks if settings)

    titles = {
        "gat": f"GAT, as above ({sizes('gat')})",
        "gat-start": "renderings, not attacked",
        "gat-large": f"GAT, further away ({sizes('gat-large')})",
        "gat-least_likely": f"GAT, towards the least likely class alone ({sizes('gat-least_likely')})",
        "gat-loss": f"GAT, uphill on the plain loss ({sizes('gat-loss')})",
        "gat-loss-large": f"GAT, uphill on the plain loss ({sizes('gat-loss-large')})",
        "gat-free": f"GAT, no budget (steps of {sizes('gat-free', 'step_size')})",
        "gat-all": "GAT, all layers, loss, no budget",
        "pgd-linf-8/255": "PGD 8/255",
        "segpgd-linf-8/255": "SegPGD 8/255",
        "spatial": "spatial",
        "recolor": "recolor",
    }
    columns = (("segmentation", "value"), ("segmentation", "shown"), ("detection", "value"))
    lines = []
    for attack, title in titles.items():
        cells = [
            (rows.get((task, attack, model)) or {}).get(value) for task, value in columns for model in _MODELS
        ]
        if any(cells):
            lines.append([title, *("" if value is None else _percent(value) for value in cells)])
    header = (
        "segmenter, original",
        "gat",
        "where the oracle reads, original",
        "gat",
        "detector, original",
        "gat",
    )
    return _table(["attack", *header], lines)


def table1_labelled(results: Path) -> str:
    """Segmenters by how many labelled scenes they learn from, and what renderings do without the attack."""
    lines = []
    for name, model in (
        ("table1", "original"),
        ("table1_random", "random_latents"),
        ("table1", "gat"),
        ("table1_4000", "original"),
        ("table1_4000", "gat"),
    ):
        found = _read(results, name)
        rows = _under_all_attacks(found)
        attacks = ("gat-start", "pgd-linf-8/255", "segpgd-linf-8/255", "spatial", "recolor")
        runs = [
            json.loads(file.read_text()) for file in sorted((results / name).glob("clean_5000_seed*.json"))
        ]
        clean = [_by(run, "model", "metric")[model, "pixel_accuracy"]["value"] for run in runs]
        lines.append(
            [
                str(found["config"]["runs"]["segmentation"]["data"]["num_train"]),
                model,
                f"{100 * mean(clean):.2f} ({', '.join(f'{100 * value:.2f}' for value in clean)})",
                _seeds(rows["segmentation", "gat", model]),
                *(_percent(rows["segmentation", attack, model]["value"]) for attack in attacks),
            ]
        )
    header = "labelled scenes, model, clean, attacked, renderings, PGD 8/255, SegPGD 8/255, spatial, recolor"
    return _table(header.split(", "), lines)


def table2(results: Path) -> str:
    """The strict protocol, without the spread over seeds."""
    return re.sub(r" \([\d.]+-[\d.]+\)", "", _first_table(results / "table2/table.md", "## Protocol strict"))


def table2_pairs(results: Path) -> str:
    return _first_table(results / "table2/table.md", "### gat and the others, protocol strict")


def bench_attack(results: Path) -> str:
    found = _read(results, "bench_attack")
    ideas = _by({"rows": found["ideas"]}, "name", "model")
    models = ("undefended", "trained")
    lines = [["ours / straightforward", *(f"**{found[f'ratio_{model}']:.1f}**" for model in models)]]
    for title, idea in (
        ("gradients of latents only", "gradients of latents only"),
        (
            "shared kernels with demodulation tables (per-example ones are slow on CPUs)",
            "shared kernels, demodulation tables",
        ),
        ("finished examples leave, slots refill", "finished examples leave, slots refill"),
        ("channels-last memory layout", "channels_last"),
        ("fine layers resume behind the others", "prefix reuse"),
        ("bfloat16, with a verdict in float32", "bfloat16, float32 verdict"),
    ):
        if not all(ideas[idea, model]["in_ours"] for model in models):
            continue
        lines.append([title, *(f"{ideas[idea, model]['ratio_to_previous']:.1f}" for model in models)])
    lines.append(
        [
            "share of the measured matmul peak",
            *(f"{100 * found[f'peak_fraction_{model}']:.0f} %" for model in models),
        ]
    )
    return _table(["adversarial examples", *models], lines)


def bench_peers(results: Path) -> str:
    """Beside the fastest peer in speed and the strongest in accuracy."""
    contests: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for contest in _read(results, "bench_peers")["contests"]:
        contests.setdefault(contest["attack"], {}).setdefault(contest["model"], []).append(contest)
    lines = []
    for attack, models in contests.items():
        line = [attack]
        for model in ("undefended", "trained"):
            fastest = min(models[model], key=lambda contest: float(contest["ratio"]))
            left = min(float(contest["peer_accuracy"]) for contest in models[model])
            line += [
                f"{fastest['ratio']:.3g} ({fastest['peer']})",
                f"{100 * fastest['ours_accuracy']:.0f} / {100 * left:.0f}",
            ]
        lines.append(line)
    return _table(["attack", "undefended, x faster", "accuracy %", "trained, x faster", "accuracy %"], lines)


DOCUMENTS: dict[str, tuple[Callable[[Path], str], ...]] = {
    "README.md": (fashion_gat_summary, table1, table2),
    "docs/results.md": (
        fashion_gat,
        fashion_gat_shares,
        fashion_gat_recipes,
        table1,
        table1_others,
        table1_labelled,
        table2,
        table2_pairs,
        bench_attack,
        bench_peers,
    ),
}

_MODELS = ("original", "gat")


def fill(document: str, text: str, results: Path) -> str:
    """`text` of one of `DOCUMENTS` with every table in it as `results` has it.

    Raises:
        ValueError: for a table that the document should not have, or one that it has not.
    """
    tables = {table.__name__: table for table in DOCUMENTS[document]}
    names = [match["name"] for match in BLOCK.finditer(text)]
    if sorted(names) != sorted(tables):
        raise ValueError(f"{document} has the tables {sorted(names)}, it should have {sorted(tables)}")
    return BLOCK.sub(lambda match: f"{match[1]}{tables[match['name']](results).strip()}\n{match[3]}", text)


def _read(results: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((results / name / "table.json").read_text())
    return found


def _by(table: dict[str, Any], *keys: str) -> dict[tuple[str, ...], dict[str, Any]]:
    return {tuple(row[key] for key in keys): row for row in table["rows"]}


def _under_all_attacks(found: dict[str, Any]) -> dict[tuple[str, ...], dict[str, Any]]:
    return _by({"rows": found["rows"] + found["other_attacks"]}, "task", "attack", "model")


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _range(row: dict[str, Any]) -> str:
    return f"{_percent(row['value'])} ({_percent(row['low'])}-{_percent(row['high'])})"


def _seeds(row: dict[str, Any]) -> str:
    """Of more than three seeds, the lowest and the highest."""
    each = row["per_seed"]
    brackets = (
        ", ".join(map(_percent, each)) if len(each) <= 3 else f"{_percent(min(each))}-{_percent(max(each))}"
    )
    return f"{_percent(row['value'])} ({brackets})"


def _table(header: list[str], lines: Iterable[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *lines))


def _first_table(file: Path, heading: str) -> str:
    lines = file.read_text().partition(f"{heading}\n")[2].strip().splitlines()
    return "\n".join(
        lines[: next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    for document in DOCUMENTS:
        path = REPOSITORY / document
        before = path.read_text()
        after = fill(document, before, REPOSITORY / "results")
        if args.check and before != after:
            raise ValueError(f"{document} and results/ differ; run python scripts/readme_tables.py")
        if not args.check:
            path.write_text(after)


if __name__ == "__main__":
    sys.exit(exit_code("readme_tables.py", main))
