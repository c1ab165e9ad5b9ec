"""What a run's attacks on latents will need, before they start."""

from collections.abc import Iterator

from gat.attacks import LatentAttack
from gat.cli.compose import RunConfig, drawn_classes
from gat.protocols import MeasuredSpace
from gat.training.methods import GAT, Method, Mixed

GIB = 2**30


def memory_report(config: RunConfig) -> list[str]:
    """A line per attack on the latents of a generator that knows what it needs, such as SPADE; none for other runs.

    Raises:
        ValueError: if the data does not fit the generator, or one example of an attack does not fit the memory budget.
    """
    if config.generator is None:
        return []
    space = config.generator.build(drawn_classes(config.data.build("test")))
    if not isinstance(space, MeasuredSpace):
        return []
    lines: dict[str, str] = {}  # turns of a rotation often move the same
    for when, attack, width in _attacks(config):
        moved, limit = attack.moved(space), attack.max_width(space)
        width = min(width, limit or width)
        size = sum(space.sites[site].bytes_per_example for site in moved)
        fits = "" if limit is None else f" (the budget allows {limit})"
        lines.setdefault(
            f"{when}: {len(moved)} sites moved, {size / 2**20:.1f} MiB an example",
            f"{space.memory_needed(moved, width) / GIB:.2f} GiB for {width} at once{fits}, besides the attacked model",
        )
    return [f"{what}; {needed}" for what, needed in lines.items()]


def _attacks(config: RunConfig) -> Iterator[tuple[str, LatentAttack, int]]:
    """When each attack runs, and how wide its passes are."""
    methods: tuple[Method, ...] = (
        config.method.methods if isinstance(config.method, Mixed) else (config.method,)
    )
    for method in methods:
        if isinstance(method, GAT):
            yield from (("training", attack, config.width) for attack in method.turns())
    for name, attack in config.evaluation.plan().items():
        if isinstance(attack, LatentAttack):
            yield f"evaluation, {name}", attack, config.evaluation.width
