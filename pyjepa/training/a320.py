"""A world model of a real flight: the A320 in the samples of the package ``traffic`` (`pyjepa.adapters.recordings`).

What the flight recorder saw over five seconds becomes a latent state, pitch, roll and fuel flow lead from one to the
next, five seconds at a time, and a linear head tells altitude, speed and track from any of them. Training never sees
every fourth block of 300 s; choices are made on blocks among the others (`Split`).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyjepa import agent_file, surprise
from pyjepa.adapters.recordings import CONTROLS, OBSERVED, SAMPLE, Flight
from pyjepa.agent import Model
from pyjepa.objectives.vicreg import VICReg
from pyjepa.spec import Actions, CostTerm, Layer, Level, Mlp, Module, Observation, Planner, Spec
from pyjepa.world_model import WorldModel

FloatArray = npt.NDArray[np.float64]

BLOCK = 300
"""Seconds that are held out, or not, together."""
HISTORY = 5
"""Seconds that one observation holds: rows of (9,), the newest last."""
STEP = 5
"""Seconds per predictor step; the controls enter as their mean over them."""
AHEAD = 30
"""Seconds that predictions are judged over."""
SENSORS = (*OBSERVED, *CONTROLS)
JUDGED = ("altitude", "CAS", "track")
UNITS = {"altitude": "ft", "CAS": "kt", "track": "degrees"}
TOLERANCE = {
    "altitude": 62.0,
    "CAS": 1.56,
    "groundspeed": 1.56,
    "track": 0.79,
    "drift": 1.0,
    "vertical_acceleration": 0.02,
}
"""Errors that weigh the same in training: of the first three, what a ridge regression makes over 30 s."""
IMPORTANCE = {"drift": 0.3, "vertical_acceleration": 0.1}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the model is trained; the defaults are those that validation chose (``benchmarks/results/a320.json``)."""

    latent: int = 24
    hidden: int = 32
    steps: int = 1500
    batch: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 0.3
    prediction: float = 1.0
    variance: float = 1.0
    covariance: float = 0.04
    shift: float = 1.0
    """Tracks are turned, and altitudes moved by a tenth as much, by normal noise of this many standard deviations: the
    air does not care for either as much as one flight suggests."""
    seed: int = 0


DEFAULTS = Settings()
CANDIDATES = tuple(
    Settings(weight_decay=decay, shift=shift, latent=latent)
    for decay, shift, latent in ((0.1, 1.0, 32), (0.3, 1.0, 32), (1.0, 1.0, 32), (0.3, 0.0, 32), (0.3, 1.0, 24))
)
"""What validation chooses among."""


@dataclass(frozen=True)
class Split:
    """Which seconds belong to what; ``True`` may be used."""

    training: npt.NDArray[np.bool_]
    validation: npt.NDArray[np.bool_]
    test: npt.NDArray[np.bool_]

    @staticmethod
    def of(flight: Flight) -> Split:
        """Every fourth block of 300 s is for the test; every fifth of the others, from the third on, for choices."""
        block = np.arange(len(flight)) // BLOCK
        test = block % 4 == 3
        among = block - (block + 1) // 4  # numbers the blocks that are not for the test
        validation = ~test & (among % 5 == 2)
        return Split(~test & ~validation, validation, test)


def windows(usable: npt.NDArray[np.bool_], *, ahead: int = AHEAD, within: int | None = None) -> npt.NDArray[np.int64]:
    """Seconds t with the history before them and ``ahead`` seconds after them in usable rows, (N,).

    ``within``: all of it in one block of so many seconds.
    """
    first = np.arange(HISTORY - 1, len(usable) - ahead)
    rows = first[:, None] + np.arange(1 - HISTORY, ahead + 1)
    fits = usable[rows].all(axis=1)
    if within is not None:
        fits &= rows[:, 0] // within == rows[:, -1] // within
    found: npt.NDArray[np.int64] = first[fits]
    return found


