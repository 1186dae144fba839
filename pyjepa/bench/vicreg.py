"""VICReg losses side by side: time and peak memory of the published formulas and of `pyjepa.kernels.vicreg`.

Every provider computes the whole loss of x, y (N, D), fp32. Times are interleaved - one run of each provider in turn -
so that a busy machine slows all of them; memory is the peak resident size of a process of its own (the allocator's peak
on a GPU) minus what the inputs and gradients take. "official", "lightly" and "solo-learn" are the formulas as those
libraries state them, restated in plain torch and tested equal; "lightly (package)" runs lightly itself where it is
installed.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pyjepa.kernels import vicreg

Loss = Callable[[Tensor, Tensor], Tensor]
GRID = ((64, 128), (64, 512), (64, 2048), (256, 128), (256, 512), (256, 2048), (256, 8192), (2048, 128), (2048, 512),
        (2048, 2048), (2048, 8192))  # fmt: skip
MODES = ("forward", "forward+backward")


class Result(TypedDict):
    """One provider at one shape. Seconds and bytes; memory is None where only the time was asked for."""

    provider: str
    mode: str
    n: int
    d: int
    repeats: int
    median_s: float
    p99_s: float
    memory_bytes: int | None


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


def _ours(x: Tensor, y: Tensor) -> Tensor:
    return vicreg(x, y).loss


def providers() -> dict[str, Loss]:
    """The losses to compare by name; the first is this package's."""
    found: dict[str, Loss] = {"pyjepa": _ours, "official": official, "lightly": lightly, "solo-learn": solo_learn}
    package = importlib.util.find_spec("lightly")
    if package is not None and package.submodule_search_locations:
        found["lightly (package)"] = _module(
            Path(package.submodule_search_locations[0], "loss/vicreg_loss.py")
        ).VICRegLoss()
    return found


def _module(path: Path) -> Any:
    """The module in a file, without its package: that of lightly's losses wants torchvision, its VICReg does not."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _inputs(n: int, d: int, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, n, d, generator=generator).to(device)
    return x.clone().requires_grad_(), y.clone().requires_grad_()


def step(loss: Loss, x: Tensor, y: Tensor, mode: str) -> None:
    """One run: "forward" without a graph, or "forward+backward" with gradients for x and y."""
    if mode == "forward":
        with torch.no_grad():
            loss(x, y)
    else:
        torch.autograd.grad(loss(x, y), (x, y))


def _seconds(loss: Loss, x: Tensor, y: Tensor, mode: str) -> float:
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    step(loss, x, y, mode)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _resident_peak(name: str, n: int, d: int, mode: str, threads: int, out: Any) -> None:
    """Send the peak resident bytes of one run beyond inputs and gradients; runs in a process of its own."""
    torch.set_num_threads(threads)
    loss = providers()[name]
    step(loss, *_inputs(16, 8, "cpu"), mode)
    x, y = _inputs(n, d, "cpu")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts at the present size

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))

    before = status("VmRSS")
    step(loss, x, y, mode)
    gradients = 0 if mode == "forward" else 2 * x.numel() * x.element_size()
    out.send(max(0, status("VmHWM") - before - gradients))


def peak_memory(
    name: str, n: int, d: int, *, mode: str = "forward+backward", device: str = "cpu", threads: int = 1
) -> int:
    """Return the peak bytes of one run of provider `name` beyond its inputs and gradients.

    Raises RuntimeError where the measuring process ends without an answer.
    """
    if device != "cpu":
        x, y = _inputs(n, d, device)
        loss = providers()[name]
        step(loss, x, y, mode)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(loss, x, y, mode)
        gradients = 0 if mode == "forward" else 2 * x.numel() * x.element_size()
        return max(0, torch.cuda.max_memory_allocated() - before - gradients)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_resident_peak, args=(name, n, d, mode, threads, sender))
    process.start()
    sender.close()
    try:
        peak: int = receiver.recv()
    except EOFError as error:
        raise RuntimeError(f"{name} at ({n}, {d}): the process that measures memory failed") from error
    finally:
        process.join()
    return peak


def compare(
    grid: Sequence[tuple[int, int]],
    *,
    names: Sequence[str] | None = None,
    modes: Sequence[str] = MODES,
    device: str = "cpu",
    threads: int = 1,
    seconds: float = 2.0,
    least: int = 3,
    memory: bool = True,
    progress: Callable[[str], None] = lambda done: None,
) -> list[Result]:
    """Measure the providers at every (N, D) of the grid; each point runs for `seconds`, and `least` times at least.

    `progress` is told of every shape and mode that is done.
    """
    losses = {name: loss for name, loss in providers().items() if names is None or name in names}
    results: list[Result] = []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for n, d in grid:
            x, y = _inputs(n, d, device)
            for mode in modes:
                taken: dict[str, list[float]] = {name: [] for name in losses}
                for loss in losses.values():
                    step(loss, x, y, mode)
                start = time.perf_counter()
                while time.perf_counter() - start < seconds or len(taken[next(iter(losses))]) < least:
                    for name, loss in losses.items():
                        taken[name].append(_seconds(loss, x, y, mode))
                for name, values in taken.items():
                    results.append(
                        Result(
                            provider=name,
                            mode=mode,
                            n=n,
                            d=d,
                            repeats=len(values),
                            median_s=float(np.median(values)),
                            p99_s=float(np.percentile(values, 99)),
                            memory_bytes=peak_memory(name, n, d, mode=mode, device=device, threads=threads)
                            if memory
                            else None,
                        )
                    )
                progress(f"{n} x {d}, {mode}")
    finally:
        torch.set_num_threads(before)
    return results


def machine(device: str, threads: int) -> dict[str, Any]:
    """What the numbers were taken on."""
    from pyjepa.bench.machine import describe

    facts = {**describe(), "torch": torch.__version__, "threads": threads}
    facts["device"] = torch.cuda.get_device_name() if device != "cpu" else facts["cpu"]
    return facts
