"""Importing stable-worldmodel beside a CPU build of torch.

torchvision's compiled operators may not load there, and it registers replacements for two of them at import: they are
declared first. Nothing that is used here calls them.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from typing import Any

from pyjepa.adapters import needed

_KEPT: list[Any] = []


def import_stable_worldmodel(module: str = "stable_worldmodel") -> Any:
    """The package, or a module of it. Raises `MissingPackageError` where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if "torchvision" not in sys.modules and not _KEPT:
            import torch.library

            library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
            _KEPT.append(library)  # or its operators go with it
            for operator in ("nms", "qnms"):
                with contextlib.suppress(RuntimeError):
                    library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return needed(module, "stable-worldmodel", "stable-worldmodel's worlds and solvers")