def judged_windows(usable: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Windows within one block of 300 s, which errors are taken over."""
    return windows(usable, within=BLOCK)


def observations(flight: Flight, seconds: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """What the agent sees at each of these seconds: (N, 5, 9), the newest row last."""
    rows = np.concatenate([flight.observed, flight.controls], axis=1)
    seen: npt.NDArray[np.float32] = rows[seconds[:, None] + np.arange(1 - HISTORY, 1)].astype(np.float32)
    return seen


def actions(flight: Flight, seconds: npt.NDArray[np.int64], steps: int) -> npt.NDArray[np.float32]:
    """The mean controls (N, steps, 3) over each 5 s from these seconds on."""
    rows = seconds[:, None] + 1 + np.arange(steps * STEP)
    held = flight.controls[rows].reshape(len(seconds), steps, STEP, len(CONTROLS))
    mean: npt.NDArray[np.float32] = held.mean(axis=2).astype(np.float32)
    return mean


def persistence(flight: Flight, seconds: npt.NDArray[np.int64]) -> FloatArray:
    """Nothing changes: (N, 6)."""
    return flight.observed[seconds]


class Ridge:
    """Ridge regression from five seconds of everything and 30 s of controls to the change over 30 s.

    The controls enter relative to the present ones; ``penalty`` is on standardised features.
    """

    PENALTIES = (1.0, 10.0, 100.0, 1000.0)

    def __init__(self, flight: Flight, seconds: npt.NDArray[np.int64], penalty: float) -> None:
        features = self._features(flight, seconds)
        self._mean, self._std = features.mean(axis=0), features.std(axis=0) + 1e-9
        x = np.c_[(features - self._mean) / self._std, np.ones(len(features))]
        change = flight.observed[seconds + AHEAD] - flight.observed[seconds]
        weights = penalty * np.eye(x.shape[1])
        weights[-1, -1] = 0.0
        self._solution = np.linalg.solve(x.T @ x + weights, x.T @ change)

    def predict(self, flight: Flight, seconds: npt.NDArray[np.int64]) -> FloatArray:
        """What will be observed 30 s on: (N, 6)."""
        x = (self._features(flight, seconds) - self._mean) / self._std
        predicted: FloatArray = flight.observed[seconds] + np.c_[x, np.ones(len(x))] @ self._solution
        return predicted

    @staticmethod
    def _features(flight: Flight, seconds: npt.NDArray[np.int64]) -> FloatArray:
        everything = np.concatenate([flight.observed, flight.controls], axis=1)
        now = everything[seconds]
        track = OBSERVED.index("track")
        parts = [np.delete(now, track, axis=1)]
        parts += [everything[seconds - k] - now for k in range(1, HISTORY)]
        parts += [flight.controls[seconds + k] - flight.controls[seconds] for k in range(1, AHEAD + 1)]
        return np.concatenate(parts, axis=1)


def errors(predicted: npt.ArrayLike, flight: Flight, seconds: npt.NDArray[np.int64]) -> dict[str, float]:
    """Root mean squared errors of what was predicted (N, 6) for 30 s after these seconds, by name."""
    difference = np.asarray(predicted, np.float64) - flight.observed[seconds + AHEAD]
    rms = np.sqrt(np.square(difference).mean(axis=0))
    return {name: float(rms[OBSERVED.index(name)]) for name in JUDGED}


@dataclass(frozen=True)
class Scale:
    """What numbers are normalised with: the newest row by its own spread, older rows by that of their difference."""

    mean: FloatArray
    std: FloatArray
    difference: FloatArray
    """(4, 9): of rows 1 to 4 seconds old from the newest."""
    centre: FloatArray
    spread: FloatArray
    """Of the controls."""

    @staticmethod
    def of(flight: Flight, seconds: npt.NDArray[np.int64]) -> Scale:
        """From the rows that may be trained on."""
        rows = observations(flight, seconds).astype(np.float64)
        now = rows[:, -1]
        difference = np.stack([(now - rows[:, -1 - k]).std(axis=0) for k in range(1, HISTORY)])
        held = actions(flight, seconds, 1)[:, 0].astype(np.float64)
        return Scale(now.mean(axis=0), now.std(axis=0), difference, held.mean(axis=0), held.std(axis=0))

    def matrix(self) -> tuple[FloatArray, FloatArray]:
        """(M, c) with ``M @ observation.ravel() + c`` the normalised numbers (45,)."""
        n = len(SENSORS)
        matrix, offset = np.zeros((HISTORY * n, HISTORY * n)), np.zeros(HISTORY * n)
        newest = (HISTORY - 1) * n
        for i in range(n):
            matrix[i, newest + i] = 1 / self.std[i]
            offset[i] = -self.mean[i] / self.std[i]
            for k in range(1, HISTORY):
                matrix[k * n + i, newest + i] = 1 / self.difference[k - 1, i]
                matrix[k * n + i, newest - k * n + i] = -1 / self.difference[k - 1, i]
        return matrix, offset


def build_spec(settings: Settings, scale: Scale, low: FloatArray, high: FloatArray) -> Spec:
    """The model on normalised numbers; `exported` turns it into one that reads the sensors."""
    return Spec(
        name="a320",
        observation=Observation(shape=(HISTORY * len(SENSORS),)),
        actions=Actions(
            low=_floats(low), high=_floats(high), center=_floats(scale.centre), scale=_floats(scale.spread)
        ),
        modules={
            "encoder": Module(inputs=("observation",), blocks=(Mlp(layers=(Layer(out=settings.latent),)),)),
            "predictor": Module(
                inputs=("state", "action"),
                blocks=(Mlp(layers=(Layer(out=settings.hidden, activation="relu"), Layer(out=settings.latent))),),
                residual=True,
            ),
            "instruments": Module(inputs=("state",), blocks=(Mlp(layers=(Layer(out=len(OBSERVED)),)),)),
        },
        levels=(Level(encoder="encoder", predictor="predictor", action_block=STEP, hold=True),),
        cost=(CostTerm(kind="box", name="envelope", module="instruments"),),
        planner=Planner(horizon=AHEAD),
    )


class Training:
    """One run: the model on normalised numbers."""

    def __init__(self, flight: Flight, usable: npt.NDArray[np.bool_], settings: Settings = DEFAULTS) -> None:
        """``usable``: the rows to train on."""
        self.flight, self.settings = flight, settings
        self.seconds = windows(usable)
        if len(self.seconds) < settings.batch:
            raise ValueError(
                f"{len(self.seconds)} windows of {HISTORY + AHEAD} s do not fill a batch of {settings.batch}"
            )
        self.scale = Scale.of(flight, self.seconds)
        held = actions(flight, self.seconds, AHEAD // STEP).reshape(-1, len(CONTROLS))
        self.low, self.high = held.min(axis=0), held.max(axis=0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.model = WorldModel(build_spec(settings, self.scale, self.low, self.high))
        last = self.model.get_submodule("predictor.0.linear1")
        for parameter in last.parameters():
            nn.init.zeros_(parameter)  # nothing changes, to begin with
        matrix, offset = self.scale.matrix()
        count = len(OBSERVED)
        all_seconds = np.arange(HISTORY - 1, len(flight))
        flat = observations(flight, all_seconds).astype(np.float64).reshape(len(all_seconds), -1)
        self._inputs = torch.from_numpy((flat @ matrix.T + offset).astype(np.float32))
        self._targets = self._inputs[:, :count]
        spread = self.scale.std[:count]
        self._weights = torch.tensor([s / TOLERANCE[n] for n, s in zip(OBSERVED, spread, strict=True)]).float()
        self._importance = torch.tensor([IMPORTANCE.get(name, 1.0) for name in OBSERVED])

    def run(self, progress: Callable[[int, dict[str, float]], None] | None = None) -> None:
        """All steps; ``progress`` is told how many are done, and the losses of the last."""
        settings = self.settings
        rng = np.random.default_rng(settings.seed)
        generator = torch.Generator().manual_seed(settings.seed)
        optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        for step in range(settings.steps):
            rate = min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate * rate
            losses = self._losses(rng.choice(self.seconds, settings.batch), generator)
            optimiser.zero_grad()
            losses["total"].backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
            optimiser.step()
            if progress is not None:
                progress(step + 1, {name: float(value.detach()) for name, value in losses.items()})

    def _losses(self, seconds: npt.NDArray[np.int64], generator: torch.Generator) -> dict[str, Tensor]:
        settings, steps = self.settings, AHEAD // STEP
        rows = torch.from_numpy(seconds[:, None] - (HISTORY - 1) + STEP * np.arange(steps + 1))
        inputs, targets = self._inputs[rows].clone(), self._targets[rows].clone()
        if settings.shift:
            for name, amount in (("track", settings.shift), ("altitude", settings.shift / 10)):
                moved = amount * torch.randn(len(seconds), 1, generator=generator)
                inputs[..., OBSERVED.index(name)] += moved
                targets[..., OBSERVED.index(name)] += moved
        seen = self.model.encode(inputs)
        held = torch.from_numpy(actions(self.flight, seconds, steps))
        imagined = torch.cat([seen[:, :1], self.model.rollout(seen[:, 0], held)], dim=1)
        regularised = (0, steps // 2, steps)
        spread = [VICReg().terms(seen[:, t], seen[:, t]) for t in regularised]
        losses = {
            "prediction": functional.mse_loss(imagined[:, 1:], seen[:, 1:]),
            "variance": torch.stack([terms.variance for terms in spread]).mean() / 2,
            "covariance": torch.stack([terms.covariance for terms in spread]).mean() / 2,
            "instruments": self._instruments(imagined[:, 1:], targets[:, 1:]) + self._instruments(seen, targets),
        }
        weights = (settings.prediction, settings.variance, settings.covariance, 1.0)
        losses["total"] = torch.stack([w * term for w, term in zip(weights, losses.values(), strict=True)]).sum()
        return losses

    def _instruments(self, states: Tensor, targets: Tensor) -> Tensor:
        """How far the head is off in units of the tolerance, as a smooth absolute value."""
        told = self.model.head("instruments", states.flatten(0, 1))[0].reshape(targets.shape)
        error = (told - targets) * self._weights
        weighted = functional.smooth_l1_loss(error, torch.zeros_like(error), reduction="none") * self._importance
        return weighted.mean()

    def exported(self) -> tuple[Spec, dict[str, npt.NDArray[np.float32]]]:
        """Spec and tensors of an agent that reads sensors as they are, (5, 9), and tells instruments in their units.

        Its cost: how far altitude and speed are from the goal's, and leaving what the flight's instruments showed.
        """
        tensors = {name: value.detach().double().numpy() for name, value in self.model.state_dict().items()}
        matrix, offset = self.scale.matrix()
        weight, bias = tensors["encoder.0.linear0.weight"], tensors["encoder.0.linear0.bias"]
        tensors["encoder.0.linear0.bias"] = bias + weight @ offset
        tensors["encoder.0.linear0.weight"] = weight @ matrix
        count = len(OBSERVED)
        weight, bias = tensors["instruments.0.linear0.weight"], tensors["instruments.0.linear0.bias"]
        std = self.scale.std[:count]
        weight, bias = std[:, None] * weight, std * bias + self.scale.mean[:count]
        wanted = [OBSERVED.index(name) for name in TARGET_UNITS]
        units = np.array(list(TARGET_UNITS.values()))
        tensors |= {
            "instruments.0.linear0.weight": weight,
            "instruments.0.linear0.bias": bias,
            "target.0.linear0.weight": weight[wanted] / units[:, None],
            "target.0.linear0.bias": bias[wanted] / units,
        }
        seen = self.flight.observed[self.seconds]
        inner = self.model.spec
        spec = dataclasses.replace(
            inner,
            observation=Observation(shape=(HISTORY, len(SENSORS))),
            modules={
                **inner.modules,
                "target": Module(inputs=("state",), blocks=(Mlp(layers=(Layer(out=len(wanted)),)),)),
            },
            cost=(
                CostTerm(kind="goal_distance", module="target", name="target"),
                CostTerm(kind="box", module="instruments", name="envelope", low=_floats(seen.min(axis=0)),
                         high=_floats(seen.max(axis=0))),
                CostTerm(kind="action_change", stage=0.05),
            ),
            planner=Planner(
                algorithm="cem", horizon=60, candidates=256, iterations=15, elites=32, std=0.5, knots=4,
                interpolation="linear",
            ),
        )  # fmt: skip
        return spec, {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}


def predicted(model: Model, flight: Flight, seconds: npt.NDArray[np.int64], *, ahead: int = AHEAD) -> FloatArray:
    """What the engine's rollout in latent space says the instruments will show ``ahead`` seconds on: (N, 6)."""
    state = model.encode(observations(flight, seconds))
    held = actions(flight, seconds, ahead // STEP)
    box = model.spec.actions
    for step in range(ahead // STEP):
        action = (held[:, step] - np.asarray(box.center, np.float32)) / np.asarray(box.scale, np.float32)
        state = model.forward("predictor", np.concatenate([state, action], axis=1))
    return model.forward("instruments", state).astype(np.float64)


def _floats(values: FloatArray) -> tuple[float, ...]:
    return tuple(float(np.float32(value)) for value in values)


def mean_of(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def train_agent(
    flight: Flight,
    settings: Settings,
    *,
    usable: npt.NDArray[np.bool_],
    progress: Callable[[int, dict[str, float]], None] | None = None,
) -> tuple[Spec, dict[str, npt.NDArray[np.float32]]]:
    """A trained agent: its spec and tensors."""
    run = Training(flight, usable, settings)
    run.run(progress)
    return run.exported()


def calibrated(
    spec: Spec, tensors: Mapping[str, npt.NDArray[np.float32]], flight: Flight, usable: npt.NDArray[np.bool_],
    *, steps: int = 1, quantile: float = 0.999,
) -> Spec:  # fmt: skip
    """``spec`` with what surprise is usual in rows that training did not see."""
    model = Model.from_bytes(agent_file.to_bytes(spec, tensors))
    seconds = windows(usable, ahead=steps * STEP)
    usual = surprise.differences(
        model, observations(flight, seconds), actions(flight, seconds, steps),
        observations(flight, seconds + steps * STEP), steps,
    )  # fmt: skip
    found = surprise.calibrate(usual, steps=steps, quantile=quantile)
    return dataclasses.replace(spec, provenance={**spec.provenance, surprise.KEY: found.to_json()})


def provenance(settings: Settings, command: str) -> dict[str, str]:
    """Where the weights come from."""
    return {
        "command": command,
        "data": f"{SAMPLE} of traffic",
        "settings": json.dumps(dataclasses.asdict(settings), sort_keys=True),
        "pyjepa": version("pyjepa-engine"),
        "torch": torch.__version__,
    }


TARGET_UNITS = {"altitude": 100.0, "CAS": 1.0}
"""Being 100 ft off costs as much as being 1 kt off."""
