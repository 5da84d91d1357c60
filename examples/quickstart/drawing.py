"""A scene to pictures: where its objects are, how they move, what stands behind them."""

from __future__ import annotations

import numpy as np

from examples.quickstart.scenes import Scene

SIDE = 64  # pixels; the quickstart's models see half of it
MARGIN = 1.0  # objects stay this far inside the picture
GAP = 2.0  # and at least this far apart

COLOUR_VALUES = {
    "red": (220, 45, 40),
    "green": (45, 175, 60),
    "blue": (50, 90, 235),
    "yellow": (235, 210, 50),
}
RADII = {"small": (5.5, 6.5), "large": (9.0, 11.0)}
TRAVEL = {1: (14.0, 40.0), 2: (12.0, 26.0)}  # pixels of a step, in motions of one and of two
STEP = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # x, y; y points down
TRIES, BLOCK = 512, 32  # placements drawn at once, and looked at together
SHORT_SHARE = 0.15
SHORT, LONG = (5, 7), (8, 24)  # frames of a short and of a longer clip


def draw_scene(
    scene: Scene,
    rng: np.random.Generator,
    num_frames: int | None = None,
    wanted: slice = slice(None),
) -> np.ndarray:
    """Draw one clip of a scene; place, speed and background come from `rng`.

    Args:
        scene: What happens.
        rng: Source of everything the caption does not say.
        num_frames: Length of the clip; None: from `rng` too, 5 to 24 frames.
        wanted: Frames of the clip to draw.

    Returns:
        (frames, SIDE, SIDE, 3), uint8, RGB.
    """
    if num_frames is None:
        low, high = SHORT if rng.random() < SHORT_SHARE else LONG
        num_frames = int(rng.integers(low, high + 1))
    centres, radii = _place(scene, num_frames, rng)
    background = rng.uniform(55, 100) + rng.uniform(-6, 6, size=3)  # a dim grey
    drawn = len(range(num_frames)[wanted])
    video = np.tile(background.astype(np.float32), (drawn, SIDE, SIDE, 1))
    for thing, path, radius in zip(scene.things, centres, radii, strict=True):
        cover = _coverage(thing.shape, path[wanted], radius)[..., None]
        colour = np.array(COLOUR_VALUES[thing.colour]) + rng.uniform(-14, 14, size=3)
        change = colour.astype(np.float32) - video
        change *= cover
        video += change
    flicker = rng.normal(0, 3, size=(num_frames, 1, 1, 1)).astype(np.float32)
    video += flicker[wanted]
    np.clip(np.rint(video, out=video), 0, 255, out=video)
    return video.astype(np.uint8)


def _place(
    scene: Scene, num_frames: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Find centres (things, frames, 2) and radii (things,) for the scene's things, by trial."""
    for _ in range(200):
        radii = np.stack([rng.uniform(*RADII[thing.size], TRIES) for thing in scene.things], axis=1)
        ways = _Ways(scene.motion, rng)
        shares = rng.random((TRIES, len(scene.things), 2))
        # All numbers are drawn above; what comes of them, only until a try is good.
        for block in (slice(first, first + BLOCK) for first in range(0, TRIES, BLOCK)):
            size = radii[block]
            moved = np.zeros((*size.shape, num_frames, 2))
            moved[:, 0] = ways.paths(block, num_frames)
            low = MARGIN + size[..., None] - moved.min(axis=2)
            high = SIDE - MARGIN - size[..., None] - moved.max(axis=2)
            start = low + (high - low) * shares[block]
            centres = start[:, :, None] + moved  # (tries, things, frames, 2)
            good = (low <= high).all(axis=(1, 2)) & _is_true(scene.relation, centres, size)
            for bystander in range(2, len(scene.things)):
                good &= _apart(centres, size, 0, bystander) & _apart(centres, size, 1, bystander)
            if good.any():
                chosen = int(good.argmax())
                return centres[chosen], size[chosen]
    raise RuntimeError(f"found no room for the scene: {scene.caption}")


class _Ways:
    """Ways of a mover from its starting point, drawn at random, `TRIES` of them."""

    def __init__(self, motion: tuple[str, ...], rng: np.random.Generator) -> None:
        self._motion = motion
        # The time of a clip runs a little faster towards its end, or slower.
        self._pace = np.exp(rng.uniform(-0.25, 0.25, size=(TRIES, 1)))
        turns = [rng.uniform(0.42, 0.58, size=(TRIES, 1)) for _ in motion[1:]]
        self._bounds = [np.zeros((TRIES, 1)), *turns, np.ones((TRIES, 1))]
        self._travels = [rng.uniform(*TRAVEL[len(motion)], size=(TRIES, 1)) for _ in motion]

    def paths(self, block: slice, num_frames: int) -> np.ndarray:
        """Return some of them: (tries, frames, 2)."""
        time = np.linspace(0, 1, num_frames) ** self._pace[block]  # (tries, frames)
        bounds = [bound[block] for bound in self._bounds]
        paths = np.zeros((*time.shape, 2))
        for number, step in enumerate(self._motion):
            begin, end = bounds[number : number + 2]
            share = np.clip((time - begin) / (end - begin), 0, 1)
            paths += (share * self._travels[number][block])[..., None] * np.array(STEP[step])
        return paths


def _is_true(relation: str, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Test whether thing 0 is above or below thing 1, clear of it, in every frame: (tries,)."""
    sign = 1 if relation == "above" else -1
    below = sign * (centres[:, 1, :, 1] - centres[:, 0, :, 1])  # (tries, frames), y points down
    return (below >= (radii[:, 0] + radii[:, 1])[:, None] + GAP).all(axis=1)


def _apart(centres: np.ndarray, radii: np.ndarray, one: int, other: int) -> np.ndarray:
    distance = np.abs(centres[:, one] - centres[:, other]).max(axis=-1)  # (tries, frames)
    return (distance >= (radii[:, one] + radii[:, other])[:, None] + GAP).all(axis=1)


def _coverage(shape: str, path: np.ndarray, radius: float) -> np.ndarray:
    """Estimate the share of each pixel that a shape covers: (frames, SIDE, SIDE), 0 to 1."""
    pixel = np.arange(SIDE, dtype=np.float32) + 0.5
    x = pixel[None, None, :] - path[:, 0, None, None].astype(np.float32)
    y = pixel[None, :, None] - path[:, 1, None, None].astype(np.float32)
    if shape == "circle":
        outside = np.sqrt(x * x + y * y) - radius
    elif shape == "square":
        outside = np.maximum(np.abs(x), np.abs(y)) - radius
    else:  # a triangle that stands on its base
        slope = 1 / np.sqrt(5)  # of the unit normal of a side that rises twice as fast as it runs
        outside = np.maximum((2 * np.abs(x) - y - radius) * slope, y - radius)
    return np.clip(0.5 - outside, 0, 1)
