"""Is the representation collapsing? Figures to call in any training loop, and a monitor that warns or stops.

Figures take embeddings as tensors of any floating dtype and device, compute in float64 and return a Python float (or a
tensor of them); none is a loss. Rows are samples, columns dimensions. Embeddings that are not finite, or of a wrong
shape, are an `InvalidArgumentError`. A collapsed batch has figures, too: measuring it must not fail.

| figure | collapsed | healthy | source |
| --- | --- | --- | --- |
| `effective_rank` | 1 (a line), 0 (a point) | near min(N, D) | Roy and Vetterli 2007 |
| `rankme` | 1 | near min(N, D) | Garrido et al. 2023, arXiv:2210.02885 |
| `lidar` | 1 | near the number of objects less 1, or D | Thilak et al. 2024, arXiv:2312.04000 |
| `dimension_std` | 0 | the target of VICReg's hinge | Bardes et al. 2022, arXiv:2105.04906 |
| `covariance_spectrum` | a few eigenvalues hold everything | flat | Jing et al. 2022, arXiv:2110.09348 |
| `alignment`, `uniformity` | 0, 0 | 0, below -2 | Wang and Isola 2020, arXiv:2005.10242 |
| `energy_gap` | gap 0, AUROC 0.5 | above 0, near 1 | LeCun 2022, section 4.3 |
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from pyjepa.errors import InvalidArgumentError, PyjepaError

EPSILON = 1e-7
"""Added to every share before the entropy, by RankMe and LiDAR."""


class CollapseWarning(UserWarning):
    """A collapse alarm tripped; the message says which and what to look at."""


class CollapseError(PyjepaError, RuntimeError):
    """A collapse alarm tripped in a `CollapseMonitor` that stops training."""


# ---- figures --------------------------------------------------------------------------------------------------------


def effective_rank(x: Tensor) -> float:
    """``exp(entropy(p))`` with p the singular values of centred x (N, D), normalised (Roy and Vetterli 2007).

    Between 1 and min(N, D); 0 if x is constant.
    """
    x = _checked(x)
    singular = torch.linalg.svdvals(x - x.mean(dim=0))
    total = singular.sum()
    return 0.0 if total <= 1e-12 * len(x) else _exp_entropy(singular / total)


def rankme(x: Tensor) -> float:
    """``exp(-sum p log p)`` with ``p = singular values / their sum + 1e-7`` of x (N, D), not centred.

    Garrido et al. 2023, equation 1. Between 1 and min(N, D) (a little beyond, for the 1e-7); 1 for zeros.
    """
    singular = torch.linalg.svdvals(_checked(x))
    return 1.0 if singular.sum() == 0 else _exp_entropy(singular / singular.sum() + EPSILON)


def dimension_std(x: Tensor) -> Tensor:
    """The standard deviation (unbiased) of every dimension of x (N, D): float64 (D,)."""
    return _checked(x).std(dim=0)


def covariance_spectrum(x: Tensor) -> Tensor:
    """The eigenvalues of the (unbiased) covariance of x (N, D), from the largest: float64 (D,).

    Dimensional collapse shows as a tail of zeros (Jing et al. 2022).
    """
    x = _checked(x)
    values = torch.linalg.svdvals(x - x.mean(dim=0)).square() / (len(x) - 1)
    return functional.pad(values, (0, x.shape[1] - len(values)))


def alignment(x: Tensor, y: Tensor, *, alpha: float = 2.0) -> float:
    """``mean_i ||x_i - y_i||^alpha`` of positive pairs (N, D) on the unit sphere (Wang and Isola 2020); 0 is best.

    A row of zeros stays zero.
    """
    x, y = _checked(x), _checked(y, "y")
    if x.shape != y.shape:
        raise InvalidArgumentError(f"x and y must have one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
    difference = functional.normalize(x, dim=1) - functional.normalize(y, dim=1)
    return float(difference.norm(dim=1).pow(alpha).mean())


def uniformity(x: Tensor, *, t: float = 2.0) -> float:
    """``log mean_{i<j} exp(-t ||x_i - x_j||^2)`` of x (N, D) on the unit sphere (Wang and Isola 2020).

    0 where all rows point one way; -t * 2 and below for directions spread evenly. O(N^2 D).
    """
    distances = torch.pdist(functional.normalize(_checked(x), dim=1)).square()
    return float(torch.logsumexp(-t * distances, dim=0)) - math.log(len(distances))


def lidar(x: Tensor, *, delta: float = 1e-4) -> float:
    """The rank of what tells objects apart, x (objects, views, D), two or more of each (Thilak et al. 2024).

    ``exp(entropy)`` of the eigenvalues of ``S_w^-1/2 S_b S_w^-1/2``: S_b the covariance of the objects' means, S_w that
    of the views around them plus ``delta`` I. Between 1 and min(objects - 1, D); 1 where all means agree.
    """
    if x.dim() != 3 or min(x.shape[:2]) < 2 or x.shape[2] < 1:
        raise InvalidArgumentError(f"x: expected (objects >= 2, views >= 2, D >= 1), got {tuple(x.shape)}")
    if not delta > 0:
        raise InvalidArgumentError(f"delta must be > 0, got {delta}")
    x = _checked(x.flatten(0, 1)).view(x.shape)
    objects, views, d = x.shape
    means = x.mean(dim=1)
    centred = means - means.mean(dim=0)
    around = (x - means[:, None]).flatten(0, 1)
    between = centred.T @ centred / (objects - 1)
    within = around.T @ around / (objects * (views - 1)) + delta * torch.eye(d, dtype=x.dtype, device=x.device)
    # S_w = L L': L^-1 S_b L^-T has the eigenvalues of S_w^-1/2 S_b S_w^-1/2, without a matrix root.
    factor = torch.linalg.cholesky(within)
    half = torch.linalg.solve_triangular(factor, between, upper=False)
    eigenvalues = torch.linalg.eigvalsh(torch.linalg.solve_triangular(factor, half.T, upper=False)).clamp_min(0)
    return 1.0 if eigenvalues.sum() == 0 else _exp_entropy(eigenvalues / eigenvalues.sum() + EPSILON)


class EnergyGap(NamedTuple):
    """How far corrupted data lies above data."""

    gap: float
    """The difference of the mean energies."""
    standardised: float
    """The same in units of the pooled standard deviation; infinite where nothing varies but the means differ."""
    auroc: float
    """The probability that a corrupted sample has more energy than one of the data (ties count half)."""


def energy_gap(data: Tensor, corrupted: Tensor) -> EnergyGap:
    """Compare energies of data (N,) with those of corrupted data (M,): does the energy see the difference?

    A collapsed energy is flat: gap 0 and AUROC 0.5 (paper, section 4.3).
    """
    low, high = (
        _checked(values.reshape(-1, 1), name, least=1)[:, 0]
        for name, values in (("data", data), ("corrupted", corrupted))
    )
    gap = float(high.mean() - low.mean())
    pooled = math.sqrt((float(low.var(correction=0)) + float(high.var(correction=0))) / 2)
    ordered, reverse = low.sort().values, (-low).sort().values
    below = torch.searchsorted(ordered, high, right=False)  # data strictly below each corrupted sample
    above = torch.searchsorted(reverse, -high, right=False)
    auroc = float((below + len(low) - above).double().mean()) / (2 * len(low))
    return EnergyGap(gap, gap / pooled if pooled else math.copysign(math.inf, gap) if gap else 0.0, auroc)


def _checked(x: Tensor, name: str = "x", *, least: int = 2) -> Tensor:
    if x.dim() != 2 or len(x) < least or x.shape[1] < 1 or not x.is_floating_point():
        raise InvalidArgumentError(f"{name}: expected floats (N >= {least}, D >= 1), got {tuple(x.shape)} {x.dtype}")
    if not torch.isfinite(x).all():
        raise InvalidArgumentError(f"{name}: {int((~torch.isfinite(x)).sum())} of {x.numel()} values are not finite")
    return x.detach().double()


def _exp_entropy(p: Tensor) -> float:
    return float(torch.exp(-(p * torch.log(p.clamp_min(1e-300))).sum()))


# ---- alarms ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """When one of the measured figures means collapse. One that is not finite always does."""

    figure: str
    """The name of the figure that is judged."""
    says: str
    """What was found, formatted with all figures: ``"the effective rank is {effective_rank:.1f}"``."""
    means: str
    """What to conclude."""
    below: float | None = None
    above: float | None = None

    def message(self, figures: Mapping[str, float]) -> str | None:
        """The sentence to tell, or None where the alarm does not trip."""
        value = figures[self.figure]
        for side, limit in (("below", self.below), ("above", self.above)):
            if limit is None:
                continue
            healthy = value >= limit if side == "below" else value <= limit
            if not (healthy and math.isfinite(value)):
                return f"{self.says.format(**figures)} (alarm {side} {limit:g}): {self.means}"
        return None


def measure(x: Tensor, *, std: float = 0.05) -> dict[str, float]:
    """Effective rank, RankMe and standard deviations of x (N, D), by name.

    ``dead`` is the share of dimensions whose standard deviation is below ``std``.
    """
    spread = dimension_std(x)
    return {
        "effective_rank": effective_rank(x),
        "rankme": rankme(x),
        "std_min": float(spread.min()),
        "std_mean": float(spread.mean()),
        "dead": float((spread < std).double().mean()),
    }


def embedding_alarms(*, effective_rank: float = 4.0, std: float = 0.05) -> tuple[Alarm, ...]:
    """The alarms for what `measure` finds: too small an effective rank, or over half the dimensions dead."""
    return (
        Alarm(
            figure="effective_rank",
            says="the effective rank is {effective_rank:.1f}",
            means="the latent dimensions are redundant",
            below=effective_rank,
        ),
        Alarm(
            figure="dead",
            says=f"{{dead:.0%}} of the latent dimensions have a standard deviation below {std:g}",
            means="the representation is shrinking to a point",
            above=0.5,
        ),
    )


class CollapseMonitor:
    """A callback for training loops: judges figures, and warns or stops.

    ``monitor(step, embeddings)`` measures embeddings (N, D) and judges them; ``monitor.check(step, figures)`` judges
    figures measured elsewhere. Until ``grace`` steps are done nothing is judged: representations start small.
    """

    def __init__(
        self,
        alarms: Sequence[Alarm] | None = None,
        *,
        action: Literal["warn", "stop"] = "warn",
        grace: int = 0,
        std: float = 0.05,
        report: Callable[[int, str], None] | None = None,
    ) -> None:
        """``alarms``: `embedding_alarms` where None; ``std`` is that of `measure`.

        ``report`` is told step and message of every alarm, where None as a `CollapseWarning`; with ``action`` "stop"
        the first step with an alarm then raises `CollapseError`.
        """
        if action not in ("warn", "stop"):
            raise InvalidArgumentError(f"action must be 'warn' or 'stop', not {action!r}")
        self.alarms = embedding_alarms(std=std) if alarms is None else tuple(alarms)
        self.action = action
        self.grace = grace
        self.std = std
        self.report = report
        self.messages: list[str] = []
        """Every alarm that tripped, with its step."""

    def __call__(self, step: int, embeddings: Tensor) -> dict[str, float]:
        """Measure embeddings (N, D) and `check` them; returns the figures."""
        figures = measure(embeddings, std=self.std)
        self.check(step, figures)
        return figures

    def check(self, step: int, figures: Mapping[str, float], *, final: bool = False) -> list[str]:
        """Judge figures; returns the sentences of the alarms that tripped. ``final`` judges within grace, too.

        Raises `CollapseError` with ``action`` "stop".
        """
        if step <= self.grace and not final:
            return []
        tripped = [message for alarm in self.alarms if (message := alarm.message(figures)) is not None]
        for message in tripped:
            self.messages.append(f"step {step}: {message}")
            if self.report is None:
                warnings.warn(f"step {step}: {message}", CollapseWarning, stacklevel=3)
            else:
                self.report(step, message)
        if tripped and self.action == "stop":
            raise CollapseError(f"step {step}: training stopped: {'; '.join(tripped)}")
        return tripped
