"""What a reader should know before believing a number."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["wrong", "careful", "note"]


@dataclass(frozen=True)
class Doubt:
    """Something a reader should know before believing a number.

    Attributes:
        level: 'wrong': do not use the numbers; 'careful': read them with care; 'note': good to know.
        text: one or two sentences.
    """

    level: Level
    text: str
