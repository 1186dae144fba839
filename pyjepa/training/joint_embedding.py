"""Self-supervised training on images: a joint-embedding predictive architecture over two views (paper section 4.5).

``s_x = Enc(x)``, ``s_y = Enc(y)``, ``p_y = Pred(s_x, a)`` with the known transformation ``a`` from x to y; the
objective compares expanded ``p_y`` and ``s_y``, both ways round, and keeps them from collapsing. Encoder and predictor
are a world model like any other: the engine runs what is trained here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn import functional

from pyjepa.blocks import MlpBlock
from pyjepa.diagnostics import Alarm, CollapseMonitor, alignment, embedding_alarms, energy_gap, measure, uniformity
from pyjepa.errors import PyjepaError
from pyjepa.objectives import BarlowTwins, EMATarget, SIGReg, VICReg
from pyjepa.objectives.batch import standardise
from pyjepa.objectives.ema import byol, momentum_at
from pyjepa.spec import Actions, CostTerm, Level, Observation, Planner, Spec
from pyjepa.training.architecture import dense, encoder, predictor
from pyjepa.training.image_config import ImageAlarms, ImageConfig
from pyjepa.training.images import ImageSet
from pyjepa.training.run import Reporter, Run
from pyjepa.training.views import ACTIONS, two_views
from pyjepa.world_model import WorldModel

MEASURED = 2048
"""At most so many held-out images are looked at during training."""


class SplitError(PyjepaError, ValueError):
    """There are too few images for what is asked of them."""


def build_spec(config: ImageConfig, images: ImageSet) -> Spec:
    """The spec of a world model that sees images and whose actions transform them."""
    shape = images.pixels.shape[1:]
    return Spec(
        name="images",
        observation=Observation(shape=shape, dtype="uint8", scale=1 / 255),
        actions=Actions(
            low=(-2.0,) * len(ACTIONS), high=(2.0,) * len(ACTIONS), center=(0.0,) * len(ACTIONS),
            scale=(1.0,) * len(ACTIONS),
        ),
        modules={"encoder": encoder(config.architecture), "predictor": predictor(config.architecture)},
        levels=(Level(encoder="encoder", predictor="predictor"),),
        cost=(CostTerm(kind="goal_distance", metric="l2"),),
        planner=Planner(algorithm="cem", horizon=1, candidates=256, iterations=8, elites=32),
    )  # fmt: skip


class Embeddings(NamedTuple):
    """Expanded states of both views (N, E), and what the predictor makes of each from the other."""

    x: Tensor
    y: Tensor
    predicted_x: Tensor
    predicted_y: Tensor


class JointEmbedding(nn.Module):
    """World model and expander on two views at once, so that DistributedDataParallel can wrap them."""

    def __init__(self, spec: Spec, config: ImageConfig) -> None:
        super().__init__()
        self.model = WorldModel(spec)
        *hidden, out = config.architecture.expander
        self.expander = MlpBlock(dense(config.architecture, hidden, out), (self.model.latent_dim,))
        # What makes the online branch differ from its moving average (BYOL); the other objectives need no asymmetry.
        byol = config.objective.kind == "ema"
        self.head = MlpBlock(dense(config.architecture, [2 * out], out), (out,)) if byol else nn.Identity()

    def embed(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) -> expanded states (N, E)."""
        embedded: Tensor = self.expander(self.model.encode(images))
        return embedded

    def forward(self, x: Tensor, y: Tensor, actions: Tensor) -> Embeddings:
        """Views (N, C, H, W), and the actions (N, A) that lead from x to y."""
        states = self.model.encode(torch.cat([x, y]))
        there = self.model.step(states, torch.cat([actions, -actions]))
        x_, y_, predicted_y, predicted_x = self.expander(torch.cat([states, there])).chunk(4)
        return Embeddings(x_, y_, self.head(predicted_x), self.head(predicted_y))


