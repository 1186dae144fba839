"""``pyjepa train --env ID``: any Gymnasium environment that shows pictures, from collecting to an agent file.

Random actions are recorded, with what they earn. The model sees the last few pictures, 64 x 64 px each, stacked; it is
trained as any other here (multi-step prediction in latent space, VICReg, inverse dynamics), and two heads, whose
gradients shape the encoder too, learn what an action earns and whether the episode ends because of it. The agent plans
for the most reward: by CEM, for discrete actions by categorical CEM. In further rounds it plays itself, now and then at
random, and learns from all that was recorded.

What cannot be served is an `UnservedError` that says what and why, before anything is recorded.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyjepa.adapters import needed
from pyjepa.agent import Agent, Model
from pyjepa.bench.machine import describe
from pyjepa.bench.percentiles import milliseconds
from pyjepa.bench.references import references
from pyjepa.errors import PyjepaError
from pyjepa.objectives.inverse_dynamics import InverseDynamics
from pyjepa.objectives.temporal import temporal_similarity, temporal_variance
from pyjepa.objectives.vicreg import VICReg
from pyjepa.spec import Actions, CostTerm, Layer, Level, Mlp, Module, Observation, Planner, Spec
from pyjepa.training.architecture import encoder, predictor
from pyjepa.training.config import Architecture
from pyjepa.world_model import WorldModel

SIZE = 64
JUDGED_FROM = 50_000
"""The seed of the first episode that judges; none is recorded from such, or chosen on."""
TRIED_FROM = 40_000
"""The seed of the first episode that a horizon is chosen on."""


class UnservedError(PyjepaError, ValueError):
    """The environment has spaces or pictures that cannot be served; the message names them."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How an environment is learned."""

    episodes: int = 200
    """To record in a round: of random actions in the first, of the agent's own in the others..."""
    own_episodes: int | None = None
    """... which record so many, if this is given."""
    episode_steps: int | None = None
    """After so many steps a recorded episode is left, as if time were up."""
    rounds: int = 1
    explore: float = 0.2
    """Share of an agent's actions that are random where it is recorded."""
    action_scale: float = 1.0
    """The agent keeps to so much of a box of actions, around its middle, and random ones are drawn from there: where
    full ones fling the body about, small ones show what skilled play looks like."""
    steps: int = 2000
    """Of training, in every round."""
    batch: int = 64
    window: int = 5
    """Predictor steps per clip."""
    history: int = 2
    """Pictures that one observation stacks."""
    grey: bool = False
    """Pictures have one channel, the mean of their colours."""
    past_actions: bool = False
    """Each picture of an observation comes with the action that led to it, as constant planes (as in MuZero,
    Schrittwieser et al. 2020): what an action does to speeds shows in pictures only later."""
    action_block: int = 1
    """Environment steps for which an action is held."""
    repeat: int = 1
    """Environment steps that every action lasts, as behind a wrapper that repeats it: the agent file knows nothing of
    it. What discrete actions do shows the better in pictures the longer they last."""
    shift: int = 0
    """Training moves clips by up to so many pixels (Kostrikov et al. 2020), where a little does not matter..."""
    shift_sideways: int | None = None
    """... and by so many to the left or right, if this is given."""
    latent: int = 48
    hidden: int = 128
    channels: tuple[int, ...] = (16, 32, 64)
    learning_rate: float = 1e-3
    prediction: float = 10.0
    variance: float = 5.0
    covariance: float = 0.5
    temporal_variance: float = 5.0
    inverse_dynamics: float = 2.0
    reward: float = 10.0
    hazard: float = 5.0
    value: float = 10.0
    discount: float = 1.0
    """Of what is earned a block later. Below 1 a critic learns what is still to be earned from a state and closes every
    plan: it foresees what lies behind the horizon."""
    horizon: int = 12
    """Environment steps to plan, at least one block."""
    try_horizons: tuple[int, ...] = ()
    """Others that the trained agent tries in games of their own: how far ahead the model is better than its critic,
    nobody knows before. The one that earns most is kept, of equals the shortest."""
    trials: int = 20
    """Games for each of them."""
    candidates: int = 200
    iterations: int = 5
    seed: int = 0

    @property
    def gap(self) -> int:
        """Steps between two states of which neither shows the action after the first."""
        return self.history + 1 if self.past_actions else 1

    @property
    def horizons(self) -> list[int]:
        """Those that may be chosen, the shortest first."""
        return sorted({self.in_blocks(steps) for steps in (self.horizon, *self.try_horizons)})

    def in_blocks(self, steps: int) -> int:
        """As many steps, or fewer, as whole blocks have, and at least one block's."""
        return max(steps // self.action_block, 1) * self.action_block


class World:
    """A Gymnasium environment as pictures: (history * channels, 64, 64) uint8, and actions that last a block."""

    def __init__(
        self, name: str, *, history: int, action_block: int, repeat: int = 1, grey: bool = False,
        past_actions: bool = False, action_scale: float = 1.0, arguments: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Raises `UnservedError` for what cannot be served, `MissingPackageError` without gymnasium."""
        gymnasium = needed("gymnasium", "gymnasium", "training in an environment")
        try:
            self._env = gymnasium.make(name, render_mode="rgb_array", **(arguments or {}))
        except gymnasium.error.DependencyNotInstalled as error:
            raise UnservedError(f"{name}: {error}") from error
        except gymnasium.error.Error as error:
            raise UnservedError(f"{name}: no such environment, or its package is not installed ({error})") from error
        except TypeError as error:
            raise UnservedError(f"{name}: it shows no pictures (render_mode 'rgb_array'): {error}") from error
        self.name, self._history, self._block = name, history, action_block
        self._repeat, self.channels, self._past_actions = repeat, 1 if grey else 3, past_actions
        try:
            self.actions = self._checked_actions(gymnasium.spaces, action_scale)
            self._env.reset(seed=0)
            self._picture()
        except PyjepaError:
            self._env.close()
            raise
        self._frames: list[npt.NDArray[np.uint8]] = []

    def _checked_actions(self, spaces: Any, scale: float) -> Actions:
        space = self._env.action_space
        if "rgb_array" not in self._env.metadata.get("render_modes", []):
            modes = ", ".join(self._env.metadata.get("render_modes", [])) or "none"
            raise UnservedError(f"{self.name}: it shows no pictures (render modes: {modes}; 'rgb_array' is needed)")
        if isinstance(space, spaces.Discrete):
            if self._block > 1:
                raise UnservedError(f"{self.name}: discrete actions come one at a time, action_block must be 1")
            if scale != 1:
                raise UnservedError(f"{self.name}: discrete actions cannot be scaled, action_scale must be 1")
            self._first = int(space.start)
            return Actions(kind="discrete", count=int(space.n))
        if not isinstance(space, spaces.Box):
            raise UnservedError(
                f"{self.name}: its action space is {type(space).__name__}: Box and Discrete are served; flatten it "
                "with a wrapper"
            )
        if len(space.shape) != 1:
            raise UnservedError(f"{self.name}: its actions have shape {space.shape}: (A,) is served")
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise UnservedError(f"{self.name}: its actions are not bounded: rescale them with a wrapper")
        middle, reach = (space.low + space.high) / 2, scale * (space.high - space.low) / 2
        return Actions(low=tuple(map(float, middle - reach)), high=tuple(map(float, middle + reach)))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an observation."""
        return (
            self._history * (self.channels + (action_planes(self.actions) if self._past_actions else 0)),
            SIZE,
            SIZE,
        )

    def newest(self, observation: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The newest picture of an observation, (channels, 64, 64)."""
        begin = (self._history - 1) * (len(observation) // self._history)
        return observation[begin : begin + self.channels]

    @property
    def unwrapped(self) -> Any:
        """The environment itself."""
        return self._env.unwrapped

    def seed_actions(self, seed: int) -> None:
        """What `sample` draws from."""
        self._env.action_space.seed(seed)

    def sample(self) -> Any:
        """A random one of the actions: (A,), or an index from 0."""
        space = self._env.action_space
        action = space.sample()
        if self.actions.kind == "discrete":
            return int(action) - self._first
        share = (action - space.low) / (space.high - space.low)
        low, high = np.asarray(self.actions.low), np.asarray(self.actions.high)
        return (low + share * (high - low)).astype(np.float32)

    def reset(self, seed: int | None = None) -> npt.NDArray[np.uint8]:
        """Begin an episode."""
        self._env.reset(seed=seed)
        self._frames = [self._framed(None)] * self._history
        return np.concatenate(self._frames)

    def step(self, action: Any) -> tuple[npt.NDArray[np.uint8], float, bool, bool]:
        """Hold an action for a block: observation, reward earned, whether it ended the episode, whether time did.

        Raises `UnservedError` for a reward that is no number.
        """
        earned, ended, late = 0.0, False, False
        given = action + self._first if self.actions.kind == "discrete" else np.asarray(action, np.float32)
        for _ in range(self._block * self._repeat):
            _, reward, ended, late, _ = self._env.step(given)
            earned += float(reward)
            if ended or late:
                break
        if not np.isfinite(earned):
            raise UnservedError(f"{self.name}: the reward is not a finite number ({earned})")
        self._frames = [*self._frames[1:], self._framed(action)]
        return np.concatenate(self._frames), earned, bool(ended), bool(late)

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _framed(self, action: Any) -> npt.NDArray[np.uint8]:
        """The picture now, and what led to it, if that is asked for."""
        picture = self._picture()
        if not self._past_actions:
            return picture
        levels = np.full(action_planes(self.actions), NO_ACTION, np.uint8)
        if action is not None:
            levels = action_levels(self.actions, np.asarray(action))
        return np.concatenate([picture, np.broadcast_to(levels[:, None, None], (len(levels), SIZE, SIZE))])

    def _picture(self) -> npt.NDArray[np.uint8]:
        picture = self._env.render()
        if (
            not isinstance(picture, np.ndarray)
            or picture.ndim != 3
            or picture.shape[-1] != 3
            or picture.dtype != np.uint8
        ):
            told = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else type(picture).__name__
            raise UnservedError(f"{self.name}: render() gives {told}: a uint8 picture (H, W, 3) is needed")
        small = shrunk(picture)
        return small if self.channels == 3 else small.mean(axis=0, keepdims=True).round().astype(np.uint8)


NO_ACTION = 128
"""What an action's planes show where none has been taken."""


def action_planes(actions: Actions) -> int:
    """How many planes show an action: one for each of its numbers."""
    return 1 if actions.kind == "discrete" else actions.size


def action_levels(actions: Actions, taken: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Grey levels (..., planes) that show actions: the way from the lowest to the highest, or of indices (...)."""
    if actions.kind == "discrete":
        share = taken[..., None] / max(actions.size - 1, 1)
    else:
        low, high = np.asarray(actions.low), np.asarray(actions.high)
        share = np.clip((taken - low) / (high - low), 0, 1)
    return np.round(255 * share).astype(np.uint8)


def shrunk(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A picture (H, W, 3), squeezed to (3, 64, 64): each pixel the mean over its area."""
    images = needed("PIL.Image", "pillow", "shrinking pictures")
    small = np.asarray(images.fromarray(picture).resize((SIZE, SIZE), images.Resampling.BOX))
    return np.ascontiguousarray(np.moveaxis(small, -1, 0))


@dataclass(frozen=True)
class Recorded:
    """Episodes one after the other; row t and action t lead to row t + 1 of the same episode."""

    pictures: npt.NDArray[np.uint8]
    """(T, channels, 64, 64): the newest picture of every observation."""
    actions: npt.NDArray[Any]
    """(T, A) float32 or (T,) int64; the last row of an episode has none that counts."""
    rewards: npt.NDArray[np.float32]
    ended: npt.NDArray[np.bool_]
    """Whether the action ended the episode other than by time."""
    first: npt.NDArray[np.int64]
    """The row at which each row's episode begins, (T,)."""
    last: npt.NDArray[np.int64]
    """The row of its last observation."""
    returns: npt.NDArray[np.float64]
    """What every episode earned."""


def collect(
    world: World, settings: Settings, progress: Callable[[int], None] | None = None, *, agent: Agent | None = None,
    turn: int = 0,
) -> Recorded:  # fmt: skip
    """Record episodes of random actions, or of an agent's.

    Raises `UnservedError` where all are over before a clip is full.
    """
    pictures: list[npt.NDArray[Any]] = []
    actions, rewards, ended, first, last, returns = [], [], [], [], [], []
    world.seed_actions(settings.seed + 1_000 * turn)
    rng = np.random.default_rng([settings.seed, turn])
    limit = settings.episode_steps or np.inf
    count = settings.episodes if agent is None else settings.own_episodes or settings.episodes
    for episode in range(count):
        begin = len(pictures)
        seen = world.reset(seed=1_000_000 * (settings.seed + 1) + settings.episodes * turn + episode)
        if agent is not None:
            agent.reset()
        total, over = 0.0, False
        while not over:
            action = world.sample()
            if agent is not None:
                planned = agent.plan(seen).actions[0]
                action = action if rng.random() < settings.explore else planned
            after, reward, dead, late = world.step(action)
            late |= len(pictures) - begin + 1 >= limit
            pictures.append(world.newest(seen))
            actions.append(action)
            rewards.append(reward)
            ended.append(dead)
            total, seen, over = total + reward, after, dead or late
        pictures.append(world.newest(seen))
        actions.append(action)
        rewards.append(0.0)
        ended.append(False)
        first += [begin] * (len(pictures) - begin)
        last += [len(pictures) - 1] * (len(pictures) - begin)
        returns.append(total)
        if progress is not None:
            progress(1)
    if settings.window < settings.gap:
        raise UnservedError(
            f"a clip of {settings.window} steps is too short beside {settings.history} pictures with their past "
            f"actions: choose a window of {settings.gap} or more"
        )
    lengths = np.array(last) - np.array(first)
    if lengths.max() < settings.window:
        raise UnservedError(
            f"{world.name}: the longest of {count} recorded episodes has {lengths.max()} steps, a clip "
            f"{settings.window}: choose a smaller window"
        )
    kind = np.int64 if world.actions.kind == "discrete" else np.float32
    return Recorded(
        np.stack(pictures), np.asarray(actions, kind), np.asarray(rewards, np.float32), np.asarray(ended),
        np.asarray(first), np.asarray(last), np.asarray(returns),
    )  # fmt: skip


def joined(parts: Sequence[Recorded]) -> Recorded:
    """Several recordings as one."""
    offsets = np.cumsum([0, *(len(part.first) for part in parts)])
    moved = [
        dataclasses.replace(part, first=part.first + by, last=part.last + by)
        for part, by in zip(parts, offsets[:-1], strict=True)
    ]
    names = [field.name for field in dataclasses.fields(Recorded)]
    return Recorded(*(np.concatenate([getattr(part, name) for part in moved]) for name in names))


def build_spec(world: World, settings: Settings, data: Recorded) -> Spec:
    """The agent's spec: encoder, predictor, a head for reward and one for the hazard that the episode ends.

    Pixels are standardised as in ``data``, around a whole grey level: what moves on a wide empty ground would hardly be
    seen.
    """
    some = data.pictures[:: max(1, len(data.pictures) // 500)]
    mean, std = round(float(some.mean())), max(float(some.std()), 1.0)
    sizes = Architecture(
        channels=list(settings.channels), kernels=[8, 3, 3], strides=[4, 2, 2], paddings=[2, 1, 1],
        encoder_hidden=settings.hidden, latent=settings.latent, predictor_hidden=[settings.hidden] * 2,
    )  # fmt: skip
    hidden = (Layer(out=settings.hidden, activation="relu"),)
    discrete, foresees = world.actions.kind == "discrete", settings.discount < 1
    of_state = Module(inputs=("state",), blocks=(Mlp(layers=(*hidden, Layer(out=1))),))
    return Spec(
        name=world.name,
        observation=Observation(shape=world.shape, dtype="uint8", scale=1 / std, offset=-mean / std),
        actions=world.actions,
        modules={
            "encoder": encoder(sizes),
            "predictor": predictor(sizes),
            "reward": Module(inputs=("state", "action"), blocks=(Mlp(layers=(*hidden, Layer(out=1))),)),
            "hazard": of_state,
            **({"critic": of_state} if foresees else {}),
        },
        levels=(
            Level(encoder="encoder", predictor="predictor", action_block=settings.action_block,
                  hold=settings.action_block > 1),
        ),
        critic="critic" if foresees else None,
        discount=settings.discount,
        cost=(
            CostTerm(kind="reward", module="reward"),
            CostTerm(kind="hazard", module="hazard", sigmoid=True),
            *((CostTerm(kind="critic", stage=0.0),) if foresees else ()),
        ),
        planner=Planner(
            algorithm="categorical-cem" if discrete else "cem",
            horizon=settings.in_blocks(settings.horizon),
            candidates=settings.candidates, iterations=settings.iterations, elites=max(settings.candidates // 10, 1),
        ),
    )  # fmt: skip


class Training:
    """One run over what was recorded."""

    def __init__(self, spec: Spec, data: Recorded, settings: Settings) -> None:
        self.settings = settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.model = WorldModel(spec)
            self.inverse = InverseDynamics(self.model.latent_dim, self.model.plan_dim)
        assert self.model.encoder_name is not None  # it sees pictures
        encoder = self.model.get_submodule(self.model.encoder_name)
        encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.data = data
        self._first_layer = f"{self.model.encoder_name}.0.conv0"
        seen = spec.observation
        gains = torch.from_numpy(self._whitening() * seen.scale).bfloat16()  # of grey levels, which it holds exactly
        self._whiten = gains.float() / seen.scale
        self._gains, self._middle = gains[..., None, None], round(-seen.offset / seen.scale)
        own_rows = np.flatnonzero(np.arange(len(data.first)) < data.last)
        own = data.rewards[own_rows]
        self.reward_mean, self.reward_std = float(own.mean()), float(own.std())
        self.value_mean, self.value_std = 0.0, 1.0
        self._slow = copy.deepcopy(self.model.get_submodule("critic")) if settings.discount < 1 else None
        self._rng = np.random.default_rng(settings.seed)
        self._blind = float(self._actions(own_rows).var(dim=0, correction=0).mean())
        self._parameters = [*self.model.parameters(), *self.inverse.parameters()]

        self.learn_from(data)

    def learn_from(self, data: Recorded) -> None:
        """Go on with other data; rewards stay in the units of the first.

        The end of an episode is in its last clip alone, other rows in as many as a clip has steps: where it is more
        than time that was up, that clip counts as often.
        """
        rows, window = np.arange(len(data.first)), self.settings.window
        self.data, starts = data, rows[rows + window <= data.last]
        ends = starts[data.ended[starts + window - 1]]
        self.starts = np.concatenate([starts, np.repeat(ends, window - 1)])
        if self._slow is not None:
            self._in_units_of(data)

    def _in_units_of(self, data: Recorded) -> None:
        """Let the critic speak in deviations of what recorded episodes still earned, and say what it said (PopArt,
        van Hasselt et al. 2016).
        """
        worth, later = np.zeros(len(data.first)), 0.0
        for row in range(len(worth) - 1, -1, -1):
            later = 0.0 if row == data.last[row] else float(data.rewards[row]) + self.settings.discount * later
            worth[row] = later
        mean, std = float(worth.mean()), max(float(worth.std()), 1e-6)
        assert self._slow is not None
        for critic in (self.model.get_submodule("critic"), self._slow):
            rescale(critic, self.value_std / std, (self.value_mean - mean) / std)
        self.value_mean, self.value_std = mean, std

    def stacked(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """The observations (..., history * channels, 64, 64) of these rows."""
        data, frames = self.data, []
        for k in range(self.settings.history - 1, -1, -1):
            row = np.maximum(rows - k, data.first[rows])
            frames.append(data.pictures[row])
            if self.settings.past_actions:
                levels = action_levels(self.model.spec.actions, data.actions[np.maximum(row - 1, 0)])
                levels[row == data.first[row]] = NO_ACTION
                frames.append(np.broadcast_to(levels[..., None, None], (*levels.shape, SIZE, SIZE)))
        return np.concatenate(frames, axis=-3)

    def _whitening(self) -> npt.NDArray[np.float64]:
        """The matrix that makes all that changes in the channels as loud as what changes most in pictures (ZCA).

        What moves is in small differences of pictures that are nearly alike, and of colours: a network that reads them
        as they come hardly hears it. What changes by less than half a grey level stays as it is.
        """
        count = len(self.data.first)
        some = self.stacked(np.arange(0, count, max(1, count // 300))).astype(np.float32)
        flat = np.moveaxis(some - some.mean(axis=0), 1, 0).reshape(some.shape[1], -1)
        covariance = np.cov(flat).reshape(len(flat), -1).astype(np.float64)
        seen = np.arange(len(flat)) % (len(flat) // self.settings.history) < self.data.pictures.shape[1]
        loudest = np.linalg.eigvalsh(covariance[np.ix_(seen, seen)])[-1]
        variances, directions = np.linalg.eigh(covariance)
        gains = np.where(variances > 0.25, np.sqrt(loudest / np.maximum(variances, 0.25)), 1.0)
        whitening: npt.NDArray[np.float64] = (directions * gains) @ directions.T
        return whitening

    def encode(self, pictures: npt.NDArray[np.uint8]) -> Tensor:
        """Observations (..., history * channels, 64, 64) -> latents (..., L)."""
        batch, image = pictures.shape[:-3], pictures.shape[-3:]
        pixels = torch.from_numpy(pictures.reshape(-1, *image)).to(memory_format=torch.channels_last)
        whitened = functional.conv2d(pixels.bfloat16() - self._middle, self._gains)
        assert self.model.encoder_name is not None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            latents: Tensor = self.model.get_submodule(self.model.encoder_name)({"observation": whitened})
        return latents.float().reshape(*batch, -1)

    def run(self, progress: Callable[[int, dict[str, float]], None] | None = None) -> None:
        """The steps of a round."""
        settings, rng = self.settings, self._rng
        optimiser = torch.optim.AdamW(self._parameters, lr=settings.learning_rate, weight_decay=1e-4)
        for step in range(settings.steps):
            rate = min(1.0, (step + 1) / 100) * 0.5 * (1 + np.cos(np.pi * step / settings.steps))
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate * rate
            losses = self._losses(rng.choice(self.starts, settings.batch))
            optimiser.zero_grad()
            losses["total"].backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self._parameters, 10.0)
            optimiser.step()
            if self._slow is not None:
                with torch.no_grad():
                    fast = self.model.get_submodule("critic").parameters()
                    for old, new in zip(self._slow.parameters(), fast, strict=True):
                        old.lerp_(new, 0.01)
            if progress is not None:
                progress(step + 1, {name: float(value.detach()) for name, value in losses.items()})

    def _losses(self, starts: npt.NDArray[np.int64]) -> dict[str, Tensor]:
        settings, data = self.settings, self.data
        rows = starts[:, None] + np.arange(settings.window + 1)
        seen = self.encode(self._moved(self.stacked(rows)))
        actions = self._actions(rows[:, :-1])
        states = [seen[:, 0]]
        for t in range(settings.window):
            inputs = {"state": states[-1], "action": actions[:, t]}
            states.append(self.model.get_submodule(self.model.predictor_name)(inputs))
        imagined = torch.stack(states, dim=1)
        reward = torch.from_numpy((data.rewards[rows[:, :-1]] - self.reward_mean) / max(self.reward_std, 1e-6)).float()
        ended = torch.from_numpy(data.ended[rows[:, :-1]]).float()
        worth = self._worth(seen, torch.from_numpy(data.rewards[rows[:, :-1]]), ended)
        regularised = [VICReg().terms(seen[:, t], seen[:, t]) for t in (0, settings.window)]
        told, danger = zip(*(self._heads(source, actions) for source in (imagined, seen)), strict=True)
        losses = {
            "prediction": functional.mse_loss(imagined[:, 1:], seen[:, 1:]),
            "variance": torch.stack([terms.variance for terms in regularised]).mean() / 2,
            "covariance": torch.stack([terms.covariance for terms in regularised]).mean() / 2,
            "temporal_variance": temporal_variance(seen, target=0.5),
            "temporal_similarity": temporal_similarity(seen),
            "inverse_dynamics": self._inverse(seen, actions),
            "reward": torch.stack([functional.mse_loss(t, reward) for t in told]).mean(),
            "hazard": torch.stack([functional.binary_cross_entropy_with_logits(d, ended) for d in danger]).mean(),
        }
        weights = [settings.prediction, settings.variance, settings.covariance, settings.temporal_variance, 0.1,
                   settings.inverse_dynamics, settings.reward if self.reward_std > 1e-6 else 0.0,
                   settings.hazard if data.ended.any() else 0.0]  # fmt: skip
        if worth is not None:
            told_worth = [self.model.head("critic", s.flatten(0, 1))[0].reshape(worth.shape) for s in (imagined, seen)]
            losses["value"] = torch.stack([functional.mse_loss(t, worth) for t in told_worth]).mean()
            weights.append(settings.value)
        losses["total"] = torch.stack([w * term for w, term in zip(weights, losses.values(), strict=True)]).sum()
        return losses

    def _heads(self, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """What they say of states (B, T + 1, L): reward of each action (B, T), hazard where it leads, in logits."""
        before, after = states[:, :-1].flatten(0, 1), states[:, 1:].flatten(0, 1)
        reward = self.model.head("reward", before, actions.flatten(0, 1))[0]
        hazard = self.model.head("hazard", after)[0]
        return reward.reshape(actions.shape[:2]), hazard.reshape(actions.shape[:2])

    def _worth(self, seen: Tensor, rewards: Tensor, ended: Tensor) -> Tensor | None:
        """What is still to be earned at states (B, T + 1, L), as the critic says it: (B, T + 1). None without a critic.

        The clip's rewards (B, T), closed by a slow copy of the critic (TD over as many steps), and nothing after an
        end.
        """
        if self._slow is None:
            return None
        with torch.no_grad():
            alive = 1 - ended
            worth = [(self._slow({"state": seen[:, -1]})[:, 0] * self.value_std + self.value_mean) * alive[:, -1]]
            for t in range(rewards.shape[1] - 1, -1, -1):
                worth.append(rewards[:, t] + self.settings.discount * worth[-1] * alive[:, t])
            return (torch.stack(worth[::-1], dim=1) - self.value_mean) / self.value_std

    def _inverse(self, seen: Tensor, actions: Tensor) -> Tensor:
        """How badly actions are told from the states around them, beside blind guessing. These must not show them, so
        they are as many steps apart as that takes (Lamb et al. 2022).
        """
        gap = self.settings.gap
        pairs = torch.stack([seen[:, :-gap], seen[:, gap:]], dim=2).flatten(0, 1)
        found: Tensor = self.inverse(pairs, actions[:, : pairs.shape[0] // len(seen)].flatten(0, 1).unsqueeze(1))
        return found / max(self._blind, 1e-6)

    def _actions(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """The actions of these rows (...), normalised: (..., A)."""
        taken = torch.from_numpy(self.data.actions[rows])
        return self.model.normalise(taken.unsqueeze(-1) if self.model.spec.actions.kind == "discrete" else taken)

    def _moved(self, clips: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Clips (B, T, C, H, W), each moved as a whole by a random whole number of pixels; edges are repeated."""
        down, right = self.settings.shift, self.settings.shift_sideways
        most = (down, down if right is None else right)
        if most == (0, 0):
            return clips
        moved = np.empty_like(clips)
        aside = [(0, 0)] * (clips.ndim - 3) + [(by, by) for by in most]
        ways = self._rng.integers(0, 2 * np.array(most) + 1, (len(clips), 2))
        for clip, out, (down, right) in zip(clips, moved, ways, strict=True):
            out[:] = np.pad(clip, aside, mode="edge")[..., down : down + SIZE, right : right + SIZE]
        return moved

    def finished(self) -> WorldModel:
        """A copy of the model that reads pictures as they are and speaks in the environment's units: in training they
        are whitened, and heads learn standardised numbers.
        """
        model = copy.deepcopy(self.model)
        first = model.get_submodule(self._first_layer)
        assert isinstance(first.weight, Tensor)
        units = {"reward": (self.reward_std if self.reward_std > 1e-6 else 0.0, self.reward_mean)}
        if self._slow is not None:
            units["critic"] = (self.value_std, self.value_mean)
        with torch.no_grad():
            first.weight.copy_(torch.einsum("ochw,cd->odhw", first.weight, self._whiten))
        for head, (scale, mean) in units.items():
            rescale(model.get_submodule(head), scale, mean)
        return model


def rescale(head: nn.Module, scale: float, mean: float) -> None:
    """Let a head put out ``scale`` times what it did, and ``mean`` more."""
    last = head.get_submodule("0.linear1")
    with torch.no_grad():
        for name, parameter in last.named_parameters():
            parameter.mul_(scale)
            if name == "bias":
                parameter.add_(mean)


def hazard_weight(data: Recorded) -> float:
    """What ending the episode costs: all that is earned in a mean episode, at least the spread of rewards."""
    return float(max(abs(data.returns.mean()), data.rewards.std(), 1e-3))


def played(
    world: World, decide: Callable[[npt.NDArray[np.uint8]], Any], *, episodes: int, seed: int,
    begin: Callable[[], None] = lambda: None, progress: Callable[[int], None] | None = None,
) -> list[float]:  # fmt: skip
    """What a policy earns, episode by episode; ``begin`` is called before each."""
    returns = []
    for episode in range(episodes):
        seen = world.reset(seed=seed + episode)
        begin()
        total, over = 0.0, False
        while not over:
            seen, reward, dead, late = world.step(decide(seen))
            total, over = total + reward, dead or late
        returns.append(total)
        if progress is not None:
            progress(1)
    return returns


def judge(
    world: World, model: Model, *, episodes: int, seed: int = JUDGED_FROM, progress: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """What the agent earns in episodes seeded ``seed``, ``seed`` + 1, …, and CPU milliseconds a plan."""
    agent = Agent(model)
    agent.configure(seed=seed)
    times: list[float] = []

    def decide(seen: npt.NDArray[np.uint8]) -> Any:
        began = time.thread_time()
        plan = agent.plan(seen)
        times.append(time.thread_time() - began)
        return plan.actions[0]

    earned = played(world, decide, episodes=episodes, seed=seed, begin=agent.reset, progress=progress)
    return {
        "episodes": episodes,
        "agent": {"mean": float(np.mean(earned)), "std": float(np.std(earned)), "returns": earned},
        "plan_cpu_ms_p50": milliseconds(times, 50),
        "plan_cpu_ms_p99": milliseconds(times, 99),
    }


def _first_action(agent: Agent, seen: npt.NDArray[np.uint8]) -> Any:
    return agent.plan(seen).actions[0]


def tried(world: World, model: Model, settings: Settings, progress: Callable[[int], None]) -> dict[int, float]:
    """What the agent earns on average by each horizon that may be chosen, the shortest first."""
    earned = {}
    for horizon in settings.horizons:
        agent = Agent(model)
        agent.configure(seed=settings.seed, horizon=horizon)
        returns = played(
            world, functools.partial(_first_action, agent), episodes=settings.trials, seed=TRIED_FROM,
            begin=agent.reset, progress=progress,
        )  # fmt: skip
        earned[horizon] = float(np.mean(returns))
    return earned


def train_environment(
    name: str,
    out: str | Path,
    *,
    settings: Settings | None = None,
    episodes: int = 20,
    arguments: dict[str, Any] | None = None,
    command: str = "pyjepa.training.environments.train_environment",
    stage: Callable[[str, int], None] = lambda name, total: None,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Collect, train, write the agent file to ``out`` and judge it over ``episodes``. Returns what was measured.

    Raises `UnservedError`, `MissingPackageError`, and what writing files raises.
    """
    settings, began = settings or Settings(), time.process_time()
    torch.set_num_threads(1)
    if find_spec("triton") is not None:
        import_module("triton")  # torch loads it when training begins: with Mesa's LLVM there before it, that crashes
    world = World(
        name, history=settings.history, action_block=settings.action_block, repeat=settings.repeat, grey=settings.grey,
        past_actions=settings.past_actions, action_scale=settings.action_scale, arguments=arguments,
    )  # fmt: skip
    try:
        parts: list[Recorded] = []
        figures: dict[str, float] = {}
        run, agent = None, None

        def step(done: int, losses: dict[str, float]) -> None:
            figures.update(losses)
            progress(1)

        for turn in range(settings.rounds):
            stage(
                f"collecting, round {turn + 1}",
                settings.episodes if agent is None else settings.own_episodes or settings.episodes,
            )
            parts.append(collect(world, settings, progress, agent=agent, turn=turn))
            data = joined(parts)
            if run is None:
                spec = build_spec(world, settings, data)
                run = Training(spec, data, settings)
            run.learn_from(data)
            stage(f"training, round {turn + 1}", settings.steps)
            run.run(step)
            weight = hazard_weight(data)
            spec = dataclasses.replace(
                spec,
                cost=(spec.cost[0], dataclasses.replace(spec.cost[1], stage=weight, terminal=weight), *spec.cost[2:]),
                provenance={
                    "command": command,
                    "settings": json.dumps(dataclasses.asdict(settings), sort_keys=True),
                    "losses": json.dumps({key: float(f"{value:.5g}") for key, value in figures.items()}),
                    "pyjepa": version("pyjepa-engine"),
                    "torch": torch.__version__,
                },
            )
            run.finished().export(out, spec)
            agent = Agent(Model.load(out))
            agent.configure(seed=settings.seed)
        spent = time.process_time() - began
        trials: dict[int, float] = {}
        if run is not None and settings.try_horizons:
            stage("choosing the horizon", settings.trials * len(settings.horizons))
            trials = tried(world, Model.load(out), settings, progress)
            best = max(trials, key=lambda horizon: trials[horizon])
            spec = dataclasses.replace(spec, planner=dataclasses.replace(spec.planner, horizon=best))
            run.finished().export(out, spec)
        stage("judging", episodes)
        found = judge(world, Model.load(out), episodes=episodes, progress=progress)
    finally:
        world.close()
    stage("references", 3 * episodes)
    found |= references(name, episodes=episodes, seed=JUDGED_FROM, arguments=arguments, progress=progress)
    return {
        "machine": {**describe(), "torch": torch.__version__, "gymnasium": version("gymnasium"), "threads": 1},
        "environment": name,
        "arguments": arguments or {},
        "settings": dataclasses.asdict(settings),
        "recorded": [{"mean": float(part.returns.mean()), "steps": int(len(part.first) - len(part.returns))}
                     for part in parts],
        "cpu_seconds": spent,
        "losses": figures,
        **({"tried": [{"horizon": horizon, "mean": mean} for horizon, mean in trials.items()]} if trials else {}),
        **found,
    }  # fmt: skip
