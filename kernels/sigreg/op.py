"""The public SIGReg op: checks, dispatch, `torch.library` registration, the distributed form."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..runtime import FLOATS, compute_dtype, refuse_second_derivative, use_triton
from . import fallback
from .fallback import Knots
from .reference import KNOTS, Variant, sigreg_directions

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from ..runtime import Backend


@torch.library.custom_op("pyjepa::sigreg", mutates_args=())
def _sigreg_op(
    z: Tensor, directions: Tensor, first: float, step: float, number: int, scale: float, triton: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(statistic, projections (N, K), means (T, 2, K))."""
    knots = Knots(first, step, number)
    with torch.autocast(z.device.type, enabled=False):
        if triton:
            from . import triton as kernels

            return kernels.forward(z, directions, knots, scale)
        h, total = fallback.sums(z, directions, knots)
        means = total.div_(z.shape[0])
        return fallback.statistic(means, knots, scale), h, means


@_sigreg_op.register_fake
def _(
    z: Tensor, directions: Tensor, first: float, step: float, number: int, scale: float, triton: bool
) -> tuple[Tensor, Tensor, Tensor]:
    k = directions.shape[1]
    return directions.new_empty(()), directions.new_empty(z.shape[0], k), directions.new_empty(number, 2, k)


@torch.library.custom_op("pyjepa::sigreg_backward", mutates_args=())
def _sigreg_backward_op(
    g: Tensor,
    h: Tensor,
    means: Tensor,
    directions: Tensor,
    first: float,
    step: float,
    number: int,
    scale: float,
    triton: bool,
    dtype: torch.dtype,
) -> Tensor:
    knots = Knots(first, step, number)
    with torch.autocast(h.device.type, enabled=False):
        if triton:
            from . import triton as kernels

            return kernels.backward(g, h, means, directions, knots, scale, dtype)
        return fallback.backward(g, h, means, directions, knots, scale, h.shape[0]).to(dtype)


