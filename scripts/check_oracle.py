"""Is the oracle right about adversarial images? Sheets to be labelled by looking, and the score afterwards.

    python scripts/check_oracle.py draw runs/fashion_gat_0 --out runs/eyes      # sheet_0.png ..., key.json
    python scripts/check_oracle.py score runs/eyes labels.txt --alike 2 4 6 --out results/fashion_gat/oracle_check.json
    python scripts/check_oracle.py draw runs/fashion_table1/seed0/segmentation --model gat --out runs/eyes

A sheet shows what the run's own attack `gat` made of images so that they fool the undefended model (or, with --model, another one),
in random order, mixed with starting images as a control, without any label. Of scenes a ring marks one spot each, as many in things as
elsewhere, at which the model is fooled; legend.png shows real scenes with the numbers of their classes. `labels.txt` has one word per
image, in order: the class seen, at the ring if there is one (its number), or `?` if it is none or unclear. Classes that are hard to
tell apart, pullovers, coats and shirts, may be counted as one besides: `--alike 2 4 6`.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.transforms.functional import to_pil_image
from tradeoff import validation_scenes

from gat.attacks import LatentAttack, Outcome
from gat.cli.compose import ORIGINAL, Run, RunConfig, open_run
from gat.cli.exit_codes import exit_code
from gat.config import load
from gat.evaluation.judge import outputs
from gat.latents import Latents
from gat.protocols import GenerativeSpace
from gat.report.statistics import proportion

CLEARANCE_PX = 2  # between a spot and the edge of what it lies in
RING_PX = 9  # radius, on the sheet


@dataclass(frozen=True)
class Fooled:
    """Images that fool a model, what they were made of, and what the oracle says of both."""

    images: Float[Tensor, "n 3 h w"]
    start_images: Float[Tensor, "n 3 h w"]
    labels: Int64[Tensor, " n"]
    reads: Int64[Tensor, " n"]
    start_reads: Int64[Tensor, " n"]
    spots: Int64[Tensor, "n 2"] | None = None  # y and x in px, of what is asked about


def fooled_pictures(run: Run, args: argparse.Namespace, attack: LatentAttack) -> Fooled:
    """Pictures of random latents that the model takes for another class."""
    space, oracle = opened(run)
    ids = torch.arange(args.starts or 2 * args.n)
    labels = ids % len(space.classes)
    outcome = fool(run, args, attack, space.sample(labels, ids, args.seed), labels)
    fooled = outcome.success
    images, starts = outcome.images[fooled], outcome.start_images[fooled]
    width = run.config.evaluation.width
    reads, start_reads = (outputs(oracle, shown, width).argmax(1) for shown in (images, starts))
    return Fooled(images, starts, labels[fooled], reads, start_reads)


def fooled_spots(run: Run, args: argparse.Namespace, attack: LatentAttack) -> Fooled:
    """Renderings of validation layouts, and in each a spot that the model was right about and no longer is."""
    space, oracle = opened(run)
    batch = validation_scenes(run, args.starts or args.n)
    labels = batch["labels"]
    outcome = fool(run, args, attack, space.sample(batch["layouts"], batch["ids"], args.seed), labels)
    fooled = (outcome.clean_predictions == labels) & (outcome.predictions != labels)
    semantic, instances = batch["layouts"].unbind(1)
    weights = (fooled & ~near_an_edge(semantic) & ~near_an_edge(instances)).float()
    # a thing as often as stuff: as many spots as there are pixels would be mostly of stuff
    for part in (instances > 0, instances == 0):
        weights = weights / torch.where(part, (weights * part).sum((1, 2), keepdim=True).clamp(min=1), 1)
    rows = weights.flatten(1).any(1).nonzero().squeeze(1)
    generator = torch.Generator().manual_seed(args.seed)
    chosen = weights[rows].flatten(1).multinomial(1, generator=generator).squeeze(1)
    spots = torch.stack([chosen // labels.shape[-1], chosen % labels.shape[-1]], 1)
    images, starts = outcome.images[rows], outcome.start_images[rows]
    width, every = run.config.evaluation.width, torch.arange(len(rows))
    reads, start_reads = (
        outputs(oracle, shown, width).argmax(1)[every, spots[:, 0], spots[:, 1]] for shown in (images, starts)
    )
    return Fooled(images, starts, labels[rows, spots[:, 0], spots[:, 1]], reads, start_reads, spots)


def fool(
    run: Run, args: argparse.Namespace, attack: LatentAttack, latents: Latents, labels: Tensor
) -> Outcome:
    """What the attack makes of these latents so that they fool the model that is asked for."""
    space, _ = opened(run)
    model = run.finished_model(args.model)
    return attack.run(run.tools.task, model, space, latents, labels, compute=run.tools.compute)


def near_an_edge(maps: Int64[Tensor, "n h w"]) -> Bool[Tensor, "n h w"]:
    """Pixels that have another value than theirs within `CLEARANCE_PX`."""
    side = 2 * CLEARANCE_PX + 1
    high, low = (sign * F.max_pool2d(sign * maps.float(), side, 1, CLEARANCE_PX) for sign in (1, -1))
    return high != low


def opened(run: Run) -> tuple[GenerativeSpace, torch.nn.Module]:
    """The generator and the oracle of a run.

    Raises:
        ValueError: If it has not both.
    """
    if run.tools.generator is None or run.tools.oracle is None:
        raise ValueError("this needs a run with a generator and an oracle")
    return run.tools.generator, run.tools.oracle


def draw(args: argparse.Namespace) -> None:
    run = open_run(load(RunConfig, [args.run / "config.yaml"], [f"out={args.run}"]))
    attack = run.config.evaluation.attacks.get("gat")
    if not isinstance(attack, LatentAttack):
        raise ValueError(f"{args.run} has no latent attack named gat in its evaluation")
    if run.test_data.task == "detection":
        raise ValueError(f"{args.run} is of a detector; wanted a classifier's run or a segmenter's")
    of_scenes = run.test_data.task == "segmentation"
    columns, scale = (6, 4) if of_scenes else (10, 3)
    found = (fooled_spots if of_scenes else fooled_pictures)(run, args, attack)
    generator = torch.Generator().manual_seed(args.seed)
    num = len(found.labels)
    if not num:
        raise ValueError(f"the attack gat of {args.run} fools {args.model} nowhere; there is nothing to draw")
    attacked = torch.randperm(num, generator=generator)[: args.n]
    controls = torch.randperm(num, generator=generator)[: args.n // 4]
    images = torch.cat([found.images[attacked], found.start_images[controls]])
    reads = torch.cat([found.reads[attacked], found.start_reads[controls]])
    rows = torch.cat([attacked, controls])
    is_attacked = torch.arange(len(rows)) < len(attacked)
    order = torch.randperm(len(rows), generator=generator)
    args.out.mkdir(parents=True, exist_ok=True)
    key = [
        {"label": int(found.labels[rows[i]]), "attacked": bool(is_attacked[i]), "oracle": int(reads[i])}
        for i in order
    ]
    (args.out / "key.json").write_text(
        json.dumps(
            {"classes": list(run.test_data.classes), "seed": args.seed, "model": args.model, "images": key}
        )
    )
    for sheet, part in enumerate(order.split(columns * columns)):
        side = images.shape[-1] * scale
        page = Image.new("RGB", (columns * (side + 4), columns * (side + 16)), "white")
        pen = ImageDraw.Draw(page)
        for k, i in enumerate(part.tolist()):
            x, y = k % columns * (side + 4), k // columns * (side + 16)
            page.paste(to_pil_image(F.interpolate(images[i : i + 1], scale_factor=scale)[0]), (x, y + 12))
            pen.text((x + 2, y), str(sheet * columns * columns + k), fill="black")
            if found.spots is not None:
                draw_ring(pen, found.spots[rows[i]], (x, y + 12), scale)
        page.save(args.out / f"sheet_{sheet}.png")
    if of_scenes:
        draw_legend(run, columns, scale).save(args.out / "legend.png")
    print(f"{len(order)} images on {sheet + 1} sheets in {args.out}")


def draw_ring(
    pen: ImageDraw.ImageDraw, spot: Int64[Tensor, "2"], corner: tuple[int, int], scale: int
) -> None:
    """A ring, white and black so that it shows on everything; what it marks stays bare."""
    y, x = (spot * scale + scale // 2).tolist()
    for radius, color in ((RING_PX, "black"), (RING_PX + 1, "white")):
        box = (corner[0] + x - radius, corner[1] + y - radius, corner[0] + x + radius, corner[1] + y + radius)
        pen.ellipse(box, outline=color)


def draw_legend(run: Run, columns: int, scale: int) -> Image.Image:
    """Two real training scenes of every class, with a ring on it, its number and its name."""
    side = run.train_data[0]["images"].shape[-1] * scale
    classes = run.test_data.classes
    page = Image.new("RGB", (columns * (side + 4), -(-2 * len(classes) // columns) * (side + 16)), "white")
    pen, place = ImageDraw.Draw(page), 0
    for kind, name in enumerate(classes):
        scenes = (default_collate([run.train_data[i]]) for i in range(len(run.train_data)))
        shown = (
            (scene["images"], spots)
            for scene in scenes
            if len(spots := spots_of(scene["layouts"][0, 0], kind))
        )
        for images, spots in islice(shown, 2):
            x, y = place % columns * (side + 4), place // columns * (side + 16)
            page.paste(to_pil_image(F.interpolate(images, scale_factor=scale)[0]), (x, y + 12))
            pen.text((x + 2, y), f"{kind} {name}", fill="black")
            draw_ring(pen, spots[len(spots) // 2], (x, y + 12), scale)
            place += 1
    return page


def spots_of(semantic: Int64[Tensor, "h w"], kind: int) -> Int64[Tensor, "n 2"]:
    """Pixels of a class that lie well inside it."""
    return ((semantic == kind) & ~near_an_edge(semantic[None])[0]).nonzero()


def score(args: argparse.Namespace) -> None:
    key = json.loads((args.sheets / "key.json").read_text())
    seen = args.labels.read_text().split()
    if len(seen) != len(key["images"]):
        raise ValueError(f"{args.labels} has {len(seen)} labels, the sheets have {len(key['images'])} images")
    alike = " --alike " + " ".join(args.alike) if args.alike else ""
    result = {
        "command": f"python scripts/check_oracle.py score {args.sheets} {args.labels}{alike}",
        "seed": key["seed"],
        "model": key["model"],
    }
    for name, attacked in (("adversarial", True), ("starting", False)):
        pairs = [
            (image, word)
            for image, word in zip(key["images"], seen, strict=True)
            if image["attacked"] == attacked
        ]
        for what, hits in (
            ("eye_reads_label", [word == str(image["label"]) for image, word in pairs]),
            (
                "eye_reads_label_or_alike",
                [
                    word == str(image["label"]) or {word, str(image["label"])} <= set(args.alike)
                    for image, word in pairs
                ],
            ),
            ("oracle_reads_label", [image["oracle"] == image["label"] for image, _ in pairs]),
            ("oracle_agrees_with_eye", [word == str(image["oracle"]) for image, word in pairs]),
            ("eye_unclear", [word == "?" for _, word in pairs]),
        ):
            share = proportion(sum(hits), len(hits))
            result[f"{name}/{what}"] = {k: round(getattr(share, k), 4) for k in ("value", "low", "high", "n")}
    result["labels_seen"] = " ".join(seen)
    result["labels_true"] = " ".join(str(image["label"]) for image in key["images"])
    result["oracle_reads"] = " ".join(str(image["oracle"]) for image in key["images"])
    result["attacked"] = " ".join(str(int(image["attacked"])) for image in key["images"])
    text = json.dumps(result, indent=1)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    drawing = commands.add_parser("draw")
    drawing.add_argument("run", type=Path)
    drawing.add_argument(
        "--n", type=int, default=240, help="adversarial images; a quarter as many controls are added"
    )
    drawing.add_argument("--model", default=ORIGINAL, help="who is fooled")
    drawing.add_argument(
        "--starts",
        type=int,
        help="how many are attacked to find that many (default: twice as many; of scenes, as many)",
    )
    drawing.add_argument("--seed", type=int, default=4)
    drawing.add_argument("--out", type=Path, required=True)
    drawing.set_defaults(do=draw)
    scoring = commands.add_parser("score")
    scoring.add_argument("sheets", type=Path)
    scoring.add_argument("labels", type=Path)
    scoring.add_argument(
        "--alike", nargs="+", default=[], metavar="CLASS", help="numbers of classes that count as one"
    )
    scoring.add_argument("--out", type=Path)
    scoring.set_defaults(do=score)
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    sys.exit(exit_code("check_oracle.py", main))
