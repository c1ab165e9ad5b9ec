"""How good is a generator? Two numbers that need no download.

    python scripts/judge_generator.py generators/weights/fashion_mnist_32.safetensors
    python scripts/judge_generator.py generators/weights/fashion_scenes_64.safetensors

- agreement. Of a class-conditional generator: the share of untruncated samples on which a classifier trained on real images reads
  the intended label. Of a SPADE: the share of pixels on which a segmenter trained on real scenes reads the layout off its
  renderings, of layouts of real test scenes and random styles;
- Frechet distance between features of that judge on samples and on real images. The features are our own, so it compares with
  nobody's FID; the distance between real train and real test images, printed beside it, is the floor.

The judge is trained here, on the full real training set, and its accuracy on real test images is printed too. It is another network
than any that a generator was trained with.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gat.cli.exit_codes import exit_code
from gat.latents import Latents
from gat.protocols import Space
from gat.training.loop import TrainSettings, train
from gat.training.methods import Standard, Tools
from generators.spade.checkpoint import is_spade
from generators.spade.settings import SPADESpaceConfig
from generators.stylegan2.settings import StyleGAN2SpaceConfig
from tasks.classification import ClassificationTask
from tasks.datasets.fashion_mnist import FashionMNISTConfig
from tasks.datasets.fashion_scenes import FashionScenesConfig
from tasks.models.small_resnet import SmallResNetConfig
from tasks.models.small_segnet import SmallSegNetConfig
from tasks.segmentation import SegmentationTask, confusion_matrices, confusion_metrics

CHUNK = 250


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Between Gaussians fitted to two sets of features [n, d] (Heusel et al. 2017, eq. 6)."""
    a, b = first.double().numpy(), second.double().numpy()
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The trace of the root is the sum of the roots of the eigenvalues, which are real and positive but for rounding.
    root = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).real.clip(min=0)).sum()
    offset = a.mean(0) - b.mean(0)
    return float(offset @ offset + np.trace(cov_a + cov_b) - 2 * root)


def first_examples(dataset: object, n: int) -> Mapping[str, Tensor]:
    """The images, labels and whatever else the first `n` examples have."""
    batches: list[Mapping[str, Tensor]] = []
    for batch in DataLoader(dataset, batch_size=CHUNK):  # type: ignore[arg-type]
        batches.append(batch)
        if len(batches) * CHUNK >= n:
            break
    return {name: torch.cat([batch[name] for batch in batches])[:n] for name in batches[0]}


def render(space: Space, latents: Latents) -> Tensor:
    site = list(space.sites)[-1]
    n = len(latents[site])
    return space.freeze(latents, [site])({site: latents[site]}, torch.arange(n)).detach()


@torch.no_grad()
def read(model: nn.Module, layers: list[nn.Module], images: Tensor) -> tuple[Tensor, Tensor]:
    """What goes into these layers, averaged over places, as features [n, d]; and the model's answers."""
    features, answers = [], []
    for part in images.split(CHUNK):
        kept: list[Tensor] = []
        hooks = [
            layer.register_forward_pre_hook(lambda _, inputs, kept=kept: kept.append(inputs[0]))
            for layer in layers
        ]
        answers.append(model(part).argmax(1))
        for hook in hooks:
            hook.remove()
        features.append(torch.cat([x.flatten(2).mean(2) if x.ndim == 4 else x for x in kept], dim=1))
    return torch.cat(features), torch.cat(answers)


def taught(
    model: nn.Module, dataset: Any, task: Any, settings: TrainSettings, work: Path, name: str
) -> nn.Module:
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    model = train(model, dataset, Standard(), Tools(task), settings, accelerator, work / name, seed=123)
    return model.eval().cpu()


