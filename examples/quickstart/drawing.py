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
SHORT_SHARE = 0.15
SHORT, LONG = (5, 7), (8, 24)  # frames of a short and of a longer clip


def draw_scene(scene: Scene, rng: np.random.Generator, num_frames: int | None = None) -> np.ndarray:
    """Draw one clip of a scene; place, speed and background come from `rng`.

    Args:
        scene: What happens.
        rng: Source of everything the caption does not say.
        num_frames: Length of the clip; None: from `rng` too, 5 to 24 frames.

    Returns:
        (frames, SIDE, SIDE, 3), uint8, RGB.
    """
    if num_frames is None:
        low, high = SHORT if rng.random() < SHORT_SHARE else LONG
        num_frames = int(rng.integers(low, high + 1))
    centres, radii = _place(scene, num_frames, rng)
    background = rng.uniform(55, 100) + rng.uniform(-6, 6, size=3)  # a dim grey
    video = np.tile(background.astype(np.float32), (num_frames, SIDE, SIDE, 1))
    for thing, path, radius in zip(scene.things, centres, radii, strict=True):
        cover = _coverage(thing.shape, path, radius)[..., None]
        colour = np.array(COLOUR_VALUES[thing.colour]) + rng.uniform(-14, 14, size=3)
        video += cover * (colour.astype(np.float32) - video)
    video += rng.normal(0, 3, size=(num_frames, 1, 1, 1)).astype(np.float32)  # a flickering light
    return np.clip(np.rint(video), 0, 255).astype(np.uint8)


def _place(
    scene: Scene, num_frames: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Find centres (things, frames, 2) and radii (things,) for the scene's things, by trial."""
    tries = 512
    for _ in range(200):
        radii = np.stack([rng.uniform(*RADII[thing.size], tries) for thing in scene.things], axis=1)
        moved = np.zeros((*radii.shape, num_frames, 2))
        moved[:, 0] = _ways(scene.motion, tries, num_frames, rng)
        low = MARGIN + radii[..., None] - moved.min(axis=2)
        high = SIDE - MARGIN - radii[..., None] - moved.max(axis=2)
        start = low + (high - low) * rng.random(low.shape)
        centres = start[:, :, None] + moved  # (tries, things, frames, 2)
        good = (low <= high).all(axis=(1, 2)) & _is_true(scene.relation, centres, radii)
        for bystander in range(2, len(scene.things)):
            good &= _apart(centres, radii, 0, bystander) & _apart(centres, radii, 1, bystander)
        if good.any():
            chosen = int(good.argmax())
            return centres[chosen], radii[chosen]
    raise RuntimeError(f"found no room for the scene: {scene.caption}")


def _ways(
    motion: tuple[str, ...], tries: int, num_frames: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw the ways of a mover from its starting point: (tries, frames, 2)."""
    # The time of a clip runs a little faster towards its end, or slower.
    pace = np.exp(rng.uniform(-0.25, 0.25, size=(tries, 1)))
    time = np.linspace(0, 1, num_frames) ** pace  # (tries, frames)
    turns = [rng.uniform(0.42, 0.58, size=(tries, 1)) for _ in motion[1:]]
    bounds = [np.zeros((tries, 1)), *turns, np.ones((tries, 1))]
    ways = np.zeros((tries, num_frames, 2))
    for step, begin, end in zip(motion, bounds[:-1], bounds[1:], strict=True):
        share = np.clip((time - begin) / (end - begin), 0, 1)
        travel = rng.uniform(*TRAVEL[len(motion)], size=(tries, 1))
        ways += (share * travel)[..., None] * np.array(STEP[step])
    return ways


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
