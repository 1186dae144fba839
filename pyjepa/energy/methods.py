"""The paper's Table 1 (section 4.3) as code: which energy, which contrast and which loss make each method.

`METHODS` names the function of `pyjepa.energy.losses` for every row; `table` prints all of it for the documents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pyjepa.energy import losses


@dataclass(frozen=True)
class Method:
    """One row."""

    name: str
    energy: str
    """What the method asks of `F(x, y)`."""
    contrast: str
    """Where ŷ comes from."""
    generators: str
    """What of `pyjepa.energy.sampling` and `pyjepa.energy.contrast` makes that ŷ."""
    formula: str
    loss: Callable[..., Tensor]
    source: str
    cost: str
    """Per datum and step; a *pass* is the energy of one (x, y), a *gradient* a pass and its way back to y. The way back
    to the parameters comes on top, for every energy in the loss."""


METHODS: dict[str, Method] = {
    "1": Method(
        "Max likelihood, discrete y",
        "y has K values",
        "exhaustive",
        "Quadrature.exhaustive",
        "F(x,y) + log Σ_y' exp(−F(x,y'))",
        losses.maximum_likelihood,
        "Bridle 1990; InfoNCE: van den Oord et al. 2018",
        "K passes",
    ),
    "2": Method(
        "Max likelihood, tractable",
        "with an integral",
        "exhaustive",
        "Quadrature.midpoint, FactorisedEnergy",
        "F(x,y) + log ∫ exp(−F(x,y'))",
        losses.integrated_likelihood,
        "LeCun et al. 2006",
        "1 + K passes, K points of quadrature",
    ),
    "3": Method(
        "Max likelihood",
        "any",
        "MC or MCMC",
        "ImportanceResampling, Langevin, Hamiltonian, Gibbs, PersistentChains",
        "F(x,y) − F(x,ŷ)",
        losses.energy_difference,
        "Tieleman 2008; Du and Mordatch 2019",
        "2 passes; chains of S steps: S gradients",
    ),
    "4": Method(
        "Contrastive divergence",
        "any",
        "truncated MCMC from y",
        "Langevin, Hamiltonian, Gibbs",
        "F(x,y) − F(x,ŷ)",
        losses.energy_difference,
        "Hinton 2002",
        "2 passes; k gradients, or with Gibbs Y·V passes a sweep over V values",
    ),
    "5": Method(
        "Pairwise hinge",
        "any",
        "most offending",
        "most_offending, most_offending_nearby",
        "[F(x,y) − F(x,ŷ) + m(y,ŷ)]₊",
        losses.pairwise_hinge,
        "Taskar et al. 2003",
        "2 passes; K passes or S gradients of search",
    ),
    "6a": Method(
        "Min-hinge",
        "positive",
        "most offending",
        "most_offending, most_offending_nearby",
        "F(x,y) + [m(y,ŷ) − F(x,ŷ)]₊",
        losses.min_hinge,
        "LeCun et al. 2006",
        "2 passes; K passes or S gradients of search",
    ),
    "6b": Method(
        "Square-hinge",
        "divergence",
        "most offending",
        "most_offending, most_offending_nearby",
        "F(x,y)² + ([m(y,ŷ) − F(x,ŷ)]₊)²",
        losses.square_hinge,
        "Hadsell et al. 2006",
        "2 passes; K passes or S gradients of search",
    ),
    "7": Method(
        "Square-exp",
        "any",
        "most offending",
        "most_offending, most_offending_nearby",
        "F(x,y)² + exp(−β F(x,ŷ))",
        losses.square_exp,
        "LeCun et al. 2006",
        "2 passes; K passes or S gradients of search",
    ),
    "8": Method(
        "Logistic",
        "any",
        "most offending",
        "most_offending, most_offending_nearby",
        "log(1 + exp(F(x,y) − F(x,ŷ)))",
        losses.logistic,
        "LeCun et al. 2006",
        "2 passes; K passes or S gradients of search",
    ),
    "9": Method(
        "GAN",
        "any",
        "ŷ = g_u(z)",
        "Generator",
        "H(F(x,y), F(x,ŷ), m(y,ŷ))",
        losses.gan,
        "Goodfellow et al. 2014; Zhao et al. 2017",
        "2 passes; the generator's pass, a gradient and its way back",
    ),
    "10": Method(
        "Denoising AE",
        "D(y, g_w(y))",
        "ŷ = N(y)",
        "corrupt",
        "D(y, g_w(ŷ))",
        losses.denoising,
        "Vincent et al. 2010",
        "1 pass",
    ),
}


def table() -> str:
    """The table in Markdown, one row a method."""
    lines = [
        "| # | method | energy | ŷ from | loss | as | made by | source | cost per step |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {key} | {m.name} | {m.energy} | {m.contrast} | `{m.formula}` | `{m.loss.__name__}` | "
        + ", ".join(f"`{name}`" for name in m.generators.split(", "))
        + f" | {m.source} | {m.cost} |"
        for key, m in METHODS.items()
    ]
    return "\n".join(lines) + "\n"
