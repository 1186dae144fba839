"""VICReg (Bardes, Ponce, LeCun, ICLR 2022), fused: one op forward, one op backward."""

from __future__ import annotations

from .op import vicreg
from .reference import CONVENTIONS, VICRegTerms, vicreg_reference

__all__ = ["CONVENTIONS", "VICRegTerms", "vicreg", "vicreg_reference"]
