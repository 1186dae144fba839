"""Losses side by side: time and peak memory of the published formulas and of `pyjepa.kernels`.

Every provider computes the whole loss, fp32: VICReg of x, y (N, D) or (T, N, D), the mean over steps; SIGReg of z
(N, D) in K directions. Times are interleaved - one run of each provider in turn - so that a busy machine slows all of
them; memory is the peak resident size of a process of its own (the allocator's peak on a GPU) minus what the inputs and
gradients take. "official", "lightly" and "solo-learn" are the formulas as those
libraries state them, restated in plain torch and tested equal; "lightly (package)" runs lightly itself where it is
installed; "plain torch" is the statement of SIGReg with its N x K x T array.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pyjepa.kernels import sigreg, sigreg_directions, sigreg_reference, vicreg

Loss = Callable[..., Tensor]
Row = dict[str, Any]
"""One provider at one shape: ``provider``, ``mode``, the shape's symbols, ``repeats``, ``median_s`` and ``p99_s`` in
seconds, ``memory_bytes`` (None where only the time was asked for)."""
MODES = ("forward", "forward+backward")


@dataclass(frozen=True)
class Family:
    """A loss and those it is compared with."""

    name: str
    symbols: tuple[str, ...]
    """What a shape may consist of: one word a form, one letter a number."""
    grid: tuple[tuple[int, ...], ...]
    providers: Callable[[], dict[str, Loss]]
    """By name; the first is this package's."""
    inputs: Callable[[tuple[int, ...], str], tuple[Tensor, ...]]
    """The arguments for a shape on a device; those that require a gradient get one."""

    def describe(self, shape: tuple[int, ...]) -> dict[str, int]:
        """``{"n": 256, "d": 2048}``. Raises ValueError for a shape this loss does not have."""
        for letters in self.symbols:
            if len(letters) == len(shape):
                return dict(zip(letters, shape, strict=True))
        raise ValueError(f"{self.name}: no shape of {len(shape)} numbers")


def official(x: Tensor, y: Tensor) -> Tensor:
    """The formula of facebookresearch/vicreg: the full matrix, its off-diagonal elements taken by reshaping."""
    invariance = functional.mse_loss(x, y)
    n, d = x.shape
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    variance = sum(functional.relu(1 - torch.sqrt(z.var(dim=0) + 1e-4)).mean() / 2 for z in (x, y))
    covariance = torch.zeros((), device=x.device)
    for z in (x, y):
        matrix = (z.T @ z) / (n - 1)
        off = matrix.flatten()[:-1].view(d - 1, d + 1)[:, 1:].flatten()
        covariance = covariance + off.pow_(2).sum().div(d)
    return 25.0 * invariance + 25.0 * variance + covariance


def lightly(x: Tensor, y: Tensor) -> Tensor:
    """The formula of lightly's VICRegLoss: an outer-product einsum, squares summed row by row."""
    n, d = x.shape
    invariance = functional.mse_loss(x, y)
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    variance = sum(0.5 * functional.relu(1.0 - torch.sqrt(z.var(dim=0) + 1e-4)).mean() for z in (x, y))
    covariance = torch.zeros((), device=x.device)
    for z in (x, y):
        matrix = torch.einsum("bc,bd->cd", z, z) / (n - 1)
        off = ~torch.eye(d, device=x.device, dtype=torch.bool)
        covariance = covariance + (matrix * off).pow(2).sum(-1).div(d).sum()
    return 25.0 * invariance + 25.0 * variance + covariance


def solo_learn(x: Tensor, y: Tensor) -> Tensor:
    """The formula of solo-learn: off-diagonal elements by boolean indexing, the variance not halved.

    Weighted so that it equals the official loss (12.5 for the variance).
    """
    n, d = x.shape
    invariance = functional.mse_loss(x, y)
    variance = sum(functional.relu(1 - torch.sqrt(z.var(dim=0) + 1e-4)).mean() for z in (x, y))
    diagonal = torch.eye(d, device=x.device)
    covariance = torch.zeros((), device=x.device)
    for z in (x, y):
        z = z - z.mean(dim=0)
        matrix = (z.T @ z) / (n - 1)
        covariance = covariance + matrix[~diagonal.bool()].pow_(2).sum() / d
    return 25.0 * invariance + 12.5 * variance + covariance


def _each_step(loss: Loss) -> Loss:
    """A loss of (N, D) as one of (T, N, D) too: the mean over steps."""

    def loss_of_steps(x: Tensor, y: Tensor) -> Tensor:
        if x.dim() == 2:
            return loss(x, y)
        return torch.stack([loss(a, b) for a, b in zip(x, y, strict=True)]).mean()

    return loss_of_steps


def _vicreg_providers() -> dict[str, Loss]:
    published: dict[str, Loss] = {"official": official, "lightly": lightly, "solo-learn": solo_learn}
    package = importlib.util.find_spec("lightly")
    if package is not None and package.submodule_search_locations:
        file = Path(package.submodule_search_locations[0], "loss", "vicreg_loss.py")
        published["lightly (package)"] = _module(file).VICRegLoss()
    return {"pyjepa": lambda x, y: vicreg(x, y).loss} | {name: _each_step(loss) for name, loss in published.items()}


