"""What a representation is worth: linear probe, nearest neighbours and prediction heads on frozen features.

Beside it what it has to beat: raw pixels, their principal components, and the same network before training. Everything
that is chosen - regularisation, neighbours, components - is chosen by cross-validation within the training features.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pyjepa.errors import InvalidArgumentError
from pyjepa.training.image_config import ImageConfig
from pyjepa.training.images import ImageSet
from pyjepa.training.joint_embedding import build_spec, encode
from pyjepa.training.views import two_views
from pyjepa.world_model import WorldModel

Features = NDArray[np.float64]
Labels = NDArray[np.int64]
FOLDS = 4


def linear_probe(features: Features, labels: Labels, test: Features, test_labels: Labels) -> float:
    """The accuracy of a logistic regression on standardised features (N, D); its regularisation is cross-validated."""
    from sklearn.linear_model import LogisticRegression

    return _searched(
        LogisticRegression(max_iter=1000), {"C": np.logspace(-4, 1, 6)}, features, labels, test, test_labels
    )


def nearest_neighbours(features: Features, labels: Labels, test: Features, test_labels: Labels) -> float:
    """The accuracy of k-NN on standardised features (N, D); k and the weighting are cross-validated."""
    from sklearn.neighbors import KNeighborsClassifier

    largest = len(labels) * (FOLDS - 1) // FOLDS
    grid = {"n_neighbors": [k for k in (1, 3, 5, 10, 20) if k <= largest], "weights": ["uniform", "distance"]}
    return _searched(KNeighborsClassifier(), grid, features, labels, test, test_labels)


def principal_components(features: Features, test: Features) -> tuple[Features, Features]:
    """Both in the principal components of the first, those that hold 95 % of its variance."""
    from sklearn.decomposition import PCA

    components = PCA(n_components=0.95, svd_solver="full").fit(features)
    return components.transform(features), components.transform(test)


def _searched(
    model: Any, grid: dict[str, Any], features: Features, labels: Labels, test: Features, test_labels: Labels
) -> float:
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    least = int(np.unique(labels, return_counts=True)[1].min())
    if least < 2 or len(np.unique(labels)) < 2:
        raise InvalidArgumentError("labels: expected two classes or more, with two samples or more of each")
    pipeline = Pipeline([("scale", StandardScaler()), ("model", model)])
    folds = StratifiedKFold(min(FOLDS, least), shuffle=True, random_state=0)
    search = GridSearchCV(pipeline, {f"model__{name}": values for name, values in grid.items()}, cv=folds)
    return float(search.fit(features, labels).score(test, test_labels))


class PredictionHead(nn.Module):
    """Reads a task-relevant variable from states: a class, or numbers (paper section 4.5.2)."""

    def __init__(self, latent_dim: int, out: int, *, hidden: int = 0) -> None:
        """``out`` classes or numbers; linear without ``hidden``."""
        super().__init__()
        self.norm = nn.BatchNorm1d(latent_dim, affine=False, momentum=None)
        layers = [nn.Linear(latent_dim, hidden), nn.ReLU(), nn.Linear(hidden, out)] if hidden else []
        self.network = nn.Sequential(*layers) if layers else nn.Linear(latent_dim, out)

    def forward(self, states: Tensor) -> Tensor:
        """States (B, L) -> logits or numbers (B, out)."""
        outputs: Tensor = self.network(self.norm(states))
        return outputs

    def loss(self, states: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy for integer targets (B,), mean squared error for floats (B, out)."""
        outputs = self(states)
        if targets.is_floating_point():
            return functional.mse_loss(outputs, targets)
        return functional.cross_entropy(outputs, targets)


