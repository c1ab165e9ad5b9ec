"""A latent attack in step with training: one step uphill at a time, each against the model as it is by then."""

import torch
from torch import nn

from gat.attacks.ascent import Slots, gradient
from gat.attacks.frozen import frozen
from gat.attacks.latent import LatentAttack
from gat.attacks.objective import TaskObjective, mixed_precision
from gat.attacks.run import Compute, choose_targets, look
from gat.latents import Images, Latents, PerExample, Rows, split
from gat.protocols import Renderer, Space, Task


class Pursuit:
    """The same steps as `LatentAttack.run` takes without `stop_when_fooled`, when the model does not change in between.

    Between two steps the model may learn, from what the first one made of the images above all, so that all iterates of an attack
    cost no more than one each. "Free" adversarial training (Shafahi et al. 2019) does so with pixels.

    Args:
        latents: of all sites, where the attack begins.
        labels: whose first axis is the example.
        ids: see `LatentAttack.run`.

    Attributes:
        attacked: right at the start. The others are moved, too.
        start_images: [b, 3, h, w] in [0, 1].
    """

    def __init__(
        self,
        attack: LatentAttack,
        task: Task,
        model: nn.Module,
        space: Space,
        latents: Latents,
        labels: torch.Tensor,
        *,
        compute: Compute | None = None,
        ids: Rows | None = None,
    ) -> None:
        moved, self._compute = attack.moved(space), attack.compute(space, compute)
        self._task, self._model, self._labels = task, model, labels
        self._renderer = space.freeze(latents, moved)
        home, _ = split(latents, moved)
        with frozen(model):
            before = look(
                task,
                model,
                self._renderer,
                home,
                labels,
                self._compute.width,
                least_likely=attack.goal == "least_likely",
            )
        self.start_images, self.attacked = before.images, ~before.wrong
        targets = choose_targets(before, labels, attack.goal, attack.drawn_targets(task, labels, ids))
        self._move, loss = attack.guide(task, attack.steps(space, moved), labels)
        everyone = torch.arange(len(labels), device=labels.device)
        self._parts = []
        for rows in everyone.split(self._compute.width):
            ahead = _Ahead(self._renderer)
            objective = TaskObjective(
                task, model, ahead, labels, targets, autocast=self._compute.autocast, loss=loss
            )
            self._parts.append((Slots.open(rows, everyone, home, home), ahead, objective))

    @torch.no_grad()
    def step(self) -> Images:
        """The images after one step more, [b, 3, h, w] in [0, 1], float32."""
        images = []
        with frozen(self._model):
            for slots, ahead, objective in self._parts:
                uphill, slots.loss, slots.fooled = gradient(
                    objective, slots.latents, slots.examples, self._compute.gradient_scale
                )
                slots.step(uphill, self._move, ~slots.finished, stay=False)
                # What the model is shown now is where the next step begins: one rendering does for both.
                slots.latents = {name: value.requires_grad_() for name, value in slots.latents.items()}
                with torch.enable_grad(), mixed_precision(self._labels.device, self._compute.autocast):
                    images.append(ahead.prepare(slots.latents, slots.examples).detach().float())
        return torch.cat(images)

    def score(self) -> PerExample:
        """The task's score of the model as it is, on the images as they are, in float32."""
        latents = {
            name: torch.cat([slots.latents[name] for slots, _, _ in self._parts])
            for name in self._parts[0][0].latents
        }
        with frozen(self._model):
            now = look(self._task, self._model, self._renderer, latents, self._labels, self._compute.width)
        return self._task.score(now.predictions, self._labels)


class _Ahead:
    """A renderer that can render what it will be asked for next."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._next: tuple[Latents, Images] | None = None

    def prepare(self, moved: Latents, rows: Rows) -> Images:
        """The images, kept with their graph for one call with these very latents."""
        images = self._renderer(moved, rows)
        self._next = moved, images
        return images

    def __call__(self, moved: Latents, rows: Rows) -> Images:
        prepared, self._next = self._next, None
        if prepared is not None and all(moved[name] is value for name, value in prepared[0].items()):
            return prepared[1]
        return self._renderer(moved, rows)
