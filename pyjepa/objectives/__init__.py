"""Objectives that train a joint-embedding predictive architecture without collapse (paper section 4.5)."""

from __future__ import annotations

from pyjepa.objectives.barlow_twins import BarlowTwins
from pyjepa.objectives.ema import EMATarget
from pyjepa.objectives.sigreg import SIGReg
from pyjepa.objectives.vicreg import VICReg

__all__ = ["BarlowTwins", "EMATarget", "SIGReg", "VICReg"]
