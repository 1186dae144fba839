"""Training configuration: TOML files, checked field by field."""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, overload

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pyjepa.errors import PyjepaError

Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0.0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class ConfigError(PyjepaError, ValueError):
    """The configuration is wrong; the message names every field that is."""


class Section(BaseModel):
    """A table of the file: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Data(Section):
    """What is collected where no data set is given, and what training reads of it."""

    episodes: Positive = 20_000
    steps: Positive = 12
    """Actions per episode, each held for ``action_block`` environment steps."""
    action_block: Positive = 4
    holdout: Positive = 512
    """The last episodes of the data set, kept for the diagnostics."""
    window: Annotated[int, Field(ge=2)] = 6
    """Predictor steps per training clip."""


class Sizes(Section):
    """The sizes of encoder and predictor (the block kinds follow from the observation)."""

    channels: Annotated[list[Positive], Field(min_length=1)] = [32, 32, 64]
    kernels: Annotated[list[Positive], Field(min_length=1)] = [8, 3, 3]
    strides: Annotated[list[Positive], Field(min_length=1)] = [4, 2, 2]
    paddings: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [2, 1, 1]
    encoder_hidden: Positive = 256
    latent: Positive = 48
    predictor_hidden: Annotated[list[Positive], Field(min_length=1)] = [128, 128]
    activation: Literal["relu", "gelu", "silu", "mish", "tanh"] = "relu"
    norm: Literal["none", "layer"] = "none"
    """Of the hidden dense layers."""

    @model_validator(mode="after")
    def _one_of_each(self) -> Sizes:
        if not len(self.channels) == len(self.kernels) == len(self.strides) == len(self.paddings):
            raise ValueError("channels, kernels, strides and paddings must have one entry per layer")
        return self

    def check(self, size: int) -> None:
        """Raises ValueError where a kernel is larger than what pictures of ``size`` px become in the layers before."""
        for i, (kernel, stride, padding) in enumerate(zip(self.kernels, self.strides, self.paddings, strict=True)):
            if size + 2 * padding < kernel:
                raise ValueError(f"architecture.kernels[{i}]: {kernel} px on a picture of {size} px")
            size = (size + 2 * padding - kernel) // stride + 1


class Transformer(Section):
    """A predictor that looks back, as LeWM's does (`pyjepa.spec.AdalnTransformer`)."""

    window: Positive = 3
    """States that it looks back on, the present one among them."""
    depth: Positive = 2
    width: Positive = 64
    heads: Positive = 4
    head_dim: Positive = 16
    hidden: Positive = 128
    """Of the MLP in every layer."""
    action_hidden: Positive = 64
    """Of the network that makes an action the condition of every layer."""


class Architecture(Sizes):
    """The sizes of a world model."""

    predictors: Annotated[int, Field(ge=1, le=64)] = 1
    """Networks of the predictor: an ensemble, whose disagreement tells where the model does not know."""
    transformer: Transformer | None = None
    """What predicts, where given; ``predictor_hidden`` are then the hidden layers of the projector after it."""

    @model_validator(mode="after")
    def _one_transformer(self) -> Architecture:
        if self.transformer is not None and self.predictors > 1:
            raise ValueError(f"predictors: {self.predictors} transformers; an ensemble has to be of MLPs")
        return self


class Objective(Section):
    """The weights of the loss (`pyjepa.objectives`)."""

    prediction: Weight = 20.0
    """Of the mean squared error of the multi-step prediction, over all steps of a clip."""
    variance: Weight = 10.0
    covariance: Weight = 1.0
    regularised_steps: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0, 3, 6]
    """The steps of a clip at which VICReg's variance and covariance are taken over the batch."""
    temporal_variance: Weight = 10.0
    temporal_variance_target: Weight = 0.5
    inverse_dynamics: Weight = 2.0
    temporal_similarity: Weight = 0.1
    sigreg: Weight = 0.0
    """Of SIGReg on the encoded states, over the batch at ``regularised_steps``; 0 computes none."""
    directions: Positive = 256
    """Random ones that SIGReg looks along, drawn anew at each step."""


class Optimiser(Section):
    """AdamW, with a linear warm-up and a cosine decay to zero."""

    steps: Positive = 4000
    batch: Annotated[int, Field(ge=2)] = 128
    learning_rate: Annotated[float, Field(gt=0.0)] = 1.5e-3
    weight_decay: Weight = 1e-4
    warmup: Annotated[int, Field(ge=0)] = 100
    clip: Weight = 0.0
    """The largest gradient norm; 0 does not clip."""


class Alarms(Section):
    """When a representation counts as collapsed. Each is checked at every evaluation after ``grace`` steps."""

    grace: Annotated[int, Field(ge=0)] = 500
    action: Literal["warn", "stop"] = "warn"
    """What an alarm does: tell, or end the run with an error (the checkpoint is written first)."""
    probe_r2: Annotated[float, Field(le=1.0)] = 0.5
    """The linear position probe explains less than this share of the variance."""
    effective_rank: Weight = 4.0
    """The effective rank of the latents is below this."""
    std: Weight = 0.05
    """A dimension's standard deviation counts as dead below this; the alarm trips when over half are dead."""
    inverse_dynamics: Weight = 0.7
    """Inverse dynamics scores more than this share of what a blind guess scores."""


