"""What happens in a clip: scenes, their captions and their time reversal.

A scene is a caption's meaning only; `examples.quickstart.drawing` decides where and how fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeAlias, TypeVar

import numpy as np

T = TypeVar("T")
Meaning: TypeAlias = tuple[object, ...]

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle")
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
DIRECTIONS = tuple(OPPOSITE)
RELATIONS = ("above", "below")
QUERY = "a small red circle moves left above a large blue square"

# Leg one and leg two of a two-step motion are at right angles: there and back again would be its
# own reversal.
TWO_STEPS = tuple(
    (first, then)
    for first in DIRECTIONS
    for then in DIRECTIONS
    if then not in (first, OPPOSITE[first])
)
TWO_STEPS_SHARE = 0.5
BYSTANDER_SHARE = 0.1  # of the scenes, which get a third object


@dataclass(frozen=True)
class Thing:
    """An object: `str` gives "small red circle"."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


# Movers, always small, with the objects they are seen beside, always large and of another colour.
COUPLES = tuple(
    (Thing("small", *one), Thing("large", *other))
    for one, other in product(product(COLOURS, SHAPES), repeat=2)
    if one[0] != other[0]
)


@dataclass(frozen=True)
class Scene:
    """One object moves, in a relation to another that holds in every frame.

    Attributes:
        mover: The object that moves.
        motion: The directions of its steps, one or two, each filling a part of the clip.
        relation: Where the mover is, seen from the other object.
        other: The other object, which stands still.
        bystander: A third object that stands still, if any.
    """

    mover: Thing
    motion: tuple[str, ...]
    relation: str
    other: Thing
    bystander: Thing | None = None

    @property
    def things(self) -> list[Thing]:
        """The objects, the mover first."""
        return [self.mover, self.other] + ([self.bystander] if self.bystander else [])

    @property
    def caption(self) -> str:
        """The sentence that says exactly this."""
        text = f"a {self.mover} moves {' and then '.join(self.motion)} {self.relation}"
        text += f" a {self.other}"
        if self.bystander:
            text += f" while a {self.bystander} stands still"
        return text

    def reversed(self) -> Scene:
        """Return the scene of the same frames in reverse order: steps swapped, each one turned."""
        return replace(self, motion=tuple(OPPOSITE[step] for step in self.motion[::-1]))

    def meaning(self) -> Meaning:
        """Return what is equal for two scenes if one caption is true of both.

        A caption without the bystander is true of the clip with it.
        """
        return (self.mover, self.motion, self.relation, self.other)


def parse_caption(caption: str) -> Scene:
    """Parse a caption of one step and without a bystander, such as `QUERY`."""
    words = caption.split()
    return Scene(Thing(*words[1:4]), (words[5],), words[6], Thing(*words[-3:]))


def sample_pairs(
    count: int,
    rng: np.random.Generator,
    taken: set[Meaning],
    first: Scene | None = None,
    *,
    repeat: bool = False,
) -> list[tuple[Scene, Scene]]:
    """Draw scenes with their reversals, none of which means the same as one that is taken.

    With every scene comes its reversal, so left and right, and up and down, are equally frequent.

    Args:
        count: Number of pairs.
        rng: Source of the draws.
        taken: Meanings that must not come again; the new ones are added to it.
        first: A scene to begin with.
        repeat: The new scenes may repeat each other, and nothing is added to `taken`.

    Returns:
        `count` pairs (scene, its reversal).

    Raises:
        ValueError: `first` is taken, or there are not that many scenes left.
    """
    pairs: list[tuple[Scene, Scene]] = []
    failures = 0
    while len(pairs) < count:
        scene = first if first is not None and not pairs else _sample(rng)
        meanings = {scene.meaning(), scene.reversed().meaning()}
        if not meanings & taken:
            if not repeat:
                taken |= meanings
            pairs.append((scene, scene.reversed()))
            failures = 0
        elif scene is first:
            raise ValueError(f"the scene to begin with is taken: {scene.caption}")
        else:
            failures += 1
            if failures == 1000:
                raise ValueError(f"found {len(pairs)} of {count} pairs; there are hardly any more")
    return pairs


def _sample(rng: np.random.Generator) -> Scene:
    mover, other = _choice(rng, COUPLES)
    motion: tuple[str, ...] = _choice(rng, TWO_STEPS)
    if rng.random() >= TWO_STEPS_SHARE:
        motion = motion[:1]
    scene = Scene(mover, motion, _choice(rng, RELATIONS), other)
    if rng.random() >= BYSTANDER_SHARE:
        return scene
    colours = [c for c in COLOURS if c not in (mover.colour, other.colour)]
    bystander = Thing("small", _choice(rng, colours), _choice(rng, SHAPES))
    return replace(scene, bystander=bystander)


def _choice(rng: np.random.Generator, values: Sequence[T]) -> T:
    return values[int(rng.integers(len(values)))]
