"""The training loop, all of it: teach a model with a method until the last step, resumable at any checkpoint."""

import copy
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate import Accelerator
from pydantic import Field
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from gat.attacks.frozen import frozen
from gat.config import Config
from gat.files import written_whole
from gat.images import check_images
from gat.progress import progress
from gat.protocols import Examples, Task
from gat.training.batch_norm import join_batch_norms, routed, split_batch_norms
from gat.training.batches import EndlessBatches
from gat.training.method import Batch, Lesson, Method, Tools


class TrainSettings(Config):
    """How long and how fast.

    Attributes:
        steps: optimiser steps.
        batch_size: clean images per step and process.
        accumulate: micro-batches per step; the batch is split among them.
        lr, warmup_steps, schedule: peak learning rate, linear warm-up, then 'cosine' to zero, 'linear' to zero or 'constant'.
        clip_norm: of the gradient; 0 is off.
        ema_decay: average the weights and return the average; 0 is off.
        interpolate: share of the trained weights in those that are returned, batch statistics included; the others are those
            training started from, which gives back some clean accuracy (WiSE-FT, Wortsman et al. 2022). 1 is off.
        log_every, save_every: steps. `save_every` 0 saves at the end only.
        num_workers: of the data loader.
    """

    steps: int = Field(600, ge=0)
    batch_size: int = Field(128, ge=1)
    accumulate: int = Field(1, ge=1)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.02, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    warmup_steps: int = Field(50, ge=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    clip_norm: float = Field(1.0, ge=0)
    ema_decay: float = Field(0.0, ge=0, lt=1)
    interpolate: float = Field(1.0, gt=0, le=1)
    log_every: int = Field(10, ge=1)
    save_every: int = Field(200, ge=0)
    num_workers: int = Field(0, ge=0)

    def lr_at(self, step: int) -> float:
        """A function of the step alone, so it needs no state and no number of processes."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        return (
            self.lr
            * {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[
                self.schedule
            ]
        )

    def check(self, method: Method) -> None:
        """Raises ValueError if a checkpoint would fall between steps that the method cannot be resumed between."""
        if self.save_every % method.steps_at_once:
            raise ValueError(
                f"{method.name} attacks the same images for {method.steps_at_once} steps and can only be resumed behind them; "
                f"choose a multiple of that as save_every, got {self.save_every}"
            )


class DivergedError(FloatingPointError):
    """The loss is not a number any more. What was saved before stays as it is."""


def train(
    model: nn.Module,
    dataset: Examples,
    method: Method,
    tools: Tools,
    settings: TrainSettings,
    accelerator: Accelerator,
    folder: Path,
    seed: int = 0,
    stage: str = "train",
    drawn: Examples | None = None,
) -> nn.Module:
    """Teach `model` in place and return it (or its running average, with `ema_decay`; on the way there from its start, with
    `interpolate`). Its architecture stays what it is.

    Writes `folder/state.pt` to resume from and appends to `folder/metrics.jsonl`. Called again with the same arguments it
    goes on where it stopped and ends bit-equal to a run that was never stopped.

    Args:
        dataset: items {"images": [3, h, w] in [0, 1], "labels": int or tensor, "layouts": of scenes}.
        tools: task, generator, oracle.
        stage: name in the log.
        drawn: items like those of `dataset`, which the method's generator draws in their place; their images are not used.

    Raises:
        DivergedError: when the loss is NaN or infinite.
        ValueError: when `state.pt` belongs to another run, the first batch or the model's answers to it do not fit the task, the
            method wants separate batch norms of a model without any, or the settings do not fit it.
    """
    settings.check(method)
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    folder.mkdir(parents=True, exist_ok=True)
    start = copy.deepcopy(model).to(device) if settings.interpolate < 1 else None
    if method.kept_branch is not None:
        split_batch_norms(model)
    # Channels last is the faster layout for convolutions, on CPUs by a factor.
    model.to(device).to(memory_format=torch.channels_last)
    optimizer = _optimizer(model, settings)
    average = (
        AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay))
        if settings.ema_decay
        else None
    )
    run = _State(folder, accelerator, model, optimizer, average, start, settings)
    step = first_step = run.load()
    # Only the wrapper is handed to Accelerate, which patches its forward and may put DDP around it. `model` itself stays
    # plain: attacks use it without collectives, without autocast surprises, and as many passes as each process needs.
    learner, optimizer = accelerator.prepare(nn.Sequential(model), optimizer)
    order = EndlessBatches(len(dataset), settings.batch_size, seed, step, rank, world)
    loader = iter(DataLoader(cast(Any, dataset), batch_sampler=order, num_workers=settings.num_workers))
    others = None
    if drawn is not None and (count := method.num_drawn(settings.batch_size)):
        picks = EndlessBatches(len(drawn), count, seed, step, rank, world)
        others = iter(DataLoader(cast(Any, drawn), batch_sampler=picks, num_workers=settings.num_workers))
    log = _Log(folder / "metrics.jsonl", accelerator, stage, step)

    with progress(f"training {stage}", total=settings.steps, done=step) as advance:
        while step < settings.steps:
            # 1. Make the images of the next step, or the next few in turn: clean ones, and what fools the model as it is by then.
            at_once = method.steps_at_once
            together = range(step, min(step - step % at_once + at_once, settings.steps))
            keys = [i * world + rank for i in together]
            torch.manual_seed((seed * 1_000_003 + keys[0]) % 2**63)  # for dropout and the like
            batches = [_on(device, next(loader)) for _ in together]
            if others is not None:
                batches = [batch._replace(drawn=_on(device, next(others))) for batch in batches]
            if step == first_step:
                _check_batch(tools.task, model, batches[0].images, batches[0].labels)
            for lesson in method.lessons(tools, model, batches, keys):
                # 2. Learn from them, each at its own loss.
                model.train()
                for group in optimizer.param_groups:
                    group["lr"] = settings.lr_at(step)
                losses = _backward(accelerator, learner, model, tools.task, lesson, settings.accumulate)
                if settings.clip_norm:
                    accelerator.clip_grad_norm_(learner.parameters(), settings.clip_norm)
                optimizer.step()
                optimizer.zero_grad()
                if average is not None:
                    average.update_parameters(model)

                # 3. Report and save.
                step += 1
                log.add(losses, lesson)
                if step % settings.log_every == 0 or step == settings.steps:
                    log.write(step, settings.lr_at(step - 1))
                if step == settings.steps or (settings.save_every and step % settings.save_every == 0):
                    _check_finite(model, stage, step)
                    run.save(step)
                advance(1)
    for finished in (model, average):
        if finished is not None and method.kept_branch is not None:
            join_batch_norms(finished, method.kept_branch)
    learnt = model if average is None else average.module
    if start is not None:
        interpolate(learnt, start, settings.interpolate)
    return learnt


@torch.no_grad()
def interpolate(model: nn.Module, start: nn.Module, share: float) -> None:
    """Leaves `share` of the model's way from its start. What is counted, not measured, stays the model's."""
    there = start.state_dict()
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.lerp(there[name], value, share))


def _on(device: torch.device, batch: Mapping[str, Tensor]) -> Batch:
    layouts = batch["layouts"].to(device) if "layouts" in batch else None
    return Batch(batch["images"].to(device), batch["labels"].to(device), layouts)


def _check_batch(task: Task, model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Names at once what would go wrong later, or worse, would not: the task's own checks, where it has any."""
    check_images(images)
    if hasattr(task, "check_labels"):
        task.check_labels(labels, len(images))
    if hasattr(task, "check_outputs"):
        with frozen(model), torch.no_grad():
            task.check_outputs(model(images[:8]))


def _optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Weight decay is for matrices and filters, not for biases and norms."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, settings.lr, settings.momentum, nesterov=settings.momentum > 0)
    return torch.optim.AdamW(groups, settings.lr)


def _backward(
    accelerator: Accelerator,
    learner: nn.Module,
    model: nn.Module,
    task: Task,
    lesson: Lesson,
    accumulate: int,
) -> Tensor:
    """One forward and backward pass (or `accumulate` smaller ones). Returns the loss of every image."""
    losses = torch.zeros(len(lesson.images), device=lesson.images.device)
    parts = lesson.micro_batches(accumulate)
    for i, rows in enumerate(parts):
        part = lesson.take(rows)
        waits = accelerator.no_sync(learner) if i < len(parts) - 1 else accelerator.accumulate(learner)
        with waits, routed(model, part.num_clean):
            loss = part.loss(task, learner(part.images))
            accelerator.backward(loss.sum() / lesson.total_weight)
        losses[rows] = loss.detach()
    return losses


def _check_finite(model: nn.Module, stage: str, step: int) -> None:
    """What is saved must be worth going on from, also between two looks at the loss."""
    bad = [name for name, value in model.state_dict().items() if not bool(value.isfinite().all())]
    if bad:
        raise DivergedError(
            f"{stage}: {len(bad)} weights, {bad[0]} among them, are not finite at step {step}; lower lr or clip_norm. "
            "The last checkpoint is intact: run the same command to go on from it."
        )


class _Log:
    """Means since the last report, one JSON line each, and whatever trackers Accelerate runs. Asks the device only to write."""

    def __init__(self, path: Path, accelerator: Accelerator, stage: str, step: int) -> None:
        self.path, self.accelerator, self.stage = path, accelerator, stage
        self.sums: dict[str, list[Any]] = {}
        self.start, self.images = time.perf_counter(), 0
        if accelerator.is_main_process and path.exists():  # lines after the checkpoint will be written again
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            kept = [row for row in rows if row["stage"] != stage or row["step"] <= step]
            path.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def add(self, losses: Tensor, lesson: Lesson) -> None:
        self.sums.setdefault("loss", []).append(losses.sum() / lesson.total_weight)
        clean, adversarial = losses[: lesson.num_clean], losses[lesson.num_clean :]
        if len(clean):  # mere anchors weigh nothing
            weight = len(clean) if lesson.weights is None else lesson.weights[: len(clean)].sum()
            self.sums.setdefault("loss_clean", []).append(clean.sum() / weight)
        if len(adversarial):
            self.sums.setdefault("loss_adversarial", []).append(adversarial.mean())
        for name, value in lesson.facts.items():
            self.sums.setdefault(name, []).append(torch.tensor(value))
        self.images += len(losses)

    def write(self, step: int, lr: float) -> None:
        means = {name: float(torch.stack(values).mean()) for name, values in self.sums.items()}
        if not math.isfinite(means["loss"]):
            raise DivergedError(
                f"{self.stage}: the loss is {means['loss']} at step {step}; lower lr (now {lr:.2g}) or clip_norm. "
                "The last checkpoint is intact: run the same command to go on from it."
            )
        speed = self.images * self.accelerator.num_processes / (time.perf_counter() - self.start)
        row = {"stage": self.stage, "step": step, **means, "lr": lr, "images_per_sec": speed}
        if self.accelerator.is_main_process:
            with open(self.path, "a") as file:
                file.write(json.dumps(row) + "\n")
        self.accelerator.log(
            {f"{self.stage}/{name}": v for name, v in row.items() if name != "stage"}, step=step
        )
        self.sums, self.start, self.images = {}, time.perf_counter(), 0


class _State:
    """Everything a run needs to go on: weights, optimiser, averages, start, fp16 scale. All else is a function of the step."""

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: nn.Module | None,
        start: nn.Module | None,
        settings: TrainSettings,
    ) -> None:
        self.path, self.accelerator, self.settings = folder / "state.pt", accelerator, settings
        self.parts: dict[str, Any] = {"model": model, "optimizer": optimizer}
        if average is not None:
            self.parts["average"] = average
        if start is not None:
            self.parts["start"] = start
        if accelerator.scaler is not None:
            self.parts["scaler"] = accelerator.scaler

    def load(self) -> int:
        """Restore and return the step; 0 if there is nothing to restore."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        wanted = self.settings.model_dump(include={"batch_size", "optimizer", "ema_decay"})
        if state["settings"] != wanted or state["num_processes"] != self.accelerator.num_processes:
            raise ValueError(
                f"{self.path} is of a run with {state['settings']} on {state['num_processes']} processes, this one has "
                f"{wanted} on {self.accelerator.num_processes}; choose another folder or remove it"
            )
        if missing := sorted(self.parts.keys() - state.keys()):
            raise ValueError(
                f"{self.path} is of a run with other settings and has no {', '.join(missing)}; choose another folder or remove it"
            )
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        return int(state["step"])

    def save(self, step: int) -> None:
        """Atomically: a killed process or a full disk leaves the last state as it was."""
        if self.accelerator.is_main_process:
            state = {name: part.state_dict() for name, part in self.parts.items()}
            state |= {
                "step": step,
                "settings": self.settings.model_dump(include={"batch_size", "optimizer", "ema_decay"}),
                "num_processes": self.accelerator.num_processes,
            }
            with written_whole(self.path) as temporary:
                torch.save(state, temporary)
        self.accelerator.wait_for_everyone()
