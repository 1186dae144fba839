"""What every op decides alike: dtypes, back end, and where a Triton launch runs (a GPU, or its interpreter)."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from typing import Literal

import torch

Backend = Literal["auto", "torch", "triton"]
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HAS_TRITON = importlib.util.find_spec("triton") is not None


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Arithmetic dtype for an input dtype: fp64 stays, everything else computes in fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def use_triton(backend: str, x: torch.Tensor) -> bool:
    """Choose Triton for `backend` ("auto": on a GPU, when Triton is installed, for anything but fp64).

    Raises RuntimeError where `backend="triton"` cannot run, ValueError for an unknown name.
    """
    if backend == "auto":
        return x.is_cuda and HAS_TRITON and x.dtype != torch.float64
    if backend == "torch":
        return False
    if backend != "triton":
        raise ValueError(f"backend must be 'auto', 'torch' or 'triton', not {backend!r}")
    if not HAS_TRITON:
        raise RuntimeError("backend='triton' needs the package triton, which is not installed")
    if not x.is_cuda and not interpreted():
        raise RuntimeError(f"backend='triton' on {x.device}: Triton needs a GPU, or TRITON_INTERPRET=1 for a CPU check")
    return True


def interpreted() -> bool:
    """Whether TRITON_INTERPRET=1 is set, as Triton itself reads it when a kernel is defined."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "y", "yes")


def device_of(x: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Make x's GPU the current one for a launch: Triton launches on the current device, not on the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def dot_precision(x: torch.Tensor) -> str:
    """Precision of fp32 dots: three TF32 passes on NVIDIA (fp32 accuracy on the matrix unit), IEEE elsewhere.

    "ieee" would leave NVIDIA's matrix units idle, and "tf32x3" does not compile for AMD.
    """
    return "tf32x3" if x.is_cuda and torch.version.hip is None else "ieee"


def refuse_second_derivative() -> None:
    """Raise RuntimeError in a backward that is itself recorded: its result would pass for a constant."""
    if torch.is_grad_enabled():
        raise RuntimeError("this loss has no second derivative: call backward without create_graph=True")