def fit_head(
    head: PredictionHead, states: Tensor, targets: Tensor, *, steps: int = 300, weight_decay: float = 1e-2
) -> float:
    """Train a head on frozen states (N, L), all at once; returns the last loss.

    Targets are integers (N,) or floats (N, out). Raises InvalidArgumentError where the numbers of rows differ.
    """
    if len(states) != len(targets) or len(states) < 2:
        raise InvalidArgumentError(f"states and targets: expected as many, 2 or more: {len(states)}, {len(targets)}")
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-2, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    head.train()
    for _ in range(steps):
        optimiser.zero_grad()
        loss = head.loss(states, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    head.eval()
    return float(loss.detach())


@dataclass(frozen=True)
class Worth:
    """Accuracies on the test images."""

    linear: float
    knn: float
    few: float
    """Of the linear probe with few labels a class, the mean over `REPEATS` draws."""

    def as_dict(self) -> dict[str, float]:
        """By name."""
        return asdict(self)


REPEATS = 5


def worth(features: Features, labels: Labels, test: Features, test_labels: Labels, *, few: int, seed: int) -> Worth:
    """Probe features with all labels, and with ``few`` of each class."""
    accuracies = []
    for repeat in range(REPEATS):
        order = np.random.default_rng([seed, repeat]).permutation(len(labels))
        rows = np.concatenate([order[labels[order] == label][:few] for label in np.unique(labels)])
        accuracies.append(linear_probe(features[rows], labels[rows], test, test_labels))
    return Worth(
        linear=linear_probe(features, labels, test, test_labels),
        knn=nearest_neighbours(features, labels, test, test_labels),
        few=float(np.mean(accuracies)),
    )


def compare(
    model: WorldModel, config: ImageConfig, training: ImageSet, test: ImageSet, *, few: int = 10, baselines: bool = True
) -> dict[str, Worth]:
    """What a trained model's states are worth, and (``baselines``) pixels, PCA and the network before training.

    Raises InvalidArgumentError for images without labels.
    """
    found = {"jepa": _states(model, training, test)}
    if baselines:
        pixels = tuple(part.pixels.reshape(len(part), -1) / 255.0 for part in (training, test))
        found["pixels"] = (pixels[0], pixels[1])
        found["pca"] = principal_components(*found["pixels"])
        found["random weights"] = _states(untrained(config, training), training, test)
    labels, test_labels = _labels(training), _labels(test)
    return {
        name: worth(features, labels, tested, test_labels, few=few, seed=config.seed)
        for name, (features, tested) in found.items()
    }


def head_accuracies(model: WorldModel, config: ImageConfig, training: ImageSet, test: ImageSet) -> dict[str, float]:
    """A linear head for the class, trained on states of views, read from what it never saw.

    ``encoded``: from the states of one view of each test image. ``predicted``: from the predictor's states of that
    view, made from another view and the transformation between them.
    """
    labels, test_labels = torch.from_numpy(_labels(training)), torch.from_numpy(_labels(test))
    states, _ = _viewed(model, config, training)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        head = PredictionHead(model.latent_dim, int(labels.max()) + 1)
        fit_head(head, states, labels)
    with torch.no_grad():
        return {
            name: float((head(seen).argmax(dim=1) == test_labels).double().mean())
            for name, seen in zip(("encoded", "predicted"), _viewed(model, config, test), strict=True)
        }


def untrained(config: ImageConfig, images: ImageSet) -> WorldModel:
    """The model as `ImageRun` starts with it: the same network with its random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return WorldModel(build_spec(config, images))


@torch.no_grad()
def _viewed(model: WorldModel, config: ImageConfig, images: ImageSet) -> tuple[Tensor, Tensor]:
    """States (N, L) of one view of each image, and the same predicted from another."""
    device = next(model.parameters()).device
    x, y, actions = two_views(torch.from_numpy(images.pixels), config.views, torch.Generator().manual_seed(config.seed))
    predicted = model.step(model.encode(x.to(device)), actions.to(device))
    return model.encode(y.to(device)).cpu(), predicted.cpu()


def _states(model: WorldModel, training: ImageSet, test: ImageSet) -> tuple[Features, Features]:
    return encode(model, training), encode(model, test)


def _labels(images: ImageSet) -> Labels:
    if images.labels is None:
        raise InvalidArgumentError(f"{images.path}: without labels (a folder for every class) nothing can be probed")
    return images.labels