def _module(path: Path) -> Any:
    """The module in a file, without its package: that of lightly's losses wants torchvision, its VICReg does not."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _vicreg_inputs(shape: tuple[int, ...], device: str) -> tuple[Tensor, ...]:
    x, y = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    return x.clone().requires_grad_(), y.clone().requires_grad_()


def _sigreg_inputs(shape: tuple[int, ...], device: str) -> tuple[Tensor, ...]:
    n, d, k = shape
    z = torch.randn(n, d, generator=torch.Generator().manual_seed(0)).to(device)
    return z.requires_grad_(), sigreg_directions(d, k).to(device)


VICREG = Family(
    name="vicreg",
    symbols=("nd", "tnd"),
    grid=(
        *((64, 128), (64, 512), (64, 2048)),
        *((256, 128), (256, 512), (256, 2048), (256, 8192)),
        *((2048, 128), (2048, 512), (2048, 2048), (2048, 8192)),
        (3, 128, 48),  # a batch of Two Rooms' training
    ),
    providers=_vicreg_providers,
    inputs=_vicreg_inputs,
)
SIGREG = Family(
    name="sigreg",
    symbols=("ndk",),
    grid=((128, 48, 256), (256, 128, 256), (256, 512, 1024), (1024, 256, 1024)),
    providers=lambda: {"pyjepa": lambda z, a: sigreg(z, directions=a), "plain torch": sigreg_reference},
    inputs=_sigreg_inputs,
)
FAMILIES = {family.name: family for family in (VICREG, SIGREG)}


def step(loss: Loss, inputs: tuple[Tensor, ...], mode: str) -> None:
    """One run: "forward" without a graph, or "forward+backward" with the gradients of every input that has one."""
    if mode == "forward":
        with torch.no_grad():
            loss(*inputs)
    else:
        torch.autograd.grad(loss(*inputs), [x for x in inputs if x.requires_grad])


def _gradient_bytes(inputs: tuple[Tensor, ...], mode: str) -> int:
    return 0 if mode == "forward" else sum(x.numel() * x.element_size() for x in inputs if x.requires_grad)


def _seconds(loss: Loss, inputs: tuple[Tensor, ...], mode: str) -> float:
    if inputs[0].is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    step(loss, inputs, mode)
    if inputs[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _resident_peak(family: str, name: str, shape: tuple[int, ...], mode: str, threads: int, out: Any) -> None:
    """Send the peak resident bytes of one run beyond inputs and gradients; runs in a process of its own."""
    torch.set_num_threads(threads)
    loss = FAMILIES[family].providers()[name]
    step(loss, FAMILIES[family].inputs((16, 8, 4)[: len(shape)], "cpu"), mode)
    inputs = FAMILIES[family].inputs(shape, "cpu")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts at the present size

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))

    before = status("VmRSS")
    step(loss, inputs, mode)
    out.send(max(0, status("VmHWM") - before - _gradient_bytes(inputs, mode)))


def peak_memory(
    family: Family,
    name: str,
    shape: tuple[int, ...],
    *,
    mode: str = "forward+backward",
    device: str = "cpu",
    threads: int = 1,
) -> int:
    """Return the peak bytes of one run of provider `name` beyond its inputs and gradients.

    Raises RuntimeError where the measuring process ends without an answer.
    """
    if device != "cpu":
        inputs = family.inputs(shape, device)
        loss = family.providers()[name]
        step(loss, inputs, mode)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(loss, inputs, mode)
        return max(0, torch.cuda.max_memory_allocated() - before - _gradient_bytes(inputs, mode))
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_resident_peak, args=(family.name, name, shape, mode, threads, sender))
    process.start()
    sender.close()
    try:
        peak: int = receiver.recv()
    except EOFError as error:
        raise RuntimeError(f"{name} at {shape}: the process that measures memory failed") from error
    finally:
        process.join()
    return peak


def compare(
    family: Family,
    grid: Sequence[tuple[int, ...]],
    *,
    names: Sequence[str] | None = None,
    modes: Sequence[str] = MODES,
    device: str = "cpu",
    threads: int = 1,
    seconds: float = 2.0,
    least: int = 3,
    memory: bool = True,
    progress: Callable[[str], None] = lambda done: None,
) -> list[Row]:
    """Measure the providers at every shape of the grid; each point runs for `seconds`, and `least` times at least.

    `progress` is told of every shape and mode that is done. Raises ValueError for a shape the loss does not have.
    """
    losses = {name: loss for name, loss in family.providers().items() if names is None or name in names}
    described = [(shape, family.describe(shape)) for shape in grid]
    rows: list[Row] = []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for shape, symbols in described:
            inputs = family.inputs(shape, device)
            for mode in modes:
                taken: dict[str, list[float]] = {name: [] for name in losses}
                for loss in losses.values():
                    step(loss, inputs, mode)
                start = time.perf_counter()
                while time.perf_counter() - start < seconds or len(taken[next(iter(losses))]) < least:
                    for name, loss in losses.items():
                        taken[name].append(_seconds(loss, inputs, mode))
                for name, values in taken.items():
                    peak = (
                        peak_memory(family, name, shape, mode=mode, device=device, threads=threads) if memory else None
                    )
                    rows.append(
                        {
                            "provider": name,
                            "mode": mode,
                            **symbols,
                            "repeats": len(values),
                            "median_s": float(np.median(values)),
                            "p99_s": float(np.percentile(values, 99)),
                            "memory_bytes": peak,
                        }
                    )
                progress(f"{' x '.join(map(str, shape))}, {mode}")
    finally:
        torch.set_num_threads(before)
    return rows


def machine(device: str, threads: int) -> dict[str, Any]:
    """What the numbers were taken on."""
    from pyjepa.bench.machine import describe

    facts = {**describe(), "torch": torch.__version__, "threads": threads}
    facts["device"] = torch.cuda.get_device_name() if device != "cpu" else facts["cpu"]
    return facts
