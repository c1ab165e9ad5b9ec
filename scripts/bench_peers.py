"""Every attack against the best of its peers: how many examples per second, and how many of them the model withstands.

    python scripts/bench_peers.py --run runs/fashion_gat_0
    python scripts/bench_peers.py --only pgd-20 spatial --json > bench.json
    python scripts/bench_peers.py --run runs/fashion_gat_0 --out results/bench_peers      # called again it goes on where it stopped

One model, one set of images, one bound, equally many steps, float32: ours with slots of a given width, the peers in batches of it.
Peers are torchattacks, foolbox and AutoAttack's own package; for stAdv, ReColorAdv, LPA and PPGD, which have no package,
`published_loops.py`.

One judge counts for all: an example is withstood if the model is right before, and right after or the bound is broken. Smallest-change
attacks (CW, DeepFool) are judged at a radius, and by their median distance. Times of a contest take turns, so that a disturbance hits
all alike; a ratio is the median time of the peer over ours. Without --run a tiny pair of models is trained first, one undefended and
one on PGD.
"""

import argparse
import copy
import hashlib
import io
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from contests import EPS, Contest, Side, Whole, contests
from measuring import MODELS, REPOSITORY, machine
from torch import Tensor, nn
from torch.utils.data import default_collate

from gat.attacks import PGD, Compute, ImageAttack
from gat.cli.compose import ORIGINAL, RunConfig, open_run
from gat.cli.exit_codes import exit_code
from gat.cli.table import print_table
from gat.config import load
from gat.files import write_json
from gat.latents import Images, PerExample, Verdicts
from gat.logits import LogitsTask
from gat.protocols import Examples
from tasks.datasets.fashion_mnist import FashionMNISTConfig
from tasks.models.small_resnet import SmallResNetConfig


@dataclass
class Measured:
    """One side of a contest, and what its repeats gave."""

    name: str
    run: Callable[[int], Images]
    sec: list[float] = field(default_factory=list)
    cpu_sec: list[float] = field(default_factory=list)
    images: list[Images] = field(default_factory=list)

    def measure(self, seed: int) -> None:
        """One timed repeat."""
        torch.manual_seed(seed)  # the peers draw from it
        with quiet():
            begin, cpu = time.perf_counter(), time.process_time()
            self.images.append(self.run(seed).detach())
            self.sec.append(time.perf_counter() - begin)
            self.cpu_sec.append(time.process_time() - cpu)

    @property
    def median_sec(self) -> float:
        """By the clock on the wall."""
        return statistics.median(self.sec)


@contextmanager
def quiet() -> Iterator[None]:
    """Peers talk and warn."""
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def run_ours(
    attack: ImageAttack, model: nn.Module, images: Images, labels: Tensor, width: int, seed: int
) -> Images:
    """Our attack, which must have kept its own bounds.

    Raises:
        RuntimeError: if it did not.
    """
    with torch.no_grad():
        task = LogitsTask(model(images[:1]).shape[1])
    attack = attack.model_copy(update={"seed": seed})
    outcome = attack.run(task, model, images, labels, compute=Compute(width))
    for name, bound in attack.bounds.items():
        reached = float(outcome.distances[name].max())
        if reached > bound * (1 + 1e-5) + 1e-6:
            raise RuntimeError(f"{attack.name} broke its bound: {name} {reached:.6g} > {bound:.6g}")
    return outcome.images


def run_peer(
    side: Side | Whole, model: nn.Module, images: Images, labels: Tensor, width: int, seed: int
) -> Images:
    """A peer's attack, batch by batch. It draws from torch's own numbers."""
    if isinstance(side, Whole):
        return side.attack(model, images, labels, width)
    parts = zip(images.split(width), labels.split(width), strict=True)
    return torch.cat([side(model, *part).detach() for part in parts])


@torch.no_grad()
def judge(
    contest: Contest, model: nn.Module, images: Images, labels: Tensor, attacked: Images
) -> tuple[Verdicts, PerExample]:
    """Whether the model withstands, and how far the images went that fool it, infinitely where none does."""
    right = model(images).argmax(1) == labels
    fooled = model(attacked).argmax(1) != labels
    legal = (attacked >= 0).flatten(1).all(1) & (attacked <= 1).flatten(1).all(1)
    distance = torch.zeros(len(images), dtype=torch.float64)
    if contest.distance is not None:
        distance = contest.distance(model, images, attacked).double()
        # A published projection may end outside by a thousandth, and float32 rounds.
        assert contest.bound is not None
        legal &= distance <= contest.bound * 1.002 + 1e-6
    return right & ~(fooled & legal), torch.where(fooled & right, distance, math.inf)


