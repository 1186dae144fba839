"""The public VICReg op: checks, dispatch, `torch.library` registration.

`pyjepa::vicreg` is one custom operator with a fake and an autograd formula, so that it traces under `torch.compile`,
passes `torch.library.opcheck` and ignores autocast; its backward is one operator too. Both take (B, N, D): B = 1 for a
plain batch, B = T for per-time-step sequences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..runtime import FLOATS, compute_dtype, use_triton
from . import fallback
from .reference import CONVENTIONS, Convention, VarianceAxis, VICRegTerms

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from ..runtime import Backend


def check_embeddings(x: Tensor, y: Tensor) -> None:
    """Raise TypeError or ValueError, naming shapes, dtypes and devices, unless x and y can be compared row by row."""
    for name, z in (("x", x), ("y", y)):
        if not isinstance(z, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, not {type(z).__name__}")
        if z.dtype not in FLOATS:
            raise TypeError(f"{name} must be fp16, bf16, fp32 or fp64, not {z.dtype}")
        if z.layout != torch.strided:
            raise TypeError(f"{name} must be a dense (strided) tensor, not {z.layout}")
        if z.dim() not in (2, 3):
            raise ValueError(f"{name} must be (N, D) or (T, N, D), not {tuple(z.shape)}")
    if x.shape != y.shape:
        raise ValueError(f"x and y must have one shape, not {tuple(x.shape)} and {tuple(y.shape)}")
    if x.dtype != y.dtype:
        raise TypeError(f"x and y must have one dtype, not {x.dtype} and {y.dtype}")
    if x.device != y.device:
        raise ValueError(f"x and y must be on one device, not {x.device} and {y.device}")
    if x.shape[-1] < 1:
        raise ValueError(f"x and y need at least one feature (D >= 1), not shape {tuple(x.shape)}")
    if x.dim() == 3 and x.shape[0] < 1:
        raise ValueError(f"x and y need at least one time step (T >= 1), not shape {tuple(x.shape)}")


def resolve(
    convention: str, weights: tuple[float, float, float] | None, gamma: float, eps: float, features: int
) -> tuple[tuple[float, float, float], float, float]:
    """Return (weights, variance factor, covariance factor) for a convention, checked. Raises ValueError, TypeError."""
    if convention not in CONVENTIONS:
        raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}, not {convention!r}")
    scales = CONVENTIONS[convention]
    w = scales.weights if weights is None else weights
    if len(w) != 3:
        raise ValueError(f"weights must be three numbers (invariance, variance, covariance), not {w!r}")
    w0, w1, w2 = float(w[0]), float(w[1]), float(w[2])
    for name, value in (("weights", w0), ("weights", w1), ("weights", w2), ("gamma", gamma), ("eps", eps)):
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, not {value}")
    if eps < 0.0:
        raise ValueError(f"eps must be >= 0 (it is added to a variance), not {eps}")
    return (w0, w1, w2), scales.variance, scales.covariance_for(features)


# (loss, invariance, variance, covariance) and what backward needs: mean, var, matrix, streamed - see fallback.forward.
_State = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _outside_autocast(x: Tensor) -> torch.autocast:
    return torch.autocast(x.device.type, enabled=False)


@torch.library.custom_op("pyjepa::vicreg", mutates_args=())
def _vicreg_op(
    x: Tensor, y: Tensor, weights: Sequence[float], scales: Sequence[float], gamma: float, eps: float, triton: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    if triton:
        from . import triton as kernels

        return kernels.forward(x, y, weights, scales, gamma, eps)
    return _vicreg_arithmetic(x, y, weights, scales, gamma, eps)


def _vicreg_arithmetic(
    x: Tensor, y: Tensor, weights: Sequence[float], scales: Sequence[float], gamma: float, eps: float
) -> _State:
    if torch.is_autocast_enabled(x.device.type):
        with _outside_autocast(x):
            return _scaled(x, y, weights, scales, gamma, eps)
    return _scaled(x, y, weights, scales, gamma, eps)


def _scaled(
    x: Tensor, y: Tensor, weights: Sequence[float], scales: Sequence[float], gamma: float, eps: float
) -> _State:
    inv, var, cov, *state = fallback.forward(x, y, gamma, eps)
    var, cov = var * scales[0], cov * scales[1]
    loss = weights[0] * inv + weights[1] * var + weights[2] * cov
    dtype = compute_dtype(x.dtype)
    scalars = [torch.scalar_tensor(value, dtype=dtype, device=x.device) for value in (loss, inv, var, cov)]
    return (*scalars, *state)  # type: ignore[return-value]  # the two star-lists have four tensors each


@_vicreg_op.register_fake
def _(
    x: Tensor, y: Tensor, weights: Sequence[float], scales: Sequence[float], gamma: float, eps: float, triton: bool
) -> _State:
    batch, n, d = x.shape
    dtype = compute_dtype(x.dtype)
    m = torch.sym_min(n, d)  # type: ignore[no-untyped-call]
    scalar = [x.new_empty((), dtype=dtype) for _ in range(4)]
    columns = [x.new_empty((2, batch, d), dtype=dtype) for _ in range(2)]
    matrix = x.new_empty((2, batch, m, m), dtype=dtype)
    return (*scalar, *columns, matrix, x.new_empty((2, batch), dtype=torch.bool))  # type: ignore[return-value]


def _gradients(
    grads: tuple[Tensor | None, ...],
    x: Tensor,
    y: Tensor,
    mean: Tensor,
    var: Tensor,
    matrix: Tensor,
    streamed: Tensor,
    weights: Sequence[float],
    scales: Sequence[float],
    gamma: float,
    eps: float,
    triton: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    if triton:
        from . import triton as kernels

        return kernels.backward(grads, x, y, mean, var, matrix, streamed, weights, scales, gamma, eps, needs)
    loss, inv, variance, cov = (0.0 if g is None else g.item() for g in grads)
    coefficients = (
        inv + loss * weights[0],
        (variance + loss * weights[1]) * scales[0],
        (cov + loss * weights[2]) * scales[1],
    )
    want = (needs[0], needs[1])
    if torch.is_autocast_enabled(x.device.type):
        with _outside_autocast(x):
            return fallback.backward(x, y, mean, var, matrix, streamed, coefficients, gamma, eps, want)
    return fallback.backward(x, y, mean, var, matrix, streamed, coefficients, gamma, eps, want)


@torch.library.custom_op("pyjepa::vicreg_backward", mutates_args=())
def _vicreg_backward_op(
    g_loss: Tensor | None,
    g_invariance: Tensor | None,
    g_variance: Tensor | None,
    g_covariance: Tensor | None,
    x: Tensor,
    y: Tensor,
    mean: Tensor,
    var: Tensor,
    matrix: Tensor,
    streamed: Tensor,
    weights: Sequence[float],
    scales: Sequence[float],
    gamma: float,
    eps: float,
    triton: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    grads = (g_loss, g_invariance, g_variance, g_covariance)
    return _gradients(grads, x, y, mean, var, matrix, streamed, weights, scales, gamma, eps, triton, needs)


@_vicreg_backward_op.register_fake
def _(
    g_loss: Tensor | None,
    g_invariance: Tensor | None,
    g_variance: Tensor | None,
    g_covariance: Tensor | None,
    x: Tensor,
    y: Tensor,
    mean: Tensor,
    var: Tensor,
    matrix: Tensor,
    streamed: Tensor,
    weights: Sequence[float],
    scales: Sequence[float],
    gamma: float,
    eps: float,
    triton: bool,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    return tuple(z.new_empty(z.shape if need else (0,)) for z, need in zip((x, y), needs, strict=True))  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: _State) -> None:
    x, y, *ctx.options = inputs
    ctx.save_for_backward(x, y, *output[4:])
    ctx.mark_non_differentiable(*output[4:])
    # Unused outputs stay None: autograd would otherwise fill a zero gradient as large as the matrix.
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    x, y, *state = ctx.saved_tensors
    needs = [bool(need) for need in ctx.needs_input_grad[:2]]
    gx, gy = _vicreg_backward_op(*grads[:4], x, y, *state, *ctx.options, needs)
    return gx if needs[0] else None, gy if needs[1] else None, None, None, None, None, None


_vicreg_op.register_autograd(_backward, setup_context=_setup_context)


def _no_vmap(info: Any, in_dims: Any, *args: Any) -> Any:
    raise NotImplementedError(
        "pyjepa.kernels.vicreg under torch.vmap: its statistics couple all rows, so it takes its batch itself - "
        "pass (T, N, D) for one loss per step, averaged over T, or call it in a loop"
    )


_vicreg_op.register_vmap(_no_vmap)
_vicreg_backward_op.register_vmap(_no_vmap)


def _eager_gradients(
    ctx: Any, tensors: tuple[Tensor, ...], grads: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    x, y, mean, var, matrix, streamed = tensors
    weights, scales, gamma, eps = ctx.options
    needs = list(ctx.needs_input_grad[:2])
    xs, ys = (x, y) if x.dim() == 3 else (x[None], y[None])
    state = (xs, ys, mean, var, matrix, streamed)
    if torch.is_grad_enabled():
        # create_graph: the registered operator raises if anything differentiates its result, where a plain tensor
        # would pass for a constant.
        gx, gy = _vicreg_backward_op(*grads, *state, list(weights), list(scales), gamma, eps, False, needs)
    else:
        gx, gy = _gradients(grads, *state, weights, scales, gamma, eps, False, needs)
    return gx.view(x.shape) if needs[0] else None, gy.view(y.shape) if needs[1] else None, None, None, None, None


class _Eager(torch.autograd.Function):
    """The operator's twin for plain eager CPU tensors: the same arithmetic without the dispatcher.

    Forward and backward at (64, 128) on one thread: 366 us through the registered operator, 263 us here, and 338 us in
    the `setup_context` form that functorch asks for.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, *options: Any) -> tuple[Tensor, ...]:
        batched = (x, y) if x.dim() == 3 else (x[None], y[None])
        out = _vicreg_arithmetic(*batched, *options)
        ctx.options = options
        ctx.save_for_backward(x, y, *out[4:])
        ctx.set_materialize_grads(False)
        return out[:4]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return _eager_gradients(ctx, ctx.saved_tensors, grads)


