"""Train a small SPADE on any data set of scenes of this project.

    accelerate launch scripts/train_spade.py --out runs/spade

Resumes by running the same command again, whenever it was killed. Writes, all under --out: `samples/*.png` (layout, real image,
renderings), `log.jsonl`, `state.pt` (to resume), `generator.safetensors` (what `gat` reads: the averaged generator with spectral
norms folded).

Losses, after Park et al. 2019 ("Semantic Image Synthesis with Spatially-Adaptive Normalization"): hinge, feature matching, and
with `style=vae` the divergence of the style's posterior. Without a network pretrained on photographs, `likeness=pixels`, L1 at
several scales, stands in for their perceptual loss; `likeness=vgg` or `alexnet` is one, where torch.hub has the weights.

Three differences. Renderings of the last `prior_share` of each batch have a random style, as they will have in use, and only the
discriminator judges those. A rendering is made once per step, for both players. And with `reader_weight`, a small segmenter learns
from the real images alongside, and the generator is also taught that it should read the layout off its renderings (Odena et al.
2017, AC-GAN, with the reader's loss on real images alone).
"""

import colorsys
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from gan_training import Ticks, check_finite, parse_settings, read_state, seeded, share_left
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, default_collate
from torchvision.utils import save_image

from gat.attacks.frozen import frozen
from gat.cli.exit_codes import exit_code
from gat.config import ConfigError
from gat.files import written_whole
from gat.perceptual import Phi, distance, open_network
from gat.processes import leave_together
from gat.progress import progress
from gat.training.batches import EndlessBatches
from generators.spade.checkpoint import Checkpoint, write_safetensors
from generators.spade.config import UNKNOWN, SPADEConfig
from generators.spade.discriminator import (
    MultiscaleDiscriminator,
    feature_matching_loss,
    hinge_loss_D,
    hinge_loss_G,
)
from generators.spade.encoder import Posterior, StyleEncoder
from generators.spade.networks import Generator, encode_layouts
from generators.spade.space import measure_scales
from tasks.datasets import SceneDataset, open_dataset
from tasks.models.small_segnet import SmallSegNetConfig


@dataclass
class Settings:
    """One run. Every field is a flag of the same name."""

    out: str = "runs/spade"
    dataset: str = "fashion_scenes"
    dataset_options: str = '{"source": "full", "num_train": 40000}'  # JSON
    kimg: float = 160  # thousands of real images shown
    batch_size: int = 16  # per process
    seed: int = 0
    license: str = "Apache-2.0"  # of the trained weights; goes into the file
    threads: int = 0  # CPU threads; 0 is torch's choice

    style: Literal["vae", "none"] = (
        "vae"  # z from an image encoder in training, random in use; none: start from the layout
    )
    z_dim: int = 64
    width: int = 8  # ngf
    hidden: int = 32  # nhidden
    upsampling: Literal["normal", "more", "most"] = "normal"
    discriminator_width: int = 16  # ndf
    discriminator_scales: int = 2
    discriminator_layers: int = 3
    encoder_width: int = 16

    lr_generator: float = 1e-3
    lr_discriminator: float = 2e-3  # two time scales (Heusel et al. 2017)
    beta2: float = 0.9
    lr_decay: float = 0.5  # last share of the run over which both learning rates fall linearly to zero
    init_gain: float = 1.0  # of Xavier's normal initialisation
    matching_weight: float = 10  # of feature matching
    likeness: Literal["pixels", "none", "alexnet", "vgg"] = "pixels"
    likeness_weight: float = 10
    divergence_weight: float = 0.01
    prior_share: float = 0.25  # of each batch
    reader_weight: float = 1  # of an auxiliary segmenter's loss in the generator's; 0 is without
    reader_warmup: int = 500  # steps of the reader before its word counts in full

    ema_kimg: float = 5  # half-life of the averaged generator
    ema_rampup: float = 0.1  # the half-life is at most this share of the images seen
    statistics_images: int = (
        256  # for batch norm's statistics, and the scales of gamma and beta, of the averaged generator
    )

    tick_kimg: float = 1
    snapshot_kimg: float = 5
    samples: int = 8  # rows of the sample grid


