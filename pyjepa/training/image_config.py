"""Configuration of self-supervised training on images: TOML files, checked as `pyjepa.training.config` does."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pyjepa.training.config import Fraction, Positive, RunConfig, Section, Sizes, Weight

ObjectiveName = Literal["vicreg", "sigreg", "barlow_twins", "ema", "none"]


class ImageData(Section):
    """What is read of a folder (the digits are what they are), and what is kept for evaluation."""

    size: Annotated[int, Field(ge=4, le=1024)] = 64
    """Of the square images, in pixels."""
    channels: Literal[1, 3] = 3
    holdout: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """The share of the images (of each class, where there are classes) that training never sees."""


class ImageArchitecture(Sizes):
    """The sizes of encoder, predictor and expander."""

    norm: Literal["none", "layer"] = "layer"
    latent: Positive = 128
    predictor_hidden: list[Positive] = Field(default_factory=lambda: [256], min_length=1)
    expander: list[Positive] = Field(default_factory=lambda: [256, 256], min_length=1)
    """Layers between a state and what the objective sees; the last one is linear."""


class Views(Section):
    """How two views of an image differ: each range is symmetric about no change, drawn uniformly."""

    shift: Weight = 4.0
    """In pixels, to either side and up or down."""
    rotation: Weight = 10.0
    """In degrees."""
    scale: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    """Of width and height, each on its own."""
    shear: Weight = 0.1
    elastic: Weight = 1.0
    """The standard deviation of displacements on a 3x3 grid, in pixels, interpolated in between."""
    flip: Fraction = 0.5
    """The probability of a horizontal flip, the same for both views."""
    brightness: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3
    """Of the gain, which each channel has with a share of `colour` of its own."""
    colour: Fraction = 0.5
    noise: Weight = 0.02
    """The standard deviation of what is added to each pixel, in units of the brightest."""
    padding: Literal["zeros", "border", "reflection"] = "reflection"
    """What lies beyond the edge."""


class ImageObjective(Section):
    """What keeps the embeddings from collapsing, and how strongly (`pyjepa.objectives`)."""

    kind: ObjectiveName = "vicreg"
    prediction: Weight = 25.0
    """VICReg's weight of the prediction error."""
    variance: Weight = 25.0
    covariance: Weight = 1.0
    sigreg: Fraction = 0.02
    """The share of SIGReg, lambda of LeJEPA; the prediction error has the rest."""
    directions: Positive = 256
    """Random ones that SIGReg looks along, drawn anew at each step."""
    off_diagonal: Weight = 0.0051
    """Of Barlow Twins."""
    momentum: Fraction = 0.99
    """With which an EMA target begins to follow; 1 at the end."""


class ImageAlarms(Section):
    """When embeddings count as collapsed; checked at every evaluation after ``grace`` steps."""

    grace: Annotated[int, Field(ge=0)] = 200
    action: Literal["warn", "stop"] = "warn"
    effective_rank: Weight = 4.0
    std: Weight = 0.01
    """A dimension counts as dead below this; the alarm trips when over half are."""
    auroc: Fraction = 0.6
    """The probability that a wrong pair of views has more energy than a right one is below this."""


class ImageConfig(RunConfig):
    """Everything that decides how a training run on images goes."""

    device: Literal["cpu", "cuda"] = "cpu"
    data: ImageData = ImageData()
    architecture: ImageArchitecture = ImageArchitecture()
    views: Views = Views()
    objective: ImageObjective = ImageObjective()
    alarms: ImageAlarms = ImageAlarms()

    @model_validator(mode="after")
    def _fits_together(self) -> ImageConfig:
        self.architecture.check(self.data.size)
        return self