class _Functional(torch.autograd.Function):
    """`_Eager` under functorch transforms, which registered operators do not support: grad works, vmap is refused."""

    @staticmethod
    def forward(
        x: Tensor, y: Tensor, weights: Sequence[float], scales: Sequence[float], gamma: float, eps: float
    ) -> tuple[Tensor, ...]:
        batched = (x, y) if x.dim() == 3 else (x[None], y[None])
        return _vicreg_arithmetic(*batched, weights, scales, gamma, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, y, *ctx.options = inputs
        ctx.save_for_backward(x, y, *output[4:])
        ctx.mark_non_differentiable(*output[4:])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _eager_gradients(ctx, ctx.saved_tensors, grads[:4])

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _no_vmap(info, in_dims, *args)


def _plain(x: Tensor) -> bool:
    """Whether x is an ordinary eager CPU tensor, not one being traced."""
    return x.device.type == "cpu" and type(x) in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling()


def _time_hinge(z: Tensor, gamma: float, eps: float) -> Tensor:
    """v over time: mean over (n, d) of relu(gamma - std over T). z: (T, N, D); plain autograd, O(T N D)."""
    values = z.to(compute_dtype(z.dtype))
    centred = values - values.mean(0)
    var = centred.square().sum(0) / (z.shape[0] - 1)
    # A zero under the root (eps = 0, constant in time) has an infinite slope; its gradient is stated as zero.
    std = torch.where(var + eps > 0, var + eps, 1.0).sqrt() * (var + eps > 0)
    return torch.relu(gamma - std).mean()


def vicreg(
    x: Tensor,
    y: Tensor,
    *,
    weights: tuple[float, float, float] | None = None,
    convention: Convention = "vicreg",
    gamma: float = 1.0,
    eps: float = 1e-4,
    variance_over: VarianceAxis = "batch",
    group: ProcessGroup | None = None,
    backend: Backend = "auto",
) -> VICRegTerms:
    """Return the VICReg loss of two batches of embeddings and its three terms (Bardes et al. 2022, equations 1-6).

    x, y: (N, D), or (T, N, D) for sequences: statistics per time step over its N rows, terms averaged over T. N >= 2,
    D >= 1, any strides, fp16/bf16/fp32 (arithmetic in fp32, autocast or not) or fp64.

    weights: (invariance, variance, covariance); the convention's own when None.
    convention: how the terms are scaled, see `CONVENTIONS` - "vicreg" (official, lightly), "vicregl", "solo"
        (solo-learn), "eb" (EB-JEPA).
    gamma, eps: the hinge relu(gamma - sqrt(var + eps)).
    variance_over: "batch" (the paper), or "time": the standard deviation of each (n, d) over the T >= 2 steps of a
        (T, N, D) input, which keeps a sequence from standing still.
    group: a torch.distributed group (`torch.distributed.group.WORLD`): statistics over all ranks' rows, whose numbers
        may differ. Loss and terms are then those of all rows on every rank, and gradients are scaled by the number of
        ranks, so that the average DDP takes over ranks is exactly the gradient of one process holding all rows.
    backend: "auto" (Triton on a GPU, torch elsewhere), "torch" or "triton".

    Returns `VICRegTerms(loss, invariance, variance, covariance)`, all differentiable once. The covariance runs through
    the smaller of the N x N and D x D matrices; results are the same bits from run to run. A collapsed batch (zero
    variance) has a finite loss and a zero variance gradient; NaN in gives NaN out.

    Raises ValueError (shapes, N < 2, D = 0, devices, options), TypeError (dtypes), RuntimeError (backend unavailable).
    """
    check_embeddings(x, y)
    w, variance_scale, covariance_scale = resolve(convention, weights, gamma, eps, x.shape[-1])
    if variance_over not in ("batch", "time"):
        raise ValueError(f"variance_over must be 'batch' or 'time', not {variance_over!r}")
    if variance_over == "time" and (x.dim() != 3 or x.shape[0] < 2):
        raise ValueError(f"variance_over='time' needs (T, N, D) with T >= 2, not {tuple(x.shape)}")
    if group is None and x.shape[-2] < 2:
        raise ValueError(f"VICReg needs N >= 2 rows for a variance, not shape {tuple(x.shape)}")
    if group is not None:
        if variance_over == "time":
            raise ValueError("variance_over='time' is local to each sequence: it takes no group")
        from .distributed import vicreg_distributed

        return vicreg_distributed(x, y, w, (variance_scale, covariance_scale), gamma, eps, group)
    triton = use_triton(backend, x)

    def terms(weights: tuple[float, float, float], scales: tuple[float, float]) -> VICRegTerms:
        if not triton and _plain(x):
            if torch._C._are_functorch_transforms_active():
                parts = _Functional.apply(x, y, weights, scales, gamma, eps)  # type: ignore[no-untyped-call]
                return VICRegTerms(*parts[:4])
            return VICRegTerms(*_Eager.apply(x, y, weights, scales, gamma, eps))  # type: ignore[no-untyped-call]
        xs, ys = (x, y) if x.dim() == 3 else (x[None], y[None])
        return VICRegTerms(*_vicreg_op(xs, ys, list(weights), list(scales), gamma, eps, triton)[:4])

    if variance_over == "batch":
        return terms(w, (variance_scale, covariance_scale))
    loss, invariance, _, covariance = terms((w[0], 0.0, w[2]), (0.0, covariance_scale))
    variance = variance_scale * (_time_hinge(x, gamma, eps) + _time_hinge(y, gamma, eps))
    return VICRegTerms(loss + w[1] * variance, invariance, variance, covariance)