def judge_images(args: argparse.Namespace) -> dict[str, object]:
    """A class-conditional generator of garments."""
    data = FashionMNISTConfig(source=args.source)
    train_set, test_set = data.build("train"), data.build("test")
    torch.manual_seed(123)
    model: nn.Module = SmallResNetConfig(widths=(32, 64, 128), blocks=(1, 1, 1)).build(
        len(train_set.classes), 32
    )
    settings = TrainSettings(steps=args.steps, lr=3e-3, log_every=50)
    task = ClassificationTask(train_set.classes)
    model = taught(model, train_set, task, settings, args.work, "")
    layers = [model.get_submodule("network.head")]

    space = StyleGAN2SpaceConfig(checkpoint=args.checkpoint).build(train_set.classes)
    ids = torch.arange(args.n)
    labels = ids % len(space.classes)
    samples = torch.cat(
        [render(space, space.sample(labels[rows], rows, seed=99)) for rows in ids.split(CHUNK)]
    )
    test, real = first_examples(test_set, args.n), first_examples(train_set, args.n)
    fake_features, fake_read = read(model, layers, samples)
    test_features, test_read = read(model, layers, test["images"])
    real_features, _ = read(model, layers, real["images"])
    agree = fake_read == labels
    return {
        "n": args.n,
        "classifier_accuracy_on_real_test_images": round(
            float((test_read == test["labels"]).float().mean()), 4
        ),
        "label_agreement": round(float(agree.float().mean()), 4),
        "label_agreement_per_class": {
            name: round(float(agree[labels == k].float().mean()), 3) for k, name in enumerate(space.classes)
        },
        "frechet_distance": round(frechet_distance(fake_features, test_features), 3),
        "frechet_floor_train_vs_test": round(frechet_distance(real_features, test_features), 3),
    }


def judge_scenes(args: argparse.Namespace) -> dict[str, object]:
    """A SPADE of scenes. Renderings have the layouts of real test scenes, so their features are compared with real train scenes'."""
    data = FashionScenesConfig(source=args.source, num_train=max(20_000, args.n), num_test=args.n)
    train_set, test_set = data.build("train"), data.build("test")
    classes = train_set.layout_classes
    torch.manual_seed(123)
    model: nn.Module = SmallSegNetConfig(widths=(32, 64, 96)).build(len(classes), data.image_size)
    settings = TrainSettings(steps=args.steps, batch_size=32, lr=3e-3, log_every=50)
    model = taught(model, train_set, SegmentationTask(classes), settings, args.work, "scenes")
    layers = [*model.get_submodule("network.up").children(), model.get_submodule("network.head")]

    space = SPADESpaceConfig(checkpoint=args.checkpoint).build(
        classes, image_size=(data.image_size, data.image_size)
    )
    test, real = first_examples(test_set, args.n), first_examples(train_set, args.n)
    renderings = torch.cat(
        [
            render(space, space.sample(test["layouts"][rows], rows, seed=99))
            for rows in torch.arange(args.n).split(CHUNK)
        ]
    )
    truth = test["layouts"][:, 0]
    fake_features, fake_read = read(model, layers, renderings)
    test_features, test_read = read(model, layers, test["images"])
    real_features, _ = read(model, layers, real["images"])
    report: dict[str, object] = {"n": args.n}
    for name, answers in (("real_test_scenes", test_read), ("renderings_of_their_layouts", fake_read)):
        matrix = confusion_matrices(answers, truth, len(classes)).sum(0)
        recall = matrix.diagonal() / matrix.sum(1)
        metrics = confusion_metrics(matrix)
        report[name] = {key: round(metrics[key], 4) for key in ("pixel_accuracy", "miou")} | {
            "per_class": {name: round(float(share), 3) for name, share in zip(classes, recall, strict=True)}
        }
    report["frechet_distance"] = round(frechet_distance(fake_features, real_features), 3)
    report["frechet_floor_train_vs_test"] = round(frechet_distance(test_features, real_features), 3)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--n", type=int, default=10_000, help="samples")
    parser.add_argument(
        "--steps", type=int, default=2000, help="of the judge's training; batch 128, of scenes 32"
    )
    parser.add_argument("--source", default="full", choices=("full", "subset"))
    parser.add_argument(
        "--work", type=Path, default=Path("runs/judge"), help="folder; the judge is kept there"
    )
    args = parser.parse_args()
    judge = judge_scenes if is_spade(args.checkpoint) else judge_images
    print(json.dumps(judge(args), indent=1))


if __name__ == "__main__":
    sys.exit(exit_code("judge_generator.py", main))
