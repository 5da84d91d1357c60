"""What happens in long videos: moments, their sentences, and which are true of which video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np

from examples.quickstart.captions import SPLITS
from examples.quickstart.scenes import COUPLES, RELATIONS, Thing

SHARES = {"test": 0.36, "validation": 0.14}  # of all sentences; the rest is for training
MOMENT_FRAMES = (12, 28)  # shortest and longest moment
CUTS = (0.42, 0.58)  # where in a moment one thing takes the place of another
STATIC, ORDERED = 3, 3  # moments of each kind in a video

State = tuple[Thing, str, Thing]


@dataclass(frozen=True)
class Moment:
    """One small thing, or two after each other, in a relation to a large one.

    Attributes:
        small: The small things, in the order of time.
        relation: Where they are, seen from the large thing.
        large: It stays for the whole moment.
    """

    small: tuple[Thing, ...]
    relation: str
    large: Thing

    @property
    def sentence(self) -> str:
        """What it shows: "a small red circle and then a small green square above a large ..."."""
        return f"{' and then '.join(f'a {t}' for t in self.small)} {self.relation} a {self.large}"

    @property
    def ordered(self) -> bool:
        """Whether something comes after something."""
        return len(self.small) > 1

    @property
    def states(self) -> list[State]:
        """What is seen, one after the other."""
        return [(thing, self.relation, self.large) for thing in self.small]

    def swapped(self) -> Moment:
        """Return the moment in which the same things come in the other order."""
        return replace(self, small=self.small[::-1])


@dataclass(frozen=True)
class LongVideo:
    """A video of several moments, one straight after the other.

    Attributes:
        id: Unique in its corpus.
        twin: Id of the video that has the ordered moments of this one in the other order.
        moments: What happens.
        lengths: Frames of each moment.
        cuts: For each moment, the frames before one thing takes the place of another (those of a
            static moment mean nothing).
        seed: Of everything else that is seen.
    """

    id: str
    twin: str
    moments: tuple[Moment, ...]
    lengths: tuple[int, ...]
    cuts: tuple[int, ...]
    seed: tuple[int, ...]

    @property
    def num_frames(self) -> int:
        """Frames of the video."""
        return sum(self.lengths)

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """First and last frame of each moment, both inclusive."""
        ends = np.cumsum(self.lengths).tolist()
        return [(end - length, end - 1) for end, length in zip(ends, self.lengths, strict=True)]

    @cached_property
    def states(self) -> list[State]:
        """What is seen, one after the other."""
        return [state for moment in self.moments for state in moment.states]

    def shows(self, moment: Moment) -> bool:
        """Return whether the sentence of a moment is true of the video, of any part of it."""
        wanted, seen = moment.states, self.states
        return any(seen[i : i + len(wanted)] == wanted for i in range(len(seen) - len(wanted) + 1))


def all_moments() -> tuple[list[Moment], list[Moment]]:
    """List the static moments and the ordered ones, of these one of the two orders."""
    by_large: dict[Thing, list[Thing]] = {}
    for small, large in COUPLES:
        by_large.setdefault(large, []).append(small)
    places = [(relation, large) for large in by_large for relation in RELATIONS]
    static = [Moment((thing,), *place) for place in places for thing in by_large[place[1]]]
    ordered = [
        Moment(pair, *place) for place in places for pair in combinations(by_large[place[1]], 2)
    ]
    return static, ordered


def split_moments() -> dict[str, tuple[list[Moment], list[Moment]]]:
    """Share the moments out among the splits, the same way always: no sentence is in two."""
    rng = np.random.default_rng(0)
    splits: dict[str, tuple[list[Moment], list[Moment]]] = {name: ([], []) for name in SPLITS}
    for kind, moments in enumerate(all_moments()):
        rest = [moments[i] for i in rng.permutation(len(moments))]
        for name, share in SHARES.items():
            count = round(share * len(moments))
            splits[name][kind].extend(rest[:count])
            rest = rest[count:]
        splits["train"][kind].extend(rest)
    return splits


def sample_videos(split: str, count: int, seed: int) -> list[LongVideo]:
    """Draw the videos of a split, in pairs of twins.

    Twins have the same ordered moments, each in the other order, and other static ones. A static
    moment shows nothing that its video shows elsewhere. In test and validation no ordered moment is
    in two pairs.

    Args:
        split: One of `SPLITS`.
        count: Number of videos, even.
        seed: Equal seeds give equal videos.

    Raises:
        ValueError: `count` is odd or below 2, or there are not that many ordered moments.
    """
    if count < 2 or count % 2:
        raise ValueError(f"{split} must be an even number of at least 2 videos, got {count}")
    static, ordered = split_moments()[split]
    repeat = split == "train"
    most = len(ordered) // ORDERED
    if not repeat and count // 2 > most:
        raise ValueError(f"{split} can have at most {2 * most} videos, got {count}")
    number = SPLITS.index(split)
    rng = np.random.default_rng([seed, number])
    waiting: list[Moment] = []
    videos: list[LongVideo] = []
    for pair in range(count // 2):
        if len(waiting) < ORDERED:
            waiting = [ordered[i] for i in rng.permutation(len(ordered))]
        chosen, waiting = waiting[:ORDERED], waiting[ORDERED:]
        chosen = [moment if rng.random() < 0.5 else moment.swapped() for moment in chosen]
        ids = [f"{split}-{pair:04d}{letter}" for letter in "ab"]
        for side, own in enumerate((chosen, [moment.swapped() for moment in chosen])):
            moments = _with_static(own, static, rng)
            lengths = rng.integers(MOMENT_FRAMES[0], MOMENT_FRAMES[1] + 1, len(moments))
            cuts = np.rint(lengths * rng.uniform(*CUTS, len(moments))).astype(int)
            videos.append(
                LongVideo(ids[side], ids[1 - side], tuple(moments), tuple(lengths.tolist()),
                          tuple(cuts.tolist()), (seed, number, pair, side))
            )  # fmt: skip
    return videos


def _with_static(
    ordered: Sequence[Moment], static: Sequence[Moment], rng: np.random.Generator
) -> list[Moment]:
    """Add static moments that show nothing of the others, in a random order."""
    moments = list(ordered)
    seen = {state for moment in ordered for state in moment.states}
    for i in rng.permutation(len(static)):
        if len(moments) == len(ordered) + STATIC:
            break
        if static[i].states[0] not in seen:
            moments.append(static[i])
    return [moments[i] for i in rng.permutation(len(moments))]