@torch.no_grad()
def initialize(module: nn.Module, gain: float) -> None:
    """Xavier's normal for weights, zero for biases. Spectral norms find their weights' new singular vectors."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_normal_(parameter, gain)
        else:
            nn.init.zeros_(parameter)
    for part in module.modules():
        if parametrize.is_parametrized(part, "weight"):
            for _ in range(15):  # in train mode every look makes one power iteration
                _ = part.weight


class Painter(nn.Module):
    """What one optimiser teaches: the generator, and with `style=vae` the encoder that tells it the styles of real images."""

    def __init__(self, generator: Generator, encoder: StyleEncoder | None) -> None:
        super().__init__()
        self.generator, self.encoder = generator, encoder

    def forward(
        self, semantics: Tensor, images: Tensor, noise: Tensor, num_random: int
    ) -> tuple[Tensor, Posterior | None]:
        """Renderings, the last `num_random` of random style, and the posterior of the others'."""
        if self.encoder is None:
            return self.generator(semantics), None
        n = len(images) - num_random
        posterior = self.encoder(semantics[:n], images[:n])
        z = torch.cat([posterior.sample(noise[:n]), noise[n:]])
        return self.generator(semantics, z), posterior


def halves(outputs: list[list[Tensor]]) -> list[list[list[Tensor]]]:
    """What the discriminator said of the first and of the second half of a batch."""
    pairs = [[layer.chunk(2) for layer in scale] for scale in outputs]
    return [[[pair[i] for pair in scale] for scale in pairs] for i in range(2)]


def multiscale_l1(a: Tensor, b: Tensor, scales: int = 3) -> Tensor:
    """Mean over scales, each half the size of the one before. The coarse ones forgive textures that are out of phase."""
    losses = [F.l1_loss(a, b)]
    for _ in range(scales - 1):
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        losses.append(F.l1_loss(a, b))
    return torch.stack(losses).mean()


def make_likeness(settings: Settings, images: Tensor) -> Callable[[Tensor, Tensor], Tensor] | None:
    """How far renderings are from the real images, both in [-1, 1]; None is without."""
    if settings.likeness == "none" or not settings.likeness_weight:
        return None
    if settings.likeness == "pixels":
        return multiscale_l1
    network = open_network(settings.likeness, nn.Identity(), images)

    def perceptual(fake: Tensor, real: Tensor) -> Tensor:
        with Phi(network.module, network.layers, images) as phi:
            with torch.no_grad():
                wanted = phi(real * 0.5 + 0.5)
            return distance(phi(fake * 0.5 + 0.5), wanted).square().mean()

    return perceptual


