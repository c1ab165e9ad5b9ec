"""Train a small class-conditional StyleGAN2 on any classification data set of this project.

    accelerate launch scripts/train_stylegan2.py --out runs/stylegan2

Resumes by running the same command again. Writes, all under --out: `samples/*.png` (ten fixed latents for every class, from
the averaged generator), `log.jsonl`, `state.pt` (to resume), `generator.safetensors` (what `gat` reads).

With `classifier_weight`, a small classifier learns from the real images alongside, and the generator is also taught that it
should read the label off its images (Odena et al. 2017, AC-GAN, with the classifier's loss on real images alone). It keeps
look-alike classes apart, which the discriminator's conditional head does slowly.

Losses: non-saturating logistic (Goodfellow et al. 2014) or relativistic (Huang et al. 2024, "The GAN is dead", eq. 2), both
with R1 (Mescheder et al. 2018), applied lazily every `r1_interval` steps as in StyleGAN2.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from gan_training import Ticks, check_finite, parse_settings, read_state, seeded, share_left
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.utils import save_image

from gat.attacks.frozen import frozen
from gat.cli.exit_codes import exit_code
from gat.config import ConfigError
from gat.files import written_whole
from gat.processes import leave_together
from gat.progress import progress
from gat.training.batches import EndlessBatches
from generators.stylegan2.augment import AdaptiveProbability, augment
from generators.stylegan2.checkpoints import Checkpoint, write_safetensors
from generators.stylegan2.config import StyleGAN2Config
from generators.stylegan2.discriminator import Discriminator
from generators.stylegan2.generator import Generator
from tasks.datasets import ClassificationDataset, open_dataset
from tasks.models.small_resnet import SmallResNetConfig


@dataclass
class Settings:
    """One run. Every field is a flag of the same name."""

    out: str = "runs/stylegan2"
    dataset: str = "fashion_mnist"
    dataset_options: str = '{"source": "full"}'  # JSON
    kimg: float = 500  # thousands of real images shown
    batch_size: int = 64  # per process
    seed: int = 0
    license: str = "Apache-2.0"  # of the trained weights; goes into the file
    dtype: Literal["bf16", "fp32"] = "bf16"  # of convolutions
    threads: int = 0  # CPU threads; 0 is torch's choice

    z_dim: int = 128
    w_dim: int = 128
    channel_base: int = 1024
    channel_max: int = 128
    mapping_layers: int = 2
    discriminator_channel_base: int = 512
    discriminator_architecture: Literal["skip", "resnet", "orig"] = "resnet"

    loss: Literal["non_saturating", "relativistic"] = "non_saturating"
    lr_generator: float = 2.5e-3
    lr_discriminator: float = 2.5e-3
    lr_decay: float = 0.3  # last share of the run over which both learning rates fall linearly to zero
    r1_gamma: float = 0.1
    r1_interval: int = 16
    classifier_weight: float = 0.2  # of an auxiliary classifier's loss in the generator's; 0 is without
    classifier_warmup: int = 500  # steps of the classifier before its word counts in full

    ema_kimg: float = 20  # half-life of the averaged generator
    ema_rampup: float = 0.1  # the half-life is at most this share of the images seen
    ada_target: float = 0.6  # 0 switches augmentation off
    flip: bool = False
    noise_floor: float = (
        0.01  # noise inputs keep at least this strength, so that there is something to attack
    )

    tick_kimg: float = 4
    snapshot_kimg: float = 20


def hold_noise_up(generator: Generator, floor: float) -> None:
    """Keep |noise_strength| >= floor. Left alone on data without stochastic detail, training switches the noise inputs off."""
    with torch.no_grad():
        for name, strength in generator.named_parameters():
            if name.endswith("noise_strength"):
                sign = torch.where(strength < 0, -1.0, 1.0)
                strength.copy_(sign * strength.abs().clamp(min=floor))


def open_pictures(name: str, options: str) -> ClassificationDataset:
    """Training images with one label each.

    Raises:
        ConfigError: if there is no such data set, or it is one of scenes.
    """
    dataset = open_dataset(name, options, "train")
    if not isinstance(dataset, ClassificationDataset) or dataset.task != "classification":
        raise ConfigError(f"--dataset {name} is for {dataset.task}; wanted one for classification")
    return dataset


def main(arguments: list[str] | None = None) -> None:
    settings = parse_settings(Settings, __doc__, arguments)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    accelerator = Accelerator()
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[settings.dtype]
    out = Path(settings.out)
    (out / "samples").mkdir(parents=True, exist_ok=True)

    # Data and networks.
    dataset = open_pictures(settings.dataset, settings.dataset_options)
    num_classes, resolution = len(dataset.classes), dataset[0]["images"].shape[-1]
    config = StyleGAN2Config(
        z_dim=settings.z_dim,
        w_dim=settings.w_dim,
        c_dim=num_classes,
        img_resolution=resolution,
        channel_base=settings.channel_base,
        channel_max=settings.channel_max,
        mapping_layers=settings.mapping_layers,
        discriminator_architecture=settings.discriminator_architecture,
        discriminator_mapping_layers=1,
    )
    torch.manual_seed(settings.seed)
    raw_G = Generator(config)
    raw_D = Discriminator(config.model_copy(update={"channel_base": settings.discriminator_channel_base}))
    raw_D.to(memory_format=torch.channels_last)
    hold_noise_up(raw_G, settings.noise_floor)
    ema = Generator(config).requires_grad_(False).eval()
    ema.load_state_dict(raw_G.state_dict())
    lazy = settings.r1_interval / (settings.r1_interval + 1)
    opt_G = torch.optim.Adam(raw_G.parameters(), lr=settings.lr_generator, betas=(0.0, 0.99))
    opt_D = torch.optim.Adam(raw_D.parameters(), lr=settings.lr_discriminator * lazy, betas=(0.0, 0.99**lazy))
    classifier = SmallResNetConfig().build(num_classes, config.img_resolution)
    opt_C = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=0.02)
    ada = AdaptiveProbability(settings.ada_target)

    # State.
    parts: dict[str, Any] = {"G": raw_G, "D": raw_D, "ema": ema, "C": classifier}
    parts |= {"opt_G": opt_G, "opt_D": opt_D, "opt_C": opt_C}
    state_file, step = out / "state.pt", 0
    taught = 0  # steps of the classifier
    images_per_step = settings.batch_size * world
    shape = {"config": config.model_dump_json(), "images_per_step": images_per_step}
    if (state := read_state(state_file, shape)) is not None:
        for name, part in parts.items():
            part.load_state_dict(state[name])
        step, taught, ada.p = state["step"], state["taught"], state["p"]
        accelerator.print(f"resuming at {step * images_per_step / 1000:.0f} kimg")
    ema.to(device)
    classifier.to(device).to(memory_format=torch.channels_last)
    G, D, opt_G, opt_D = accelerator.prepare(raw_G, raw_D, opt_G, opt_D)
    learner, opt_C = accelerator.prepare(torch.nn.Sequential(classifier), opt_C)
    batches = EndlessBatches(len(dataset), settings.batch_size, settings.seed, step, rank, world)
    loader = iter(
        DataLoader(dataset, batch_sampler=batches, pin_memory=device.type == "cuda")  # type: ignore[arg-type]
    )

    def one_hot(labels: Tensor) -> Tensor:
        return F.one_hot(labels, num_classes).float().to(device)

    def draw(rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents and labels of one batch of fakes."""
        z = torch.randn(settings.batch_size, settings.z_dim, generator=rng)
        return z.to(device), one_hot(torch.randint(num_classes, (settings.batch_size,), generator=rng))

    def judge(images: Tensor, c: Tensor, rng: torch.Generator) -> Tensor:
        images = augment(images, ada.p, rng, settings.flip).contiguous(memory_format=torch.channels_last)
        return D(images, c, dtype=dtype).squeeze(1)

    def save() -> None:
        """A state worth going on from, or none: the last one stays."""
        if not accelerator.is_main_process:
            return
        check_finite(raw_G, step, state_file)
        state: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
        state |= {"step": step, "p": ada.p, "taught": taught, "shape": shape}
        with written_whole(state_file) as temporary:
            torch.save(state, temporary)
        rng = seeded(settings.seed, 777)
        z = torch.randn(10, settings.z_dim, generator=rng).to(device).repeat(num_classes, 1)
        c = one_hot(torch.arange(num_classes).repeat_interleave(10))
        with torch.no_grad():
            grid = ema(z, c, noise="const")
        with written_whole(out / "samples" / f"{round(images_seen / 1000):06d}.png") as temporary:
            save_image(grid.clamp(-1, 1) * 0.5 + 0.5, temporary, nrow=10, padding=1, format="png")
        card = {
            "classes": json.dumps(list(dataset.classes)),
            "license": settings.license,
            "data": dataset.name,
            "recipe": json.dumps(asdict(settings)),
            "kimg": f"{images_seen / 1000:.0f}",
        }
        write_safetensors(out / "generator.safetensors", Checkpoint(config, ema.state_dict(), None, card))

    total_steps = int(settings.kimg * 1000 / images_per_step)
    images_seen = step * images_per_step
    ticks = Ticks(out, accelerator, images_per_step, settings.tick_kimg * 1000, step)
    snapshot_images = settings.snapshot_kimg * 1000
    next_snapshot = (images_seen // snapshot_images + 1) * snapshot_images

    if step == 0 or step >= total_steps:
        save()  # there is always a state to fall back to, and a finished run called again writes its files anew
    with progress("training StyleGAN2", total_steps * images_per_step, done=images_seen) as advance:
        while step < total_steps:
            rng = seeded(settings.seed, step, rank)
            left = share_left(step, total_steps, settings.lr_decay)
            opt_G.param_groups[0]["lr"] = settings.lr_generator * left
            opt_D.param_groups[0]["lr"] = settings.lr_discriminator * lazy * left
            batch = next(loader)
            real = (batch["images"].to(device) * 2 - 1).contiguous(memory_format=torch.channels_last)
            real_c = one_hot(batch["labels"])
            news: dict[str, Tensor] = {}

            # 1. Discriminator.
            z, fake_c = draw(rng)
            with torch.no_grad():
                fake = G(z, fake_c, noise="random", generator=rng, dtype=dtype)
            fake_logits, real_logits = judge(fake, fake_c, rng), judge(real, real_c, rng)
            if settings.loss == "relativistic":
                loss_D = F.softplus(fake_logits - real_logits).mean()
            else:
                loss_D = F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()
            accelerator.backward(loss_D)
            if step % settings.r1_interval == 0:
                inputs = real.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(judge(inputs, real_c, rng).sum(), inputs, create_graph=True)
                penalty = gradient.float().square().sum(dim=(1, 2, 3)).mean()
                accelerator.backward(penalty * (settings.r1_gamma / 2 * settings.r1_interval))
                news["r1"] = penalty * settings.r1_interval
            opt_D.step()
            opt_D.zero_grad()

            # 2. Classifier.
            if settings.classifier_weight:
                classifier.train()
                loss_C = F.cross_entropy(learner(real * 0.5 + 0.5), real_c.argmax(1))
                accelerator.backward(loss_C)
                opt_C.step()
                opt_C.zero_grad()
                taught += 1

            # 3. Generator.
            z, fake_c = draw(rng)
            raw_D.requires_grad_(False)
            fake = G(z, fake_c, noise="random", generator=rng, dtype=dtype)
            fake_logits = judge(fake, fake_c, rng)
            if settings.loss == "relativistic":
                loss_G = F.softplus(real_logits.detach() - fake_logits).mean()
            else:
                loss_G = F.softplus(-fake_logits).mean()
            total_G = loss_G
            if settings.classifier_weight:
                with frozen(classifier):
                    read = F.cross_entropy(classifier(fake.float() * 0.5 + 0.5), fake_c.argmax(1))
                total_G = (
                    loss_G
                    + settings.classifier_weight
                    * min(1.0, taught / max(settings.classifier_warmup, 1))
                    * read
                )
                news |= {"loss_C": loss_C, "loss_read": read}
            accelerator.backward(total_G)
            news |= {"loss_G": loss_G, "loss_D": loss_D, "sign": real_logits.detach().sign().mean()}
            raw_D.requires_grad_(True)
            opt_G.step()
            opt_G.zero_grad()
            hold_noise_up(raw_G, settings.noise_floor)

            # 4. Average the generator.
            images_seen += images_per_step
            half_life = min(settings.ema_kimg * 1000, images_seen * settings.ema_rampup)
            decay = 0.5 ** (images_per_step / max(half_life, 1e-8))
            with torch.no_grad():
                torch._foreach_lerp_(list(ema.parameters()), list(raw_G.parameters()), 1 - decay)
                for averaged, current in zip(ema.buffers(), raw_G.buffers(), strict=True):
                    averaged.copy_(current)

            # 5. Report, adapt, save.
            step += 1
            ticks.add(news)
            note = ""
            if ticks.is_over(step) or step == total_steps:
                means = ticks.means(step)
                note = " ".join(f"{name} {value:.3g}" for name, value in means.items())
                ada.update(means["sign"], ticks.images_at(step))
                ticks.write(step, {**means, "p": ada.p})
                # Only here, where nothing is under way: what is resumed adapts as if it had never stopped.
                if images_seen >= next_snapshot or step == total_steps:
                    save()
                    next_snapshot = (images_seen // snapshot_images + 1) * snapshot_images
            advance(images_per_step, note)

    if accelerator.is_main_process:
        (out / "settings.json").write_text(json.dumps(asdict(settings), indent=1))
        accelerator.print(f"done: {out}")
    leave_together(accelerator)


if __name__ == "__main__":
    sys.exit(exit_code("train_stylegan2.py", main))
