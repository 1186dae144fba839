"""Fused kernels: the regularisers that keep a joint embedding from collapsing, and rollouts of latent dynamics.

One folder per op: `reference.py` states it in plain torch, `fallback.py` computes it leanly without Triton, `triton.py`
holds the kernels and their launchers, `op.py` the public function. This package knows torch and Triton only; it imports
without Triton and without a GPU driver.
"""

from __future__ import annotations

from .sigreg import sigreg, sigreg_directions, sigreg_reference
from .vicreg import CONVENTIONS, VICRegTerms, vicreg, vicreg_reference

__all__ = [
    "CONVENTIONS",
    "VICRegTerms",
    "sigreg",
    "sigreg_directions",
    "sigreg_reference",
    "vicreg",
    "vicreg_reference",
]