@torch.no_grad()
def take_statistics(generator: Generator, semantics: Tensor, z: Tensor | None, width: int) -> None:
    """Set batch norm's running statistics to the means over these inputs; averaged weights have no others that fit."""
    norms = [module for module in generator.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over batches
    generator.train()
    for rows in torch.arange(len(semantics)).split(width):
        generator(semantics[rows], None if z is None else z[rows])
    generator.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def paint_layouts(layouts: Tensor, num_classes: int) -> Tensor:
    """Semantic maps in colours, [b, 3, h, w] in [0, 1]; hues go round, every second class is darker, unknown is black."""
    colors = torch.tensor(
        [colorsys.hsv_to_rgb(k / num_classes, 0.7, 1 if k % 2 else 0.65) for k in range(num_classes)]
        + [(0.0, 0.0, 0.0)]
    )
    semantic = layouts[:, 0]
    return colors[torch.where(semantic == UNKNOWN, num_classes, semantic)].permute(0, 3, 1, 2)


def open_scenes(name: str, options: str) -> SceneDataset:
    """Training scenes with their layouts.

    Raises:
        ConfigError: if there is no such data set, or it has no layouts to paint from.
    """
    dataset = open_dataset(name, options, "train")
    if not isinstance(dataset, SceneDataset) or not dataset.layout_classes:
        raise ConfigError(
            f"--dataset {name} has no label maps; take fashion_scenes, coco_stuff, ade20k or cityscapes"
        )
    return dataset


def main(arguments: list[str] | None = None) -> None:
    settings = parse_settings(Settings, __doc__, arguments)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    accelerator = Accelerator()
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    out = Path(settings.out)
    (out / "samples").mkdir(parents=True, exist_ok=True)

    # Data and networks.
    dataset = open_scenes(settings.dataset, settings.dataset_options)
    height, width = dataset[0]["images"].shape[1:]
    num_classes = len(dataset.layout_classes)
    config = SPADEConfig(
        label_nc=num_classes,
        contain_dontcare=False,
        classes=tuple(dataset.layout_classes),
        ngf=settings.width,
        nhidden=settings.hidden,
        num_upsampling_layers=settings.upsampling,
        crop_size=width,
        aspect_ratio=width / height,
        use_vae=settings.style == "vae",
        z_dim=settings.z_dim,
    )
    torch.manual_seed(settings.seed)
    raw_G = Generator(config, spectral=True)
    encoder = StyleEncoder(config, settings.encoder_width) if config.use_vae else None
    painter = Painter(raw_G, encoder)
    raw_D = MultiscaleDiscriminator(
        config.semantic_nc,
        num_D=settings.discriminator_scales,
        n_layers=settings.discriminator_layers,
        ndf=settings.discriminator_width,
    )
    for stage in raw_G.stages:  # what tells z on keeps its size, or nobody would listen
        initialize(raw_G.get_submodule(stage.name), settings.init_gain)
    initialize(raw_G.conv_img, settings.init_gain)
    initialize(raw_D, settings.init_gain)
    reader = SmallSegNetConfig().build(num_classes, width)
    ema = Generator(config).requires_grad_(False).eval()
    ema.load_state_dict(raw_G.folded_state_dict())
    betas = (0.0, settings.beta2)
    opt_G = torch.optim.Adam(painter.parameters(), lr=settings.lr_generator, betas=betas)
    opt_D = torch.optim.Adam(raw_D.parameters(), lr=settings.lr_discriminator, betas=betas)
    opt_R = torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=0.02)

    # State.
    parts: dict[str, Any] = {"painter": painter, "D": raw_D, "ema": ema, "reader": reader}
    parts |= {"opt_G": opt_G, "opt_D": opt_D, "opt_R": opt_R}
    state_file, step = out / "state.pt", 0
    shape = {"config": config.model_dump_json(), "images_per_step": settings.batch_size * world}
    if (state := read_state(state_file, shape)) is not None:
        for name, part in parts.items():
            part.load_state_dict(state[name])
        step = state["step"]
        accelerator.print(f"resuming at {step * shape['images_per_step'] / 1000:.0f} kimg")
    for module in (painter, raw_D, ema, reader):
        module.to(device).to(memory_format=torch.channels_last)
    if world > 1 and device.type == "cuda":
        painter = nn.SyncBatchNorm.convert_sync_batchnorm(painter)
    G, D, opt_G, opt_D = accelerator.prepare(painter, raw_D, opt_G, opt_D)
    learner, opt_R = accelerator.prepare(nn.Sequential(reader), opt_R)
    batches = EndlessBatches(len(dataset), settings.batch_size, settings.seed, step, rank, world)
    loader = iter(
        DataLoader(dataset, batch_sampler=batches, pin_memory=device.type == "cuda")  # type: ignore[arg-type]
    )
    likeness = make_likeness(settings, torch.zeros(1, 3, height, width, device=device))

    def encode(layouts: Tensor) -> Tensor:
        return encode_layouts(layouts.to(device), config).contiguous(memory_format=torch.channels_last)

    def normal(rng: torch.Generator, n: int) -> Tensor:
        return torch.randn(n, settings.z_dim, generator=rng).to(device)

    def save() -> None:
        """A state worth going on from, or none: the last one stays."""
        if not accelerator.is_main_process:
            return
        check_finite(painter, step, state_file)
        n = min(settings.statistics_images, len(dataset))
        seen = default_collate([dataset[i]["layouts"] for i in range(n)])
        rng = seeded(settings.seed, 777)
        take_statistics(ema, encode(seen), normal(rng, n) if config.use_vae else None, settings.batch_size)
        state = {name: part.state_dict() for name, part in parts.items()}
        state |= {"step": step, "shape": shape}
        with written_whole(state_file) as temporary:
            torch.save(state, temporary)
        grid = draw_grid()
        with written_whole(out / "samples" / f"{round(images_seen / 1000):06d}.png") as temporary:
            save_image(grid, temporary, nrow=columns, padding=1, format="png")
        metadata = {
            "license": settings.license,
            "site_scales": json.dumps(measure_scales(ema, seen)),
            "data": dataset.name,
            "recipe": json.dumps(asdict(settings)),
            "command": shlex.join(["python", "scripts/train_spade.py", *(arguments or sys.argv[1:])]),
            "metrics": json.dumps({"kimg": images_seen / 1000, **last_row}),
        }
        checkpoint = Checkpoint(config, ema.state_dict(), metadata)
        write_safetensors(out / "generator.safetensors", checkpoint)

    columns = 6 if config.use_vae else 3

    @torch.no_grad()
    def draw_grid() -> Tensor:
        """Per row: layout, real image, then the averaged generator's renderings, in the image's own style and three random ones."""
        batch = default_collate([dataset[i] for i in range(min(settings.samples, len(dataset)))])
        semantics, real = encode(batch["layouts"]), batch["images"].to(device) * 2 - 1
        cells = [paint_layouts(batch["layouts"], num_classes), batch["images"]]
        if encoder is None:
            cells.append(ema(semantics).cpu() * 0.5 + 0.5)
        else:
            with frozen(encoder):
                styles = [encoder(semantics, real).mean]
            rng = seeded(settings.seed, 778)
            styles += [normal(rng, len(real)) for _ in range(columns - 3)]
            cells += [ema(semantics, z).cpu() * 0.5 + 0.5 for z in styles]
        return torch.stack(cells, dim=1).flatten(0, 1)

    images_per_step = settings.batch_size * world
    num_random = int(settings.batch_size * settings.prior_share) if config.use_vae else 0
    num_styled = settings.batch_size - num_random
    total_steps = int(settings.kimg * 1000 / images_per_step)
    images_seen = step * images_per_step
    ticks = Ticks(out, accelerator, images_per_step, settings.tick_kimg * 1000, step)
    last_row: dict[str, float] = {}
    snapshot_images = settings.snapshot_kimg * 1000
    next_snapshot = (images_seen // snapshot_images + 1) * snapshot_images

    if step == 0 or step >= total_steps:
        save()  # there is always a state to fall back to, and a finished run called again writes its files anew
    with progress("training SPADE", total_steps * images_per_step, done=images_seen) as advance:
        while step < total_steps:
            rng = seeded(settings.seed, step, rank)
            left = share_left(step, total_steps, settings.lr_decay)
            opt_G.param_groups[0]["lr"] = settings.lr_generator * left
            opt_D.param_groups[0]["lr"] = settings.lr_discriminator * left
            batch = next(loader)
            real = (batch["images"].to(device) * 2 - 1).contiguous(memory_format=torch.channels_last)
            semantics, labels = encode(batch["layouts"]), batch["layouts"][:, 0].to(device)
            news: dict[str, Tensor] = {}

            # 1. Render once, for both players.
            fake, posterior = G(semantics, real, normal(rng, settings.batch_size), num_random)

            # 2. Discriminator. It is moved after the generator has heard what it thinks now.
            outputs = D(torch.cat([semantics, semantics]), torch.cat([fake.detach(), real]))
            fakes, reals = halves(outputs)
            news["loss_D"] = hinge_loss_D(fakes, reals)
            news["sign"] = torch.stack([scale[-1].detach().sign().mean() for scale in reals]).mean()
            accelerator.backward(news["loss_D"])

            # 3. Reader.
            if settings.reader_weight:
                reader.train()
                news["loss_R"] = F.cross_entropy(learner(real * 0.5 + 0.5), labels, ignore_index=UNKNOWN)
                accelerator.backward(news["loss_R"])
                opt_R.step()
                opt_R.zero_grad()

            # 4. Generator and encoder.
            with frozen(raw_D, reader):
                judged = raw_D(semantics, fake)
                news["loss_G"] = loss = hinge_loss_G(judged)
                styled = [[layer[:num_styled] for layer in scale] for scale in judged]
                wanted = [[layer[:num_styled] for layer in scale] for scale in reals]
                news["matching"] = feature_matching_loss(styled, wanted)
                loss = loss + settings.matching_weight * news["matching"]
                if likeness is not None:
                    news["likeness"] = likeness(fake[:num_styled], real[:num_styled])
                    loss = loss + settings.likeness_weight * news["likeness"]
                if posterior is not None:
                    news["divergence"] = posterior.divergence().mean()
                    loss = loss + settings.divergence_weight * news["divergence"]
                if settings.reader_weight:
                    read = reader(fake * 0.5 + 0.5)
                    news["loss_read"] = F.cross_entropy(read, labels, ignore_index=UNKNOWN)
                    news["read"] = (read.argmax(1) == labels).float().mean()
                    trust = min(1.0, step / max(settings.reader_warmup, 1))
                    loss = loss + settings.reader_weight * trust * news["loss_read"]
                accelerator.backward(loss)
            for optimizer in (opt_D, opt_G):
                optimizer.step()
                optimizer.zero_grad()

            # 5. Average the generator.
            step += 1
            images_seen += images_per_step
            half_life = min(settings.ema_kimg * 1000, images_seen * settings.ema_rampup)
            folded = raw_G.folded_state_dict()
            current = [folded[name] for name, _ in ema.named_parameters()]
            torch._foreach_lerp_(list(ema.parameters()), current, 1 - 0.5 ** (images_per_step / half_life))

            # 6. Report and save.
            ticks.add(news)
            note = ""
            if ticks.is_over(step) or step == total_steps:
                means = ticks.means(step)
                note = " ".join(f"{name} {value:.3g}" for name, value in means.items())
                last_row = ticks.write(step, means)
            if images_seen >= next_snapshot or step == total_steps:
                save()
                next_snapshot += snapshot_images
            advance(images_per_step, note)

    if accelerator.is_main_process:
        (out / "settings.json").write_text(json.dumps(asdict(settings), indent=1))
        accelerator.print(f"done: {out}")
    leave_together(accelerator)


if __name__ == "__main__":
    sys.exit(exit_code("train_spade.py", main))
