"""How good is a class-conditional generator? Two numbers that need no download.

    python scripts/judge_generator.py generators/weights/fashion_mnist_32.safetensors

- label agreement: share of untruncated samples on which a classifier trained on real images reads the intended label;
- Frechet distance between features of that classifier on samples and on real test images. The features are our own, so it
  compares with nobody's FID; the distance between real train and real test images, printed beside it, is the floor.

The classifier is trained here, on the full real training set, and its accuracy on real test images is printed too.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from gat.training.loop import TrainSettings, train
from gat.training.methods import Standard, Tools
from generators.stylegan2.settings import StyleGAN2SpaceConfig
from tasks.classification import ClassificationTask
from tasks.datasets.fashion_mnist import FashionMNISTConfig
from tasks.models.small_resnet import SmallResNetConfig


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Between Gaussians fitted to two sets of features [n, d] (Heusel et al. 2017, eq. 6)."""
    a, b = first.double().numpy(), second.double().numpy()
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The trace of the root is the sum of the roots of the eigenvalues, which are real and positive but for rounding.
    root = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).real.clip(min=0)).sum()
    offset = a.mean(0) - b.mean(0)
    return float(offset @ offset + np.trace(cov_a + cov_b) - 2 * root)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("--n", type=int, default=10_000, help="samples")
    parser.add_argument("--steps", type=int, default=2000, help="of the classifier's training, batch 128")
    parser.add_argument("--source", default="full", choices=("full", "subset"))
    parser.add_argument("--work", default="runs/judge", help="folder; the classifier is kept there")
    args = parser.parse_args()

    data = FashionMNISTConfig(source=args.source)
    train_set, test_set = data.build("train"), data.build("test")
    task = ClassificationTask(train_set.classes)
    torch.manual_seed(123)
    model = SmallResNetConfig(widths=(32, 64, 128), blocks=(1, 1, 1)).build(len(train_set.classes), 32)
    settings = TrainSettings(steps=args.steps, lr=3e-3, log_every=50)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    model = (
        train(model, train_set, Standard(), Tools(task), settings, accelerator, Path(args.work), seed=123)
        .eval()
        .cpu()
    )

    @torch.no_grad()
    def read(images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and predictions."""
        kept: list[Tensor] = []
        hook = model.network.head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
        predictions = torch.cat([model(part).argmax(1) for part in images.split(500)])
        hook.remove()
        return torch.cat(kept), predictions

    def everything(dataset: object, n: int) -> tuple[Tensor, Tensor]:
        images, labels = [], []
        for batch in DataLoader(dataset, batch_size=500):  # type: ignore[arg-type]
            images.append(batch["images"])
            labels.append(batch["labels"])
            if sum(map(len, labels)) >= n:
                break
        return torch.cat(images)[:n], torch.cat(labels)[:n]

    space = StyleGAN2SpaceConfig(checkpoint=args.checkpoint).build(train_set.classes)
    ids = torch.arange(args.n)
    labels = ids % len(space.classes)
    samples = []
    for rows in ids.split(500):
        latents = space.sample(labels[rows], rows, seed=99)
        site = next(iter(latents))
        samples.append(space.freeze(latents, [site])({site: latents[site]}, torch.arange(len(rows))).detach())
    fake, test, real = torch.cat(samples), everything(test_set, args.n), everything(train_set, args.n)
    fake_features, fake_read = read(fake)
    test_features, test_read = read(test[0])
    real_features, _ = read(real[0])
    agree = fake_read == labels
    print(
        json.dumps(
            {
                "n": args.n,
                "classifier_accuracy_on_real_test_images": round(
                    float((test_read == test[1]).float().mean()), 4
                ),
                "label_agreement": round(float(agree.float().mean()), 4),
                "label_agreement_per_class": {
                    name: round(float(agree[labels == k].float().mean()), 3)
                    for k, name in enumerate(space.classes)
                },
                "frechet_distance": round(frechet_distance(fake_features, test_features), 3),
                "frechet_floor_train_vs_test": round(frechet_distance(real_features, test_features), 3),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
