"""AutoAttack: the field's standard ensemble, as a protocol over attacks of this project."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from gat.attacks.apgd import APGD
from gat.attacks.fab import FAB
from gat.attacks.image_attack import ImageAttack
from gat.attacks.pgd import ball
from gat.attacks.run import Compute, Outcome
from gat.attacks.square import Square
from gat.attacks.steps import Norm
from gat.attacks.worst import WorstOf
from gat.latents import Images
from gat.protocols import Task


class AutoAttack(ImageAttack):
    """AutoAttack (Croce & Hein 2020; l1: Croce & Hein 2021): attacks without parameters in turn, each on what is not fooled yet.

    'standard' is APGD-CE, APGD-T (9 targets), FAB-T (9 targets) and Square (5000 queries), for l1 with 5 restarts of APGD-CE and 5
    targets of APGD-T; 'plus' is APGD-CE and APGD-DLR with 5 restarts each, FAB with 5, Square, APGD-T and FAB-T; 'rand', for models that
    answer at random, is APGD-CE and APGD-DLR on the mean of 20 passes (the package averages gradients instead).

    All parts are this project's. Weighed against the authors' package (PyPI: pyautoattack 0.2.0): that one draws from the global
    random state, so that results depend on the batch and on the clock, stops with fewer classes than targets, and runs every attack to
    its last step on examples that are fooled long since. It stays the oracle of the tests: robust accuracies agree.

    Attributes:
        eps: radius of the ball, for images in [0, 1].
        norm: 'linf', 'l2' or 'l1'.
        version: which parts.
        steps: of each gradient attack; 100 is standard.
        queries: of Square; 5000 is standard.
    """

    kind: ClassVar[str] = "additive"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    name: Literal["autoattack"] = "autoattack"
    goal: Literal["loss"] = "loss"
    eps: float = Field(8 / 255, ge=0)
    norm: Norm = "linf"
    version: Literal["standard", "plus", "rand"] = "standard"
    steps: int = Field(100, ge=1)
    queries: int = Field(5000, ge=1, lt=2**20)

    @property
    def parts(self) -> WorstOf:
        """The attacks, in order."""
        eps, norm, steps, seed = self.eps, self.norm, self.steps, self.seed
        apgd = APGD(eps=eps, norm=norm, steps=steps, seed=seed)
        fab = FAB(eps=eps, norm=norm, steps=steps, seed=seed, targeted=True)
        square = Square(eps=eps, norm=norm, queries=self.queries, seed=seed)
        few = norm == "l1" and self.version == "standard"
        apgd_t = apgd.model_copy(update={"loss": "targeted_dlr", "n_targets": 5 if few else 9})
        attacks: list[ImageAttack]
        if self.version == "rand":
            attacks = [apgd.model_copy(update={"loss": loss, "eot": 20}) for loss in ("ce", "dlr")]
        elif self.version == "plus":
            often = [apgd.model_copy(update={"loss": loss, "restarts": 5}) for loss in ("ce", "dlr")]
            fab_once = fab.model_copy(update={"targeted": False, "restarts": 5})
            attacks = [*often, fab_once, square, apgd_t, fab]
        else:
            attacks = [apgd.model_copy(update={"restarts": 5 if few else 1}), apgd_t, fab, square]
        return WorstOf(attacks=tuple(attacks))

    @property
    def summary(self) -> str:
        return (
            f"{self.version} {ball(self.norm, self.eps)}; {self.steps} steps, {self.queries} queries; "
            "adapted to few classes"
        )

    @property
    def bounds(self) -> dict[str, float]:
        return {f"{self.norm}_pixels": self.eps}

    def run(
        self,
        task: Task,
        model: nn.Module,
        images: Images,
        labels: Tensor,
        *,
        targets: Tensor | None = None,
        compute: Compute | None = None,
        record: bool = False,
        ids: Tensor | None = None,
    ) -> Outcome:
        return self.parts.run(
            task, model, images, labels, targets=targets, compute=compute, record=record, ids=ids
        )
