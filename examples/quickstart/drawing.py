"""A scene to pictures: where its objects are, how they move, what stands behind them."""

from __future__ import annotations

import numpy as np

from examples.quickstart.scenes import Scene, Thing

SIDE = 64  # pixels; the quickstart's models see half of it
MARGIN = 1.0  # objects stay this far inside the picture
GAP = 2.0  # and at least this far apart

COLOUR_VALUES = {
    "red": (220, 45, 40),
    "green": (45, 175, 60),
    "blue": (50, 90, 235),
    "yellow": (235, 210, 50),
}
RADII = {"small": (4.6, 5.6), "large": (8.5, 10.0)}
# How far a leg of a motion goes, in pixels, by the number of legs and of moving objects. Ways up
# and down end at the middle of the picture, so those are the short ones.
TRAVEL = {"one step": (12.0, 40.0), "two steps": (10.0, 24.0), "both move": (6.0, 30.0)}
STEP = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # x, y; y points down
SHORT_SHARE = 0.15
SHORT, LONG = (5, 7), (8, 24)  # frames of a short and of a longer clip


def draw_scene(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draw one clip of a scene; place, speed, length and background are drawn from ``rng``.

    Args:
        scene: what happens.
        rng: source of everything the caption does not say.

    Returns:
        ``(frames, SIDE, SIDE, 3)``, uint8, RGB, 5 to 24 frames.
    """
    low, high = SHORT if rng.random() < SHORT_SHARE else LONG
    num_frames = int(rng.integers(low, high + 1))
    things, centres, radii = _place(scene, num_frames, rng)
    video = _background(num_frames, rng)
    for thing, path, radius in zip(things, centres, radii, strict=True):
        cover = _coverage(thing.shape, path, radius)[..., None]
        colour = np.array(COLOUR_VALUES[thing.colour]) + rng.uniform(-14, 14, size=3)
        video += cover * (colour.astype(np.float32) - video)
    video += rng.normal(0, 3, size=video.shape[1:]).astype(np.float32)  # the camera's fixed pattern
    video += rng.normal(0, 3, size=(num_frames, 1, 1, 1)).astype(np.float32)  # a flickering light
    return np.clip(np.rint(video), 0, 255).astype(np.uint8)


def _place(
    scene: Scene, num_frames: int, rng: np.random.Generator
) -> tuple[list[Thing], np.ndarray, np.ndarray]:
    """Things, their centres ``(things, frames, 2)`` and radii ``(things,)``, by trial."""
    things = [scene.first, scene.second] + ([scene.bystander] if scene.bystander else [])
    tries = 512
    for _ in range(200):
        radii = np.stack([rng.uniform(*RADII[thing.size], size=tries) for thing in things], axis=1)
        moved = _displacements(scene, len(things), tries, num_frames, rng)
        low = MARGIN + radii[..., None] - moved.min(axis=2)
        high = SIDE - MARGIN - radii[..., None] - moved.max(axis=2)
        start = low + (high - low) * rng.random(low.shape)
        centres = start[:, :, None] + moved  # (tries, things, frames, 2)
        good = (low <= high).all(axis=(1, 2)) & _is_true(scene.relation, centres, radii)
        if len(things) == 3:
            good &= _apart(centres, radii, 0, 2) & _apart(centres, radii, 1, 2)
        if good.any():
            chosen = int(good.argmax())
            return things, centres[chosen], radii[chosen]
    raise RuntimeError(f"found no room for the scene: {scene.caption}")


def _displacements(
    scene: Scene, num_things: int, tries: int, num_frames: int, rng: np.random.Generator
) -> np.ndarray:
    """Way from the starting point: ``(tries, things, frames, 2)``."""
    kind = "both move" if scene.second_motion else "one step"
    if len(scene.motion) == 2:
        kind = "two steps"
    # The time of all objects of a clip runs a little faster towards its end, or slower.
    pace = np.exp(rng.uniform(-0.25, 0.25, size=(tries, 1)))
    time = np.linspace(0, 1, num_frames) ** pace  # (tries, frames)
    moved = np.zeros((tries, num_things, num_frames, 2))
    motions = [scene.motion, (scene.second_motion,) if scene.second_motion else ()]
    for thing, steps in enumerate(motions):
        turn = rng.uniform(0.42, 0.58, size=(tries, 1)) if len(steps) == 2 else np.ones((tries, 1))
        begin = np.zeros((tries, 1))
        for step, end in zip(steps, (turn, np.ones((tries, 1))), strict=False):
            share = np.clip((time - begin) / (end - begin), 0, 1)
            travel = rng.uniform(*TRAVEL[kind], size=(tries, 1))
            moved[:, thing] += (share * travel)[..., None] * np.array(STEP[step])
            begin = end
    return moved


def _is_true(relation: str, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Whether thing 0 is above or below thing 1 in every frame, each in its half of the picture."""
    sign = 1 if relation == "above" else -1
    y = sign * (centres[:, :2, :, 1] - SIDE / 2)  # (tries, 2, frames), y points down
    ahead = y[:, 1] - y[:, 0] >= (radii[:, 0] + radii[:, 1])[:, None] + GAP
    return (ahead & (y[:, 0] <= -1) & (y[:, 1] >= 1)).all(axis=1)


def _apart(centres: np.ndarray, radii: np.ndarray, one: int, other: int) -> np.ndarray:
    distance = np.abs(centres[:, one] - centres[:, other]).max(axis=-1)  # (tries, frames)
    return (distance >= (radii[:, one] + radii[:, other])[:, None] + GAP).all(axis=1)


def _coverage(shape: str, path: np.ndarray, radius: float) -> np.ndarray:
    """Share of each pixel that a shape covers, about: ``(frames, SIDE, SIDE)``, 0 to 1."""
    pixel = np.arange(SIDE, dtype=np.float32) + 0.5
    x = pixel[None, None, :] - path[:, 0, None, None].astype(np.float32)
    y = pixel[None, :, None] - path[:, 1, None, None].astype(np.float32)
    if shape == "circle":
        outside = np.sqrt(x * x + y * y) - radius
    elif shape == "square":
        outside = np.maximum(np.abs(x), np.abs(y)) - 0.9 * radius
    else:  # a triangle that stands on its base
        slope = 1 / np.sqrt(5)  # of the unit normal of a side that rises twice as fast as it runs
        outside = np.maximum((2 * np.abs(x) - y - radius) * slope, y - radius)
    return np.clip(0.5 - outside, 0, 1)


def _background(num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """A dim grey with a slope of light and a few faint spots, the same in all frames."""
    pixel = (np.arange(SIDE) + 0.5) / SIDE
    x, y = pixel[None, :], pixel[:, None]
    light = (
        rng.uniform(55, 100) + rng.uniform(-22, 22) * (x - 0.5) + rng.uniform(-22, 22) * (y - 0.5)
    )
    for _ in range(4):
        left, top, width = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.05, 0.2)
        spot = np.exp(-((x - left) ** 2 + (y - top) ** 2) / (2 * width**2))
        light = light + rng.uniform(-14, 14) * spot
    tint = rng.uniform(-6, 6, size=3)
    picture = (light[..., None] + tint).astype(np.float32)
    return np.repeat(picture[None], num_frames, axis=0)
