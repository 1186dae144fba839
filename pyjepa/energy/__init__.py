"""Energy-based models: energies and inference, the contrastive methods, limits on z, what collapses (paper section 4).

For training: it imports torch, which nothing at run time does.
"""

from __future__ import annotations

from pyjepa.energy.architectures import AutoEncoder, Generative, JointEmbedding, Prediction
from pyjepa.energy.energies import Energy, FactorisedEnergy, LatentEnergy, NeuralEnergy, PositiveEnergy, nothing
from pyjepa.energy.inference import (
    Completed,
    Exhaustive,
    GradientDescent,
    Inferred,
    LangevinSearch,
    LatentVariableEBM,
    complete,
)
from pyjepa.energy.latents import Discrete, Latent, LowDimensional, Noisy, Sparse, Unlimited
from pyjepa.energy.methods import METHODS, Method
from pyjepa.energy.sampling import (
    ChainDivergedWarning,
    Chains,
    Gibbs,
    Hamiltonian,
    ImportanceResampling,
    Langevin,
    PersistentChains,
)

__all__ = [
    "METHODS",
    "AutoEncoder",
    "ChainDivergedWarning",
    "Chains",
    "Completed",
    "Discrete",
    "Energy",
    "Exhaustive",
    "FactorisedEnergy",
    "Generative",
    "Gibbs",
    "GradientDescent",
    "Hamiltonian",
    "ImportanceResampling",
    "Inferred",
    "JointEmbedding",
    "Langevin",
    "LangevinSearch",
    "Latent",
    "LatentEnergy",
    "LatentVariableEBM",
    "LowDimensional",
    "Method",
    "NeuralEnergy",
    "Noisy",
    "PersistentChains",
    "PositiveEnergy",
    "Prediction",
    "Sparse",
    "Unlimited",
    "complete",
    "nothing",
]
