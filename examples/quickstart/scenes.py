"""What happens in a clip: scenes, their captions and their time reversal.

A scene is a caption's meaning only; :mod:`examples.quickstart.drawing` decides where and how fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TypeAlias, TypeVar

import numpy as np

T = TypeVar("T")
Meaning: TypeAlias = frozenset[tuple[object, ...]]

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle")
SIZES = ("small", "large")
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
DIRECTIONS = tuple(OPPOSITE)
MIRRORED = {"above": "below", "below": "above"}
RELATIONS = tuple(MIRRORED)
QUERY = "a small red circle moves left above a large blue square"

# Leg one and leg two of a two-step motion are at right angles: there and back again would be its
# own reversal.
TWO_STEPS = tuple(
    (first, then)
    for first in DIRECTIONS
    for then in DIRECTIONS
    if then not in (first, OPPOSITE[first])
)
# Shares of the kinds of motion, and of the scenes of one step that get a third object.
KINDS = {"one step": 0.35, "two steps": 0.4, "both move": 0.25}
BYSTANDER_SHARE = 0.1
# Couples of objects in a corpus. So few that several scenes of a training batch show the same
# objects: who wants to tell those apart has to watch how they move. So many that the held-out parts
# leave the training part scenes of every couple and kind.
NUM_CASTS = 32


@dataclass(frozen=True)
class Thing:
    """An object: ``str`` gives "small red circle"."""

    size: str
    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """The first object moves, in a relation to the second that holds in every frame.

    Attributes:
        first: the object that moves.
        motion: the directions of its steps, one or two, each filling a part of the clip.
        relation: where the first object is, seen from the second.
        second: the other object.
        second_motion: the direction of the second object, or None if it stands still.
        bystander: a third object that stands still, if any.
    """

    first: Thing
    motion: tuple[str, ...]
    relation: str
    second: Thing
    second_motion: str | None = None
    bystander: Thing | None = None

    @property
    def caption(self) -> str:
        """The sentence that says exactly this."""
        text = f"a {self.first} moves {' and then '.join(self.motion)} {self.relation}"
        text += f" a {self.second}"
        if self.second_motion:
            text += f" that moves {self.second_motion}"
        if self.bystander:
            text += f" while a {self.bystander} stands still"
        return text

    def reversed(self) -> Scene:
        """The scene of the same frames in reverse order: steps swapped, each one turned."""
        return replace(
            self,
            motion=tuple(OPPOSITE[step] for step in self.motion[::-1]),
            second_motion=self.second_motion and OPPOSITE[self.second_motion],
        )

    def meaning(self) -> Meaning:
        """Equal for two scenes if one caption is true of both.

        Two moving objects can be told in either order, and a caption without the bystander is
        true of the clip with it.
        """
        told = (self.first, self.motion, self.relation, self.second, self.second_motion)
        if self.second_motion is None:
            return frozenset({told})
        other = (
            self.second,
            (self.second_motion,),
            MIRRORED[self.relation],
            self.first,
            self.motion[0],
        )
        return frozenset({told, other})


def parse_caption(caption: str) -> Scene:
    """The scene of a caption without a second motion or a bystander, such as ``QUERY``."""
    words = caption.split()
    return Scene(Thing(*words[1:4]), (words[5],), words[6], Thing(*words[-3:]))


def sample_casts(rng: np.random.Generator, first: Scene) -> list[tuple[Thing, Thing]]:
    """Draw the couples (mover, other) of a corpus, the one of the scene ``first`` among them.

    The two have different colours and are not both large, which would leave no room to move.
    """
    things = [Thing(*parts) for parts in product(SIZES, COLOURS, SHAPES)]
    casts = [
        (one, other)
        for one, other in product(things, things)
        if one.colour != other.colour and "small" in (one.size, other.size)
    ]
    wanted = (first.first, first.second)
    casts.remove(wanted)
    order = rng.permutation(len(casts))[: NUM_CASTS - 1]
    return [wanted, *(casts[number] for number in order)]


def sample_pairs(
    count: int,
    rng: np.random.Generator,
    casts: Sequence[tuple[Thing, Thing]],
    taken: set[Meaning],
    first: Scene | None = None,
    *,
    repeat: bool = False,
) -> list[tuple[Scene, Scene]]:
    """Draw scenes with their reversals, none of which means the same as one that is taken.

    With every scene comes its reversal, so left and right, and up and down, are equally frequent.

    Args:
        count: number of pairs.
        rng: source of the draws.
        casts: the couples to choose from.
        taken: meanings that must not come again; the new ones are added to it.
        first: a scene to begin with.
        repeat: the new scenes may repeat each other, and nothing is added to ``taken``.

    Returns:
        ``count`` pairs (scene, its reversal).

    Raises:
        ValueError: ``first`` is taken, or there are not that many scenes left.
    """
    pairs: list[tuple[Scene, Scene]] = []
    failures = 0
    while len(pairs) < count:
        scene = first if first is not None and not pairs else _sample(rng, casts)
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


def _sample(rng: np.random.Generator, casts: Sequence[tuple[Thing, Thing]]) -> Scene:
    first, second = _choice(rng, casts)
    relation = _choice(rng, RELATIONS)
    kind = rng.choice(list(KINDS), p=list(KINDS.values()))
    if kind == "two steps":
        return Scene(first, _choice(rng, TWO_STEPS), relation, second)
    motion = (_choice(rng, DIRECTIONS),)
    if kind == "both move":
        return Scene(first, motion, relation, second, _choice(rng, DIRECTIONS))
    if rng.random() >= BYSTANDER_SHARE:
        return Scene(first, motion, relation, second)
    colours = [c for c in COLOURS if c not in (first.colour, second.colour)]
    bystander = Thing("small", _choice(rng, colours), _choice(rng, SHAPES))
    return Scene(first, motion, relation, second, bystander=bystander)


def _choice(rng: np.random.Generator, values: Sequence[T]) -> T:
    return values[int(rng.integers(len(values)))]