class Planning(Section):
    """The planner defaults and the cost written into the agent file (`pyjepa.spec.Planner`).

    They do not influence training: a finished run, resumed with others, writes its file anew.
    """

    horizon: Positive = 80
    candidates: Positive = 128
    iterations: Positive = 6
    elites: Positive = 16
    std: Annotated[float, Field(gt=0.0)] = 0.8
    min_std: Weight = 0.05
    momentum: Fraction = 0.0
    metric: Literal["l2", "squared_l2"] = "l2"
    terminal: Weight = 1.0
    """Weight of the last step's goal distance; the steps before it weigh 1."""


class Log(Section):
    """How often (in training steps) things are written."""

    every: Positive = 20
    evaluate_every: Positive = 250
    checkpoint_every: Positive = 250


class RunConfig(Section):
    """What every training run is told."""

    seed: Annotated[int, Field(ge=0)] = 0
    threads: Positive = 1
    """Of torch. Two are 1.4 times as fast as one on an idle machine, and far slower than one beside other load."""
    optimiser: Optimiser = Optimiser()
    log: Log = Log()

    def digest(self) -> str:
        """The SHA-256 of the values, whatever file they came from."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()


class Config(RunConfig):
    """Everything that decides how a world model's training goes."""

    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the encoder during training (autocast); the weights stay float32."""
    data: Data = Data()
    architecture: Architecture = Architecture()
    objective: Objective = Objective()
    alarms: Alarms = Alarms()
    planning: Planning = Planning()

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        if self.data.window > self.data.steps:
            raise ValueError(f"data.window {self.data.window} is longer than data.steps {self.data.steps}")
        if max(self.objective.regularised_steps) > self.data.window:
            raise ValueError(f"objective.regularised_steps: the last step of a clip is {self.data.window}")
        if self.data.episodes - self.data.holdout < self.optimiser.batch:
            raise ValueError("data.episodes less data.holdout do not fill optimiser.batch")
        if self.planning.horizon % self.data.action_block:
            raise ValueError(f"planning.horizon: no multiple of data.action_block {self.data.action_block}")
        if self.planning.elites > self.planning.candidates:
            raise ValueError(f"planning.elites {self.planning.elites} exceed planning.candidates")
        transformer = self.architecture.transformer
        if transformer is not None and transformer.window > self.data.window:
            raise ValueError(
                f"architecture.transformer.window {transformer.window} is longer than data.window {self.data.window}: "
                "clips would never fill it"
            )
        self.architecture.check(64)
        return self


WORLD_MODELS = ("two_rooms", "lewm")
"""The configurations shipped for `Config`."""


def default_config(name: str = "two_rooms") -> Path:
    """The path of a configuration shipped with the package."""
    return Path(str(files("pyjepa.training") / "configs" / f"{name}.toml"))


def find_config(given: str | os.PathLike[str]) -> Path:
    """The path of a file, or of the shipped configuration (`WORLD_MODELS`) of that name, which goes first.

    Raises `ConfigError` where there is neither.
    """
    if str(given) in WORLD_MODELS:
        return default_config(str(given))
    path = Path(given)
    if not path.is_file():
        raise ConfigError(f"{given}: neither a file nor a shipped configuration ({', '.join(WORLD_MODELS)})")
    return path


AnyConfig = TypeVar("AnyConfig", bound=RunConfig)


@overload
def load_config(path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None) -> Config: ...
@overload
def load_config(
    path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None, *, schema: type[AnyConfig]
) -> AnyConfig: ...
def load_config(
    path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None, *, schema: type[RunConfig] = Config
) -> RunConfig:
    """Read a TOML file. ``overrides`` replaces values by dotted name (``{"optimiser.steps": 10}``).

    Raises `ConfigError` naming every field that is unknown, missing or of a wrong type.
    """
    source = Path(path)
    try:
        values = tomllib.loads(source.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: no valid TOML: {error}") from error
    for name, value in (overrides or {}).items():
        *tables, key = name.split(".")
        table = values
        for part in tables:
            table = table.setdefault(part, {})
        table[key] = value
    return validate(values, str(source), schema=schema)


@overload
def validate(values: Mapping[str, Any], where: str) -> Config: ...
@overload
def validate(values: Mapping[str, Any], where: str, *, schema: type[AnyConfig]) -> AnyConfig: ...
def validate(values: Mapping[str, Any], where: str, *, schema: type[RunConfig] = Config) -> RunConfig:
    """A configuration from plain values; ``where`` names their source in error messages."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            field = ".".join(map(str, problem["loc"])) or "the file"
            message = "unknown key" if problem["type"] == "extra_forbidden" else problem["msg"]
            lines.append(f"{where}: {field}: {message} (given: {problem['input']!r})"[:400])
        raise ConfigError("; ".join(lines)) from error
