"""SIGReg (LeJEPA, Balestriero and LeCun 2025), fused: no N x K x T array, forward or backward."""

from __future__ import annotations

from .op import sigreg
from .reference import sigreg_directions, sigreg_reference

__all__ = ["sigreg", "sigreg_directions", "sigreg_reference"]
