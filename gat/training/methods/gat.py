"""Generative adversarial training, the method this project is named after."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from gat.attacks import LatentAttack
from gat.attacks.pursuit import Pursuit
from gat.latents import Images, Rows, seeded_uniform
from gat.protocols import GenerativeSpace
from gat.training.batch_norm import Branch, routed
from gat.training.method import Batch, Lesson, Method, Tools, check_oracle, read_by_oracle, seen
from gat.training.starts import Fooled, Moved, Starts, in_order, iterate, iterates


class GAT(Method):
    """Generative adversarial training (the paper, Sec. 4.1).

    Every step draws random latents, moves one group of layers in turn until the model, as it is now, is fooled, and trains on
    as many of those images as there are clean ones. Images that fool without being attacked are not used: most of them are
    the generator's own mistakes, that is wrong labels.

    Attributes:
        attack: the latent attack; its `group` and `move` are replaced in rotation by `rotation`. Its steps on styles are larger
            than an attack on all layers needs, since one group of layers alone must fool within `max_steps`.
        rotation: (group, move) of successive turns, so that coarse, middle and fine changes are all seen.
        turns_per_step: turns that share every step's latents. More make steps alike, at the price of narrower passes.
        oversample: attacked latents per clean image; the surplus makes up for those that do not fool within `max_steps`.
        clean: 'real' images of the data set, or 'generated' ones.
        only_fooling: train only on images that fool (the paper); off, on all attacked images.
        oracle_filter: also leave out images on which the oracle no longer reads the label, and of label maps the pixels that it
            reads otherwise.
        train_on: the attack's 'final' image, a random one of its 'trajectory', or all its 'iterates' (the paper's way for scenes:
            "the first 10" of each starting image), which takes that many fewer starts. The start is never among them.
        in_step: of 'iterates', let attack and training go in step: every training step takes all starts one iteration further, against
            the model as it is by then, and trains on them; after `attack.max_steps` of them there are new starts. A batch's images
            then come from as many starts as it has images, instead of a tenth, and the attack's passes are that much wider; but
            the model has learnt from an image's earlier iterates, as in "free" adversarial training (Shafahi et al. 2019), and so
            the score in the log flatters it.
        weight: of an adversarial image's loss; a clean one's is 1.
        start_weight: of a start image's loss. Above 0 every start that is attacked is also taught as it was, once, beside what becomes
            of it, as `random_latents` does; 0 is the paper's way.
        consistency: weight of the divergence of the answers before and after the attack (of logits: KL(before || after)), in
            TRADES' manner: attacked images shall be answered as they were. Their start images then go through the model too,
            without a label loss.
        batch_norm: 'shared' by clean and adversarial images, or two sets of statistics as in AdvProp. Then the finished model
            has those of clean images ('main') or of adversarial ones ('auxiliary').
        seed: of the latents.
    """

    name: Literal["gat"] = "gat"
    attack: LatentAttack = LatentAttack(step_size={"style/*": 0.05, "noise/*": 0.4})
    rotation: tuple[tuple[str, str], ...] = Field(
        (
            ("coarse", "style"),
            ("middle", "style"),
            ("fine", "style"),
            ("fine", "noise"),
            ("middle", "noise"),
            ("all", "both"),
        ),
        min_length=1,
    )
    turns_per_step: int = Field(1, ge=1)
    oversample: float = Field(1.5, gt=0)
    clean: Literal["real", "generated"] = "real"
    only_fooling: bool = True
    oracle_filter: bool = False
    train_on: Literal["final", "trajectory", "iterates"] = "final"
    in_step: bool = False
    weight: float = Field(1.0, ge=0)
    start_weight: float = Field(0.0, ge=0)
    consistency: float = Field(0.0, ge=0)
    batch_norm: Literal["shared", "main", "auxiliary"] = "shared"
    seed: int = 0

    @model_validator(mode="after")
    def _can_go_in_step(self) -> "GAT":
        unfit = {
            "train_on": self.train_on != "iterates",
            "only_fooling": self.only_fooling,
            "attack.stop_when_fooled": self.attack.stop_when_fooled,
            "attack.max_steps": self.attack.max_steps == 0,
        }
        if self.in_step and any(unfit.values()):
            raise ValueError(
                "in_step trains on all iterates, fooling or not: it needs train_on 'iterates', only_fooling off, "
                f"attack.stop_when_fooled off and attack.max_steps above 0; change {', '.join(name for name in unfit if unfit[name])}"
            )
        return self

    @property
    def needs_generator(self) -> bool:
        return True

    @property
    def kept_branch(self) -> Branch | None:
        return None if self.batch_norm == "shared" else self.batch_norm

    @property
    def steps_at_once(self) -> int:
        return self.attack.max_steps if self.in_step else 1

    def num_drawn(self, num_clean: int) -> int:
        per_start = self.attack.max_steps if self.train_on == "iterates" else 1
        return max(math.ceil(round(self.oversample * num_clean) / max(per_start, 1)), 1)

    def trained_on(self) -> tuple[str, ...]:
        return seen(self.attack)

    def turns(self) -> list[LatentAttack]:
        """The attack of every turn of the rotation."""
        settings = self.attack.model_dump()
        return [LatentAttack.model_validate(settings | {"group": g, "move": m}) for g, m in self.rotation]

    def check(self, tools: Tools) -> None:
        """Raises ValueError if a turn of the rotation has nothing to move, or the oracle is missing, before training finds out."""
        if tools.generator is None:
            raise ValueError(f"{self.name} needs a generator; name one under `generator`")
        if self.oracle_filter:
            check_oracle(tools)
        if self.attack.goal == "targeted":
            raise ValueError(
                "training has no targets to aim at; take goal 'loss', 'least_likely' or 'random'"
            )
        for attack in self.turns():
            attack.moved(tools.generator)

    def lesson(self, tools: Tools, model: nn.Module, batch: Batch, key: int) -> Lesson:
        space = tools.generator
        assert space is not None

        # 1. As many random starts as it takes, drawn like the examples of the clean batch.
        starts = self._starts(space, batch, key)

        # 2. Fool the model as it is now.
        found = self._fool(tools, model, space, starts)

        # 3. Teach what will do.
        usable = found.success if self.only_fooling else found.attacked
        new = torch.ones_like(found.attacked)
        new[1:] = found.rows[1:] != found.rows[:-1]
        moved = Moved(found.images, found.rows, found.start_images, usable, new & found.attacked)
        return self._teach(tools, batch, moved, starts.labels, found.facts())

    def lessons(
        self, tools: Tools, model: nn.Module, batches: Sequence[Batch], keys: Sequence[int]
    ) -> Iterator[Lesson]:
        if not self.in_step:
            yield from super().lessons(tools, model, batches, keys)
            return
        space = tools.generator
        assert space is not None

        # 1. Starts for as many images as one batch has, some drawn like the examples of each.
        count = max(round(self.oversample * len(batches[0].images)), 1)
        ends = [math.ceil(count * i / self.steps_at_once) for i in range(len(batches) + 1)]
        drawn = [
            self._starts(space, batch, key).first(end - begin)
            for batch, key, (begin, end) in zip(batches, keys, pairwise(ends), strict=True)
        ]
        starts = Starts(*(torch.cat(parts) for parts in zip(*drawn, strict=True)))

        with routed(model, 0):
            pursuits = self._pursuits(tools, model, space, starts)
        for iteration, (batch, (begin, end)) in enumerate(zip(batches, pairwise(ends), strict=True), start=1):
            # 2. Take them all one iteration further, against the model as it is by now.
            with routed(model, 0):
                moved = [
                    Moved(
                        pursuit.step(),
                        rows,
                        pursuit.start_images,
                        pursuit.attacked,
                        pursuit.attacked & (rows >= begin) & (rows < end),
                    )
                    for pursuit, rows in pursuits
                ]
                facts = {}
                if iteration == len(batches):
                    facts["score"] = float(torch.cat([pursuit.score() for pursuit, _ in pursuits]).mean())

            # 3. Teach what they have become.
            yield self._teach(tools, batch, in_order(moved), starts.labels, facts)

    def _pursuits(
        self, tools: Tools, model: nn.Module, space: GenerativeSpace, starts: Starts
    ) -> list[tuple[Pursuit, Rows]]:
        """The attacks of these starts, each with the rows it moves.

        Raises:
            ValueError: if the generator's memory budget does not hold them all.
        """
        attacks, pursuits = self.turns(), []
        for turn in dict.fromkeys(starts.turns.tolist()):
            rows, limit = (starts.turns == turn).nonzero().squeeze(1), attacks[turn].max_width(space)
            if limit is not None and len(rows) > limit:
                raise ValueError(
                    f"in_step holds all {len(rows)} starts of a batch until they are done, and the generator's memory budget "
                    f"allows {limit}; raise generator.memory_budget_gib, lower train.batch_size or switch in_step off"
                )
            here, ids = rows.to(starts.labels.device), starts.ids[rows]
            latents = space.sample(starts.conditions[here], ids, self.seed)
            pursuit = Pursuit(
                attacks[turn], tools.task, model, space, latents, starts.labels[here], compute=tools.compute, ids=ids
            )  # fmt: skip
            pursuits.append((pursuit, here))
        return pursuits

    def _starts(self, space: GenerativeSpace, batch: Batch, key: int) -> Starts:
        """Starts for as many images as the batch has."""
        count = self.num_drawn(len(batch.images))
        share = min(self.turns_per_step, count)
        turns = (key * self.turns_per_step + torch.arange(count) % share) % len(self.rotation)
        return Starts(*batch.draws(space, count, key), turns)

    def _teach(
        self, tools: Tools, batch: Batch, found: Moved, start_labels: Tensor, facts: dict[str, float]
    ) -> Lesson:
        """The lesson of one step from what was found for it; `found.rows` are of `start_labels`."""
        images, labels, usable = batch.images, batch.labels, found.usable
        start_labels = start_labels[found.rows]
        shown_labels = start_labels
        if self.oracle_filter:
            reads, shown_labels = read_by_oracle(tools, found.images, start_labels)
            facts["oracle_rejected_share"] = float((usable & ~reads).sum() / usable.sum().clamp(min=1))
            if shown_labels is not start_labels:
                facts["oracle_unread_share"] = float((shown_labels != start_labels).float().mean())
            usable = usable & reads

        # As many of them as clean images, at most.
        chosen = usable.nonzero().squeeze(1)[: len(images)]
        facts["adversarial_share"] = len(chosen) / (len(chosen) + len(images))

        # Beside clean images; with their own starts, if they shall be answered like those.
        clean, clean_labels = images, labels
        if self.clean == "generated":
            clean, clean_labels = found.start_images[: len(images)], start_labels[: len(images)]
        blocks = [(clean, clean_labels, 1.0), (found.images[chosen], shown_labels[chosen], self.weight)]
        if self.consistency:  # every start once, however many images it became
            _, start, counts = found.rows[chosen].unique_consecutive(return_inverse=True, return_counts=True)
            first = chosen[counts.cumsum(0) - counts]
            blocks.insert(1, (found.start_images[first], start_labels[first], 0.0))
        if self.start_weight:
            blocks.insert(
                1, (*self._starts_to_teach(tools, found, start_labels, len(images)), self.start_weight)
            )
        lesson = Lesson(
            torch.cat([block for block, _, _ in blocks]),
            torch.cat([block_labels for _, block_labels, _ in blocks]),
            sum(len(block) for block, _, _ in blocks[:-1]),
            facts,
        )
        if all(weight == 1 for _, _, weight in blocks):
            return lesson
        weights = [torch.full([len(block)], weight, device=images.device) for block, _, weight in blocks]
        lesson = replace(lesson, weights=torch.cat(weights))
        if not self.consistency:
            return lesson
        anchors = torch.arange(len(lesson.images), device=images.device)
        anchors[lesson.num_clean :] = lesson.num_clean - len(first) + start
        pulls = torch.zeros_like(anchors, dtype=torch.float)
        pulls[lesson.num_clean :] = self.consistency
        return replace(lesson, anchors=anchors, pulls=pulls)

    def _starts_to_teach(
        self, tools: Tools, found: Moved, start_labels: Tensor, limit: int
    ) -> tuple[Images, Tensor]:
        """The start images whose turn it is, and what they show; `start_labels` are of `found.images`."""
        due = found.due.nonzero().squeeze(1)[:limit]
        images, labels = found.start_images[due], start_labels[due]
        if not self.oracle_filter:
            return images, labels
        reads, shown = read_by_oracle(tools, images, labels)
        return images[reads], shown[reads]

    def _fool(self, tools: Tools, model: nn.Module, space: GenerativeSpace, starts: Starts) -> Fooled:
        """What each start's turn of the rotation makes of it, in their order; no more at a time than the generator's memory budget
        allows."""
        attacks = self.turns()
        found = []
        for turn in dict.fromkeys(starts.turns.tolist()):
            attack = attacks[turn]
            rows = (starts.turns == turn).nonzero().squeeze(1)
            for part in rows.split(attack.max_width(space) or len(rows)):
                found.append(self._attack(attack, tools, model, space, starts, part))
        return in_order(found)

    def _attack(
        self,
        attack: LatentAttack,
        tools: Tools,
        model: nn.Module,
        space: GenerativeSpace,
        starts: Starts,
        rows: Rows,
    ) -> Fooled:
        """What one attack makes of these starts."""
        labels = starts.labels
        here, ids = rows.to(labels.device), starts.ids[rows]
        latents = space.sample(starts.conditions[here], ids, self.seed)
        with routed(model, 0):
            outcome = attack.run(
                tools.task, model, space, latents, labels[here],
                compute=tools.compute, record=self.train_on != "final", ids=ids,
            )  # fmt: skip
        images, from_start = outcome.images, torch.arange(len(rows), device=labels.device)
        score = tools.task.score(outcome.predictions, labels[here])
        if self.train_on == "trajectory":
            place = seeded_uniform(self.seed, ids, (), "iterate").to(images.device)
            images = iterate(outcome, attack, place)
        elif self.train_on == "iterates":
            images, from_start = iterates(outcome, attack)
        return Fooled(
            images,
            here[from_start],
            outcome.start_images[from_start],
            outcome.attacked[from_start],
            outcome.success[from_start],
            outcome.iterations[from_start],
            score[from_start],
        )