def hold(
    contest: Contest,
    name: str,
    model: nn.Module,
    images: Images,
    labels: Tensor,
    width: int,
    repeats: int,
    seed: int,
) -> list[dict[str, Any]]:
    """All sides in turn, `repeats` times; a row per peer.

    Args:
        name: of the model.
    """
    n = max(1, round(len(images) * contest.share))
    images, labels = images[:n], labels[:n]
    given = model, images, labels, width
    ours = Measured("ours", partial(run_ours, contest.ours, *given))
    peers = [Measured(peer, partial(run_peer, side, *given)) for peer, side in contest.peers.items()]
    for repeat in range(min(repeats, contest.repeats)):
        for side in [ours, *peers][:: -1 if repeat % 2 else 1]:
            side.measure(seed + repeat)
            model.zero_grad(set_to_none=True)  # some peers write gradients of weights
    with torch.no_grad():
        clean = float((model(images).argmax(1) == labels).double().mean())

    def score(side: Measured) -> tuple[float, float | None]:
        """Accuracy left, and median distance of a smallest-change attack, over all repeats."""
        verdicts, distances = zip(
            *(judge(contest, model, images, labels, attacked) for attacked in side.images), strict=True
        )
        middle = float(torch.cat(distances).sort().values[round(len(verdicts) * n * clean / 2)])
        known = contest.smallest_change and math.isfinite(middle)
        return float(torch.cat(verdicts).double().mean()), round(middle, 4) if known else None

    ours_accuracy, ours_distance = score(ours)
    rows = []
    for peer in peers:
        peer_accuracy, peer_distance = score(peer)
        rows.append(
            {
                "attack": contest.name,
                "model": name,
                "peer": peer.name,
                "ratio": round(peer.median_sec / ours.median_sec, 3),
                "cpu_ratio": round(statistics.median(peer.cpu_sec) / statistics.median(ours.cpu_sec), 3),
                "ours_accuracy": round(ours_accuracy, 4),
                "peer_accuracy": round(peer_accuracy, 4),
                "clean_accuracy": round(clean, 4),
                "ours_median_distance": ours_distance,
                "peer_median_distance": peer_distance,
                "ours_examples_per_sec": round(n / ours.median_sec, 2),
                "peer_examples_per_sec": round(n / peer.median_sec, 2),
                "n": n,
                "repeats": len(ours.sec),
                "settings": contest.settings,
            }
        )
    return rows


# From models to the table ------------------------------------------------------------------------------------------------


