"""The film of a demo: what the agent does, and where its imagined rollouts lead."""

from __future__ import annotations

import os

import click
import numpy as np
import numpy.typing as npt

from pyjepa.agent import Model, Plan
from pyjepa.atomic import replacing
from pyjepa.envs.two_rooms import BORDER, SIZE, TwoRooms, render

try:
    from PIL import Image, ImageDraw
except ImportError as missing:
    raise click.UsageError("--gif needs Pillow: pip install 'pyjepa-engine[gif]'") from missing

SCALE = 5
EPISODES = 4
FRAME_MS = 120
LAST_MS = 900
COLOURS = {"floor": "#fbfbf8", "wall": "#33363b", "goal": "#2a9d55", "agent": "#c8402f", "walked": "#e3a59c",
           "imagined": "#3b6fb6"}  # fmt: skip


class Film:
    """Collects one frame per plan of the first episodes.

    The agent imagines latent states, not pictures. To draw them, every place in the current world is shown to the
    encoder once, and an imagined state is drawn at the places whose latents are nearest to it.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._frames: list[Image.Image] = []
        self._durations: list[int] = []
        self._episode = 0
        self._goal: npt.NDArray[np.float64] | None = None
        self._walked: list[tuple[float, float]] = []
        axis = np.linspace(*BORDER, 31)
        self._places = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
        self._latents: npt.NDArray[np.float32] = np.empty((0, 0), np.float32)

    def shoot(self, world: TwoRooms, plan: Plan) -> None:
        """Draws the world as it is and the plan as it is imagined."""
        if self._goal is None or not np.array_equal(self._goal, world.goal[0]):
            self._episode += 1
            if self._durations:
                self._durations[-1] = LAST_MS
            self._goal, self._walked = world.goal[0].copy(), []
            if self._episode <= EPISODES:
                pictures = render(self._places, np.broadcast_to(world.door, (len(self._places),)))
                self._latents = self._model.encode(pictures)
        if self._episode > EPISODES or plan.states is None:
            return
        self._walked.append((float(world.position[0, 0]), float(world.position[0, 1])))
        self._frames.append(self._draw(world, self._locate(plan.states)))
        self._durations.append(FRAME_MS)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an animated GIF."""
        if not self._frames:
            raise ValueError("there is nothing to draw: no episode needed a plan")
        self._durations[-1] = LAST_MS
        with replacing(path) as temporary:
            self._frames[0].save(
                temporary, format="GIF", save_all=True, append_images=self._frames[1:], duration=self._durations, loop=0
            )

    def _locate(self, states: npt.NDArray[np.float32]) -> list[tuple[float, float]]:
        nearest = 4
        distances = ((states[:, None] - self._latents) ** 2).sum(-1)
        chosen = np.argpartition(distances, nearest, axis=1)[:, :nearest]
        weights = 1.0 / (np.take_along_axis(distances, chosen, 1) + 1e-6)
        weights /= weights.sum(1, keepdims=True)
        return [(float(x), float(y)) for x, y in (self._places[chosen] * weights[..., None]).sum(1)]

    def _draw(self, world: TwoRooms, imagined: list[tuple[float, float]]) -> Image.Image:
        image = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), COLOURS["floor"])
        draw = ImageDraw.Draw(image)

        def at(point: tuple[float, float]) -> tuple[float, float]:
            return ((point[0] + 0.5) * SCALE, (point[1] + 0.5) * SCALE)

        def dot(point: tuple[float, float], radius: float, colour: str) -> None:
            x, y = at(point)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

        for row, column in np.argwhere(world.observation[0, 1]):
            draw.rectangle(
                (column * SCALE, row * SCALE, (column + 1) * SCALE - 1, (row + 1) * SCALE - 1), COLOURS["wall"]
            )
        x, y = at((world.goal[0, 0], world.goal[0, 1]))
        reach = 3.0 * SCALE
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), outline=COLOURS["goal"], width=3)
        if len(self._walked) > 1:
            draw.line([at(p) for p in self._walked], fill=COLOURS["walked"], width=3)
        draw.line([at(p) for p in imagined], fill=COLOURS["imagined"], width=2)
        for point in imagined[1:]:
            dot(point, 3, COLOURS["imagined"])
        dot(self._walked[-1], 7, COLOURS["agent"])
        return image