@_sigreg_backward_op.register_fake
def _(
    g: Tensor,
    h: Tensor,
    means: Tensor,
    directions: Tensor,
    first: float,
    step: float,
    number: int,
    scale: float,
    triton: bool,
    dtype: torch.dtype,
) -> Tensor:
    return h.new_empty(h.shape[0], directions.shape[0], dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    z, directions, *ctx.options = inputs
    ctx.dtype = z.dtype
    ctx.save_for_backward(directions, output[1], output[2])
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, g: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    directions, h, means = ctx.saved_tensors
    if g is None or not ctx.needs_input_grad[0]:
        return (None,) * 7
    return _sigreg_backward_op(g, h, means, directions, *ctx.options, ctx.dtype), *(None,) * 6


_sigreg_op.register_autograd(_backward, setup_context=_setup_context)


class _Functional(torch.autograd.Function):
    """The operator under functorch transforms, which registered operators do not support: vmap is refused clearly."""

    @staticmethod
    def forward(
        z: Tensor, directions: Tensor, first: float, step: float, number: int, scale: float, triton: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        out: tuple[Tensor, Tensor, Tensor] = _sigreg_op(z, directions, first, step, number, scale, triton)
        return out

    setup_context = staticmethod(_setup_context)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        return _backward(ctx, g)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        raise NotImplementedError(
            "pyjepa.kernels.sigreg under torch.vmap: its statistic couples all rows; call it in a loop over the batch"
        )


@torch.library.custom_op("pyjepa::sigreg_directions", mutates_args=())
def _directions_op(z: Tensor, number: int, seed: int) -> Tensor:
    """Directions for z, as an operator because a generator cannot be traced."""
    return sigreg_directions(z.shape[1], number, seed=seed, device=z.device, dtype=compute_dtype(z.dtype))


@_directions_op.register_fake
def _(z: Tensor, number: int, seed: int) -> Tensor:
    return z.new_empty(z.shape[1], number, dtype=compute_dtype(z.dtype))


class _Gathered(torch.autograd.Function):
    """SIGReg over the rows of all ranks: the sums are added up, each rank projects only its own rows."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, directions: Tensor, knots: Knots, by_rows: bool, group: ProcessGroup) -> Tensor:
        from torch import distributed

        with torch.autocast(z.device.type, enabled=False):
            h, total = fallback.sums(z, directions, knots)
            rows = torch.tensor([z.shape[0]], dtype=torch.int64, device=z.device)
            distributed.all_reduce(rows, group=group)
            distributed.all_reduce(total, group=group)
            ctx.rows = int(rows.item())
            ctx.knots, ctx.dtype, ctx.ranks = knots, z.dtype, distributed.get_world_size(group)
            ctx.scale = float(ctx.rows) if by_rows else 1.0
            means = total.div_(ctx.rows)
            ctx.save_for_backward(directions, h, means)
            return fallback.statistic(means, knots, ctx.scale)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        directions, h, means = ctx.saved_tensors
        with torch.autocast(h.device.type, enabled=False):
            # DDP averages over ranks, and the gradient of the joint loss is their sum.
            grad = fallback.backward(g * ctx.ranks, h, means, directions, ctx.knots, ctx.scale, ctx.rows)
        return grad.to(ctx.dtype), None, None, None, None


def knots_for(variant: str, count: int, t_max: float) -> Knots:
    """Fold the variant's grid of `count` knots onto t >= 0. Raises ValueError."""
    if variant == "lejepa":
        return Knots(0.0, t_max / (count - 1), count)
    if variant == "bcs":
        step = 2.0 * t_max / (count - 1)
        return Knots(step / 2 if count % 2 == 0 else 0.0, step, (count + 1) // 2)
    raise ValueError(f"variant must be one of {', '.join(KNOTS)}, not {variant!r}")


def sigreg(
    z: Tensor,
    *,
    directions: int | Tensor = 1024,
    knots: int | None = None,
    t_max: float = 3.0,
    seed: int = 0,
    variant: Variant = "lejepa",
    group: ProcessGroup | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Return the SIGReg statistic of embeddings z, a scalar: how far their projections are from a standard normal.

    LeJEPA (Balestriero, LeCun 2025): project on K random unit directions, h = z A, and integrate, by the trapezoid rule
    over t, the window exp(-t^2 / 2) times |mean_i exp(i t h_i) - exp(-t^2 / 2)|^2; average over directions.

    z: (N, D), N >= 1, any strides, fp16/bf16/fp32 (arithmetic in fp32, autocast or not) or fp64.
    directions: how many to draw from `seed` (draw others each step by passing the step), or a (D, K) tensor.
    knots: T >= 2 points of the integral; 17 on [0, t_max] for "lejepa", 10 on [-t_max, t_max] for "bcs".
    variant: "lejepa" multiplies by N; "bcs" (EB-JEPA) does not.
    group: a torch.distributed group: the statistic of all ranks' rows, on every rank; give every rank one seed.
        Gradients are scaled by the number of ranks, so that DDP's average is that of one process holding all rows.
    backend: "auto" (Triton on a GPU, torch elsewhere), "torch" or "triton".

    Differentiable once, with respect to z. No buffer beyond the N x K projections: nothing of N x K x T elements.
    Raises ValueError (shapes, K < 1, T < 2, t_max), TypeError (dtypes), RuntimeError (backend unavailable).
    """
    if not isinstance(z, Tensor):
        raise TypeError(f"z must be a torch.Tensor, not {type(z).__name__}")
    if z.dtype not in FLOATS or z.layout != torch.strided:
        raise TypeError(f"z must be a dense fp16, bf16, fp32 or fp64 tensor, not {z.dtype}, {z.layout}")
    if z.dim() != 2 or z.shape[0] < 1 or z.shape[1] < 1:
        raise ValueError(f"z must be (N, D) with N >= 1 and D >= 1, not {tuple(z.shape)}")
    if variant not in KNOTS:
        raise ValueError(f"variant must be one of {', '.join(KNOTS)}, not {variant!r}")
    count = KNOTS[variant] if knots is None else knots
    if count < 2:
        raise ValueError(f"knots must be T >= 2 points of the integral, not {count}")
    if not (math.isfinite(t_max) and t_max > 0.0):
        raise ValueError(f"t_max must be finite and > 0, not {t_max}")
    dtype = compute_dtype(z.dtype)
    if isinstance(directions, Tensor):
        if directions.dim() != 2 or directions.shape[0] != z.shape[1] or directions.shape[1] < 1:
            raise ValueError(f"directions must be ({z.shape[1]}, K) with K >= 1, not {tuple(directions.shape)}")
        if directions.device != z.device:
            raise ValueError(f"directions must be on {z.device}, not {directions.device}")
        if not directions.dtype.is_floating_point:
            raise TypeError(f"directions must be floating point, not {directions.dtype}")
        if directions.requires_grad:
            raise ValueError("directions must not require a gradient: sigreg has none for them")
        a = directions.to(dtype)
    else:
        if directions < 1:
            raise ValueError(f"directions must be K >= 1, not {directions}")
        a = _directions_op(z.detach(), directions, seed)
    grid = knots_for(variant, count, t_max)
    if group is not None:
        value: Tensor = _Gathered.apply(z, a, grid, variant == "lejepa", group)  # type: ignore[no-untyped-call]
        return value
    scale = float(z.shape[0]) if variant == "lejepa" else 1.0
    triton = use_triton(backend, z)
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        transformed: Tensor = _Functional.apply(z, a, *grid, scale, triton)[0]  # type: ignore[no-untyped-call]
        return transformed
    result: Tensor = _sigreg_op(z, a, *grid, scale, triton)[0]
    return result