def tiny_pair(seed: int, data: Examples, steps: tuple[int, int] = (150, 150)) -> dict[str, nn.Module]:
    """A classifier taught on clean images, and the same taught on PGD from there.

    Args:
        steps: of each training, 128 and 64 images a step.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model: nn.Module = SmallResNetConfig().build(10, 32)
    models = {}
    for name, count, batch_size in zip(MODELS, steps, (128, 64), strict=True):
        model = copy.deepcopy(model).train().to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        for _ in range(count):
            rows = torch.randint(len(data), [batch_size], generator=generator).tolist()
            batch = default_collate([data[row] for row in rows])
            images, labels = batch["images"], batch["labels"]
            if name == "trained":
                images = PGD(eps=EPS, steps=5, stop_when_fooled=False)(model, images, labels)
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
        models[name] = model.eval()
    return models


def prepare(
    run: Path | None, trained: str | None, n: int, seed: int
) -> tuple[dict[str, nn.Module], Images, Tensor]:
    """Models in eval mode, and test images drawn with `seed`.

    Args:
        run: folder of a finished run; None trains a pair.
        trained: name of the second model's weights there; None is the run's method.
    """
    test: Examples
    if run is None:
        data = FashionMNISTConfig()
        print("training a tiny pair of models; --run FOLDER takes those of a run", file=sys.stderr)
        models, test = tiny_pair(seed, data.build("train")), data.build("test")
    else:
        opened = open_run(load(RunConfig, [run / "config.yaml"], [f"out={run}"]))
        names = ORIGINAL, trained or opened.config.method.name
        models = {key: opened.finished_model(name).cpu() for key, name in zip(MODELS, names, strict=True)}
        test = opened.test_data
    rows = torch.randperm(len(test), generator=torch.Generator().manual_seed(seed))[:n].tolist()
    batch = default_collate([test[row] for row in rows])
    return models, batch["images"], batch["labels"]


def fingerprint(models: Mapping[str, nn.Module]) -> str:
    """Of all that a row depends on besides its settings: weights, our code and these scripts."""
    total = hashlib.sha256()
    for model in models.values():
        for value in model.state_dict().values():
            total.update(value.contiguous().numpy().tobytes())
    scripts = [
        REPOSITORY / "scripts" / name for name in ("bench_peers.py", "contests.py", "published_loops.py")
    ]
    for path in [*sorted((REPOSITORY / "gat").rglob("*.py")), *scripts]:
        total.update(path.read_bytes())
    return total.hexdigest()[:16]


def bench(
    models: Mapping[str, nn.Module],
    images: Images,
    labels: Tensor,
    chosen: Sequence[Contest],
    *,
    width: int,
    repeats: int,
    seed: int,
    known: Sequence[Mapping[str, Any]] = (),
    save: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> list[dict[str, Any]]:
    """Rows of all contests on all models.

    Args:
        known: rows of contests that need not be held again.
        save: gets all rows after every contest.
    """
    rows = [dict(row) for row in known]
    held = {(row["attack"], row["model"]) for row in rows}
    for contest in chosen:
        for name, model in models.items():
            if (contest.name, name) in held:
                continue
            print(f"{contest.name} on the {name} model", file=sys.stderr)
            rows += hold(contest, name, model, images, labels, width, repeats, seed)
            save(rows)
    return rows


def write_results(result: Mapping[str, Any], folder: Path) -> None:
    """`table.json`: the contests, and the rows that every result of this project has."""
    rows = []
    for contest in result["contests"]:
        shared = {
            "task": "classification",
            "model": contest["model"],
            "attack": contest["attack"],
            "protocol": contest["settings"],
            "n": contest["n"],
            "seeds": result["seeds"],
        }
        peer = contest["peer"].replace(" ", "_")
        values = {
            f"throughput_ratio_to_{peer}": contest["ratio"],
            "accuracy_ours": contest["ours_accuracy"],
            f"accuracy_{peer}": contest["peer_accuracy"],
        }
        for metric, value in values.items():
            row = {**shared, "metric": metric, "value": value, "low": None, "high": None}
            if row not in rows:
                rows.append(row)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "table.json", {**result, "rows": rows})


def known_rows(folder: Path | None, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Contests in `table.json` that were held under the very same settings."""
    if folder is None or not (folder / "table.json").is_file():
        return []
    earlier = json.loads((folder / "table.json").read_text())
    same = all(earlier.get(key) == value for key, value in settings.items())
    return earlier["contests"] if same else []


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """A line per peer; what falls short is marked."""

    def some(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    cells = [
        [
            row["attack"],
            row["model"],
            row["peer"],
            f"{row['ratio']:.2f}" + (" slower" if row["ratio"] < 1 else ""),
            f"{row['cpu_ratio']:.2f}",
            f"{row['ours_examples_per_sec']:.1f}",
            f"{row['ours_accuracy']:.1%}"
            + (" weaker" if row["ours_accuracy"] > row["peer_accuracy"] else ""),
            f"{row['peer_accuracy']:.1%}",
            some(row["ours_median_distance"]),
            some(row["peer_median_distance"]),
            row["n"],
        ]
        for row in rows
    ]
    columns = [
        "attack",
        "model",
        "peer",
        "x faster",
        "by CPU time",
        "examples/s",
        "accuracy left",
        "by the peer",
    ]
    print_table([*columns, "median l2", "of the peer", "n"], cells)


def main() -> None:
    names = [contest.name for contest in contests()]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", type=Path, help="a finished run's folder; a tiny pair is trained if not given"
    )
    parser.add_argument("--trained", help="weights in it to compare the original with; those of its method")
    parser.add_argument("--only", nargs="+", choices=names, metavar="ATTACK", help=f"of {', '.join(names)}")
    parser.add_argument("--n", type=int, default=64, help="test images; dear attacks take a share of them")
    parser.add_argument("--width", type=int, default=32, help="batch size of every pass, of both sides")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of images, starts and the tiny pair")
    parser.add_argument("--threads", type=int, help="torch's own choice if not given")
    parser.add_argument("--json", action="store_true", help="print one object instead of a table")
    parser.add_argument(
        "--out", type=Path, help="folder to write table.json into, such as results/bench_peers"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="hold contests again that are in that file already"
    )
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if min(args.n, args.width, args.repeats) < 1:
        raise ValueError("--n, --width and --repeats must be 1 at least")
    models, images, labels = prepare(args.run, args.trained, args.n, args.seed)
    facts = machine()
    settings = {
        "width": args.width,
        "repeats": args.repeats,
        "seeds": [args.seed],
        "num_images": len(images),
        "precision": "float32",
        "fingerprint": fingerprint(models),
        **{key: facts[key] for key in ("threads", "hardware", "torch")},
    }

    def save(rows: list[dict[str, Any]]) -> None:
        if args.out:
            write_results({**settings, **facts, "contests": rows}, args.out)

    chosen = [contest for contest in contests() if args.only is None or contest.name in args.only]
    known = [] if args.fresh else known_rows(args.out, settings)
    rows = bench(
        models, images, labels, chosen, width=args.width, repeats=args.repeats, seed=args.seed, known=known, save=save
    )  # fmt: skip
    if args.json:
        print(json.dumps({**settings, **facts, "rows": rows}, indent=1))
    else:
        show(rows)


if __name__ == "__main__":
    sys.exit(exit_code("bench_peers.py", main))
