"""Is the oracle right about adversarial images? Sheets to be labelled by looking, and the score afterwards.

    python scripts/check_oracle.py draw runs/fashion_gat_0 --out runs/eyes      # sheet_0.png ..., key.json
    python scripts/check_oracle.py score runs/eyes labels.txt --alike 2 4 6 --out results/fashion_gat/oracle_check.json

A sheet shows what the run's own attack `gat` made of images so that they fool the undefended model (or, with --model, another one),
in random order, mixed with starting images as a control, without any label. `labels.txt` has one word per image, in order: the class
seen (its number), or `?` if it is none or unclear. Classes that are hard to tell apart, pullovers, coats and shirts, may be counted as
one besides: `--alike 2 4 6`.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torchvision.transforms.functional import to_pil_image

from gat.attacks import LatentAttack
from gat.cli.compose import ORIGINAL, RunConfig, open_run
from gat.config import load
from gat.report.statistics import proportion

COLUMNS, SCALE = 10, 3


def draw(args: argparse.Namespace) -> None:
    run = open_run(load(RunConfig, [args.run / "config.yaml"], [f"out={args.run}"]))
    space, oracle, task = run.tools.generator, run.tools.oracle, run.tools.task
    if space is None or oracle is None:
        raise SystemExit("this needs a run with a generator and an oracle")
    attack = run.config.evaluation.attacks.get("gat")
    if not isinstance(attack, LatentAttack):
        raise SystemExit(f"{args.run} has no latent attack named gat in its evaluation")
    ids = torch.arange(args.starts or 2 * args.n)
    labels = ids % len(space.classes)
    latents = space.sample(labels, ids, args.seed)
    model = run.finished_model(args.model)
    outcome = attack.run(task, model, space, latents, labels, compute=run.tools.compute)
    fooled = outcome.success.nonzero().squeeze(1)
    generator = torch.Generator().manual_seed(args.seed)
    attacked = fooled[torch.randperm(len(fooled), generator=generator)[: args.n]]
    controls = fooled[torch.randperm(len(fooled), generator=generator)[: args.n // 4]]
    images = torch.cat([outcome.images[attacked], outcome.start_images[controls]])
    rows = torch.cat([attacked, controls])
    is_attacked = torch.arange(len(rows)) < len(attacked)
    order = torch.randperm(len(rows), generator=generator)
    with torch.no_grad():
        reads = oracle(images).argmax(1)
    args.out.mkdir(parents=True, exist_ok=True)
    key = [
        {"label": int(labels[rows[i]]), "attacked": bool(is_attacked[i]), "oracle": int(reads[i])}
        for i in order
    ]
    (args.out / "key.json").write_text(
        json.dumps({"classes": list(space.classes), "seed": args.seed, "model": args.model, "images": key})
    )
    for sheet, part in enumerate(order.split(COLUMNS * COLUMNS)):
        side = images.shape[-1] * SCALE
        page = Image.new("RGB", (COLUMNS * (side + 4), COLUMNS * (side + 16)), "white")
        pen = ImageDraw.Draw(page)
        for k, i in enumerate(part.tolist()):
            x, y = k % COLUMNS * (side + 4), k // COLUMNS * (side + 16)
            page.paste(to_pil_image(F.interpolate(images[i : i + 1], scale_factor=SCALE)[0]), (x, y + 12))
            pen.text((x + 2, y), str(sheet * COLUMNS * COLUMNS + k), fill="black")
        page.save(args.out / f"sheet_{sheet}.png")
    print(f"{len(order)} images on {sheet + 1} sheets in {args.out}")


def score(args: argparse.Namespace) -> None:
    key = json.loads((args.sheets / "key.json").read_text())
    seen = args.labels.read_text().split()
    if len(seen) != len(key["images"]):
        raise SystemExit(f"{args.labels} has {len(seen)} labels, the sheets have {len(key['images'])} images")
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
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


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
        "--starts", type=int, help="how many are attacked to find that many (default: twice as many)"
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
    main()
