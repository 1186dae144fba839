"""Surprise: how far what is seen lies from what was predicted, and when that is an alarm.

The energy of a world model (paper section 3.1.2 and 4) is low where an observation fits what came before. Here it is
the distance between the predicted and the observed latent, in units of how far the two usually lie apart. What is usual
is measured on data that training did not see, and goes into the agent file, under ``surprise`` in its provenance.
NumPy and the engine only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyjepa.agent import Model
from pyjepa.errors import InvalidArgumentError, UnsupportedError
from pyjepa.spec import Spec

FloatArray = npt.NDArray[np.float32]
KEY = "surprise"


@dataclass(frozen=True)
class Calibration:
    """What is usual for a model."""

    steps: int
    """Predictor steps between the observations that are compared."""
    whitening: npt.NDArray[np.float64]
    """(L, L): takes usual differences to uncorrelated numbers of variance 1."""
    quantile: float
    """The share of usual energies that lie below the threshold."""
    threshold: float

    def to_json(self) -> str:
        """As the agent file carries it, to six digits."""
        rows = [[float(f"{value:.6g}") for value in row] for row in self.whitening]
        return json.dumps(
            {"steps": self.steps, "quantile": self.quantile, "threshold": self.threshold, "whitening": rows},
            separators=(",", ":"),
        )

    @staticmethod
    def of(spec: Spec, latent: int) -> Calibration:
        """From an agent file's spec. Raises `UnsupportedError` where it has none, `InvalidArgumentError` if damaged."""
        if KEY not in spec.provenance:
            raise UnsupportedError("this agent file has no calibrated surprise (provenance has no 'surprise')")
        try:
            data = json.loads(spec.provenance[KEY])
            found = Calibration(
                int(data["steps"]),
                np.array(data["whitening"], np.float64),
                float(data["quantile"]),
                float(data["threshold"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidArgumentError(f"provenance 'surprise': damaged ({type(error).__name__}: {error})") from error
        if found.steps < 1 or found.whitening.shape != (latent, latent) or not np.isfinite(found.whitening).all():
            raise InvalidArgumentError(
                f"provenance 'surprise': expected steps >= 1 and a finite whitening of shape {(latent, latent)}, "
                f"got {found.steps} and {found.whitening.shape}"
            )
        return found


class Surprise:
    """Tells the surprise of a model, calibrated by its agent file.

    Shapes: ``obs...`` the observation's shape, ``A'`` what the predictor reads per step (A where the level holds its
    action, else action_block * A), ``S`` predictor steps, which is `steps`.
    """

    def __init__(self, model: Model, calibration: Calibration | None = None) -> None:
        """``calibration`` instead of the file's. Raises as `Calibration.of`."""
        self._model = model
        self.calibration = Calibration.of(model.spec, model.latent_dim) if calibration is None else calibration

    @property
    def steps(self) -> int:
        """S."""
        return self.calibration.steps

    @property
    def threshold(self) -> float:
        """Energies above it are an alarm: so much is usual in one of 1 / (1 - quantile) cases."""
        return self.calibration.threshold

    def energy(self, before: npt.ArrayLike, actions: npt.ArrayLike, after: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """The energies (N,) of observations ``after`` (N, obs...), S steps after ``before`` and the actions (N, S, A')
        between them, in the environment's units. Usually about 1.
        """
        difference = differences(self._model, before, actions, after, self.steps)
        energy: npt.NDArray[np.float64] = np.square(difference @ self.calibration.whitening.T).mean(axis=1)
        return energy


def differences(
    model: Model, before: npt.ArrayLike, actions: npt.ArrayLike, after: npt.ArrayLike, steps: int
) -> npt.NDArray[np.float64]:
    """Observed less predicted latents (N, L); see `Surprise.energy`."""
    plans = np.asarray(actions, np.float32)
    count = len(np.asarray(before))
    level, box = model.spec.levels[0], model.spec.actions
    if level.predictor is None or box.kind != "box":
        raise UnsupportedError("surprise needs a predictor, and continuous actions")
    repeats = 1 if level.hold else level.action_block
    expected = (count, steps, repeats * len(box.low))
    if plans.shape != expected:
        raise InvalidArgumentError(f"actions have shape {plans.shape}, expected {expected}")
    centre = np.tile(np.asarray(box.center, np.float32), repeats)
    scale = np.tile(np.asarray(box.scale, np.float32), repeats)
    state = model.encode(before)
    inputs = model.spec.modules[level.predictor].inputs
    for step in range(steps):
        parts = {"state": state, "action": (plans[:, step] - centre) / scale}
        state = model.forward(level.predictor, np.concatenate([parts[name] for name in inputs], axis=1))
    return model.encode(after).astype(np.float64) - state


def calibrate(
    differences: npt.NDArray[np.float64], *, steps: int, quantile: float, shrinkage: float = 1e-6
) -> Calibration:
    """What is usual, from differences (N, L) on data that training did not see.

    ``shrinkage``: how much of the covariance's mean variance is added to all directions: little, for a fault shows in
    those that are predicted best. Raises `InvalidArgumentError` for too few, or a quantile outside of (0, 1).
    """
    if not 0.0 < quantile < 1.0:
        raise InvalidArgumentError(f"quantile must be between 0 and 1, got {quantile}")
    count, latent = differences.shape
    if count <= latent:
        raise InvalidArgumentError(f"{count} differences do not determine a covariance of {latent} numbers")
    second = differences.T @ differences / count
    variance = np.trace(second) / latent
    covariance = (1 - shrinkage) * second + shrinkage * variance * np.eye(latent)
    whitening = np.linalg.inv(np.linalg.cholesky(covariance))
    energies = np.square(differences @ whitening.T).mean(axis=1)
    return Calibration(steps, whitening, quantile, float(np.quantile(energies, quantile)))