class Objective(nn.Module):
    """The configured objective of `Embeddings`, symmetric in the views."""

    def __init__(self, config: ImageConfig, group: distributed.ProcessGroup | None) -> None:
        super().__init__()
        self.settings, self.group = config.objective, group
        settings = self.settings
        weights = {"prediction": "invariance", "variance": "variance", "covariance": "covariance"}
        self.vicreg = VICReg(**{theirs: getattr(settings, ours) for ours, theirs in weights.items()}, group=group)
        self.sigreg = SIGReg(directions=settings.directions, seed=config.seed, group=group)
        self.barlow_twins = BarlowTwins(off_diagonal=settings.off_diagonal, group=group)

    def forward(self, e: Embeddings, targets: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its terms. ``targets``: the EMA encoder's embeddings of x and y, for "ema" alone."""
        pairs = ((e.predicted_x, e.x), (e.predicted_y, e.y))
        error = torch.stack([functional.mse_loss(a, b) for a, b in pairs]).mean()
        kind, terms = self.settings.kind, {"prediction": error}
        if kind == "vicreg":
            loss = torch.stack([self.vicreg(a, b) for a, b in pairs]).mean()
        elif kind == "sigreg":
            terms["sigreg"] = torch.stack([self.sigreg(e.x), self.sigreg(e.y)]).mean()
            loss = (1 - self.settings.sigreg) * error + self.settings.sigreg * terms["sigreg"]
        elif kind == "barlow_twins":
            loss = torch.stack([self.barlow_twins(a, b) for a, b in pairs]).mean()
        elif kind == "ema":
            assert targets is not None
            guesses = (e.predicted_x, e.predicted_y)
            loss = torch.stack([self._compared(a, b) for a, b in zip(guesses, targets, strict=True)]).mean()
        else:
            loss = error
        return loss, terms

    def _compared(self, guess: Tensor, target: Tensor) -> Tensor:
        # Without a batch norm at the end of both branches (as in MoCo v3, Chen et al. 2021) all embeddings end up in
        # one direction, moving average or not: measured on 320 digits, uniformity -0.001.
        return byol(standardise(guess, group=self.group), standardise(target, group=self.group))


def collapse_alarms(alarms: ImageAlarms) -> tuple[Alarm, ...]:
    """What a `CollapseMonitor` judges `ImageRun.evaluate` by."""
    return (
        *embedding_alarms(effective_rank=alarms.effective_rank, std=alarms.std),
        Alarm(
            figure="energy_auroc",
            says="right pairs of views have less energy than wrong ones with probability {energy_auroc:.2f}",
            means="the energy is flat",
            below=alarms.auroc,
        ),
    )


class ImageRun(Run):
    """The run that trains on images. Labels are never read.

    Under ``torchrun`` (an initialised default process group) every process takes its rows of each batch; loss and
    gradients are those of one process with the whole batch, up to rounding.
    """

    config: ImageConfig
    data: ImageSet

    def __init__(self, spec: Spec, config: ImageConfig, data: ImageSet, held_out: ImageSet) -> None:
        """Raises `SplitError` if ``data`` does not fill a batch, ValueError if processes cannot share a batch."""
        self.ranks, self.rank, group = 1, 0, None
        if distributed.is_available() and distributed.is_initialized():
            group = distributed.group.WORLD
            self.ranks, self.rank = distributed.get_world_size(), distributed.get_rank()
        batch = config.optimiser.batch
        if batch % self.ranks:
            raise ValueError(f"optimiser.batch {batch} is no multiple of {self.ranks} processes")
        if len(data) < batch:
            raise SplitError(f"{data.path}: {len(data)} images to train on do not fill optimiser.batch {batch}")
        if len(held_out) < 2:
            raise SplitError(f"{data.path}: {len(held_out)} images are held out; the diagnostics need 2")
        self.device = torch.device(config.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.network = JointEmbedding(spec, config).to(self.device)
        self.model = self.network.model
        self.objective = Objective(config, group)
        self.target = EMATarget(self.network) if config.objective.kind == "ema" else None
        self._branches: nn.Module = self.network
        if self.ranks > 1:
            self._branches = nn.parallel.DistributedDataParallel(self.network)
        measured = np.linspace(0, len(held_out) - 1, min(MEASURED, len(held_out))).astype(np.int64)
        self._held_out = held_out.subset(measured)
        modules: dict[str, nn.Module] = {"network": self.network, "objective": self.objective}
        if self.target is not None:
            modules["target"] = self.target
        alarms = config.alarms
        super().__init__(
            config, data, modules, CollapseMonitor(collapse_alarms(alarms), action=alarms.action, grace=alarms.grace)
        )

    def batches(self, first: int, last: int) -> Iterator[NDArray[np.int64]]:
        """The images of each batch: every one once an epoch, but for what does not fill a batch."""
        size = self.config.optimiser.batch
        for index in range(first, last):
            epoch, position = divmod(index, len(self.data) // size)
            order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.data))
            yield order[position * size : (position + 1) * size]

    def losses(self, batch: NDArray[np.int64]) -> tuple[Tensor, dict[str, float]]:
        """Of two views of the images of a batch. Every process draws all of them and takes its own."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        mine = slice(self.rank * len(batch) // self.ranks, (self.rank + 1) * len(batch) // self.ranks)
        views = two_views(torch.from_numpy(self.data.pixels[batch]), self.config.views, generator)
        x, y, actions = (part[mine].to(self.device) for part in views)
        targets = None
        if self.target is not None:
            with torch.no_grad():
                targets = (self.target.module.embed(x), self.target.module.embed(y))
        loss, terms = self.objective(self._branches(x, y, actions), targets)
        shown = torch.stack([loss.detach(), *(term.detach() for term in terms.values())])
        if self.ranks > 1:
            distributed.all_reduce(shown)
            shown /= self.ranks
        return loss, dict(zip(("total", *terms), shown.tolist(), strict=True))

    def stepped(self) -> None:
        """Let the EMA target follow."""
        if self.target is not None:
            momentum = momentum_at(self.step, self.config.optimiser.steps, base=self.config.objective.momentum)
            self.target.update(self.network, momentum)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Figures of two views of the held-out images; see `pyjepa.diagnostics`."""
        generator = torch.Generator().manual_seed(self.config.seed)
        views = two_views(torch.from_numpy(self._held_out.pixels), self.config.views, generator)
        x, y, actions = (part.to(self.device) for part in views)
        e = self.network(x, y, actions)
        known = e.y if self.target is None else self.target.module.embed(y)
        wrong = known.roll(1, 0)
        states = self.model.encode(x)
        return {
            **measure(e.y, std=self.config.alarms.std),
            "effective_rank_states": measure(states)["effective_rank"],
            "alignment": alignment(e.predicted_y, known),
            "uniformity": uniformity(e.y),
            "energy_auroc": energy_gap(self._energy(e.predicted_y, known), self._energy(e.predicted_y, wrong)).auroc,
        }

    def _energy(self, predicted: Tensor, embedded: Tensor) -> Tensor:
        """Of each pair (N, E): what training makes small; (N,)."""
        if self.target is not None:
            return 1 - functional.cosine_similarity(standardise(predicted), standardise(embedded), dim=1)
        return (predicted - embedded).square().mean(dim=1)


def split(images: ImageSet, holdout: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Images to train on, and a share that is held out: of every class, where there are classes.

    Raises `SplitError` for a class with fewer than two images, or where one side would have no images of each class.
    """
    from sklearn.model_selection import train_test_split

    if images.labels is not None:
        counts = np.bincount(images.labels)
        if counts.min() < 2:
            name = images.classes[int(counts.argmin())]
            raise SplitError(f"{images.path}: class {name} has {counts.min()} image: two are needed, to hold one out")
    try:
        training, held_out = train_test_split(
            np.arange(len(images)), test_size=holdout, random_state=seed, stratify=images.labels
        )
    except ValueError as error:
        raise SplitError(f"{images.path}: {len(images)} images cannot be split at {holdout:g}: {error}") from error
    return images.subset(np.sort(training)), images.subset(np.sort(held_out))


def train_images(
    config: ImageConfig,
    training: ImageSet,
    held_out: ImageSet,
    *,
    run_directory: str | os.PathLike[str] | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> ImageRun:
    """Train on images and return the finished run.

    ``run_directory`` holds checkpoint, ``metrics.json`` and TensorBoard events; without one nothing is written. Only
    the first of several processes writes.

    Raises `SplitError`, `CheckpointError`, or FileExistsError if the directory holds a run and ``resume`` is false.
    """
    from pyjepa.training.checkpoint import existing

    checkpoint = None if run_directory is None else existing(Path(run_directory), resume)
    run = ImageRun(build_spec(config, training), config, training, held_out)
    if resume and checkpoint is not None:
        run.resume(checkpoint)
    run.run(checkpoint=checkpoint if run.rank == 0 else None, reporter=reporter)
    return run


def encode(model: WorldModel, images: ImageSet) -> NDArray[np.float64]:
    """The states (N, L) of all images."""
    device = next(model.parameters()).device
    with torch.no_grad():
        parts = [model.encode(part.to(device)).cpu() for part in torch.from_numpy(images.pixels).split(256)]  # type: ignore[no-untyped-call]
    return torch.cat(parts).double().numpy()


__all__ = ["ImageRun", "JointEmbedding", "build_spec", "encode", "split", "train_images"]
