"""What `pyjepa energy-lab` does: every row of Table 1 and every architecture, trained, measured and judged.

Each unit of work (a method or an architecture) is a file in the folder's ``units``, so that an interrupted run goes on
where it stopped. A unit seeds itself: its figures depend neither on the others nor on how many processes there are.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pyjepa.atomic import write_text
from pyjepa.diagnostics import energy_gap, rankme
from pyjepa.energy import collapse
from pyjepa.energy.contrast import corrupt
from pyjepa.energy.densities import DENSITIES, negative_log_likelihood, plane
from pyjepa.energy.inference import complete
from pyjepa.energy.methods import METHODS
from pyjepa.energy.recipes import Digits, Learner, Plane, Task, learner, train
from pyjepa.errors import DivergedChainError, InvalidArgumentError, NonFiniteEnergyError

ALLOWED_NATS = {"1": 0.1, "2": 0.1, "3": 0.3, "4": 0.3}
"""How far above the true negative log-likelihood a method that fits densities may end."""
LEAST_AUROC = 0.95
"""What a method that fits no density must reach in telling data from corrupted data."""
MAP_SIDE = 80
"""Energies on the page are maps of so many pixels a side."""


@dataclass(frozen=True)
class Settings:
    """What a folder of results was made with."""

    seed: int = 0
    plane_steps: int = 2000
    digits_steps: int = 1500
    collapse_steps: int = 2000

    def __post_init__(self) -> None:
        """Raises InvalidArgumentError for impossible settings."""
        if self.seed < 0 or min(self.plane_steps, self.digits_steps, self.collapse_steps) < 1:
            raise InvalidArgumentError(f"expected a seed >= 0 and at least one step of each kind, got {self}")

    @classmethod
    def quick(cls, seed: int = 0) -> Settings:
        """Fewer steps: within three minutes on two cores."""
        return cls(seed=seed, plane_steps=1000, digits_steps=650, collapse_steps=800)


Unit = tuple[str, str]
"""("methods", a row of Table 1) or ("collapse", one of `collapse.UNITS`)."""
Figures = dict[str, Any]


def units(methods: Iterable[str]) -> list[Unit]:
    """The work of a run: the methods asked for, and all that shows collapse."""
    return [*(("methods", key) for key in methods), *(("collapse", name) for name in collapse.UNITS)]


def run_unit(unit: Unit, settings: Settings) -> Figures:
    """Trains and measures one unit. Raises NonFiniteEnergyError and DivergedChainError with the unit's name."""
    try:
        return _run_unit(unit, settings)
    except (NonFiniteEnergyError, DivergedChainError) as error:
        raise type(error)(f"{' '.join(unit)}: {error}") from error


def _run_unit(unit: Unit, settings: Settings) -> Figures:
    kind, name = unit
    with _seeded(unit, settings.seed) as generator:
        started = time.perf_counter()
        if kind == "collapse":
            # Steps of joint embeddings are cheap, and those that collapse must get there.
            steps = settings.collapse_steps * (3 if name.startswith("joint") else 1)
            outcome = collapse.run(name, Digits(settings.seed), steps=steps, generator=generator)
            return {**asdict(outcome), "seconds": time.perf_counter() - started}
        tasks: list[Task] = [*(Plane(density) for density in DENSITIES), Digits(settings.seed)]
        found = {task.name: _method(name, task, settings, generator) for task in tasks}
        return {"tasks": found, "seconds": time.perf_counter() - started}


def run(
    folder: Path,
    *,
    methods: Sequence[str] = tuple(METHODS),
    settings: Settings | None = None,
    workers: int = 1,
    done: Callable[[Unit, Figures, bool], None] = lambda unit, figures, again: None,
) -> dict[str, Any]:
    """Runs what is not yet in ``folder`` and returns (and writes there) `results.json`; `details.json` has the rest.

    ``done`` is called after each unit, its last argument True where the folder already held it. Raises
    InvalidArgumentError for an unknown method, an empty choice, or a folder that holds something else or the results
    of other settings.
    """
    settings = settings or Settings()
    unknown = sorted(set(methods) - set(METHODS))
    if unknown or not methods:
        raise InvalidArgumentError(f"no method {', '.join(unknown) or 'chosen'} (there are {', '.join(METHODS)})")
    _claim(folder, settings)
    found: dict[Unit, Figures] = {}
    missing = []
    work = units([key for key in METHODS if key in set(methods)])
    for unit in work:
        file = _file(folder, unit)
        if file.is_file():
            found[unit] = json.loads(file.read_text(encoding="utf-8"))
            done(unit, found[unit], True)
        else:
            missing.append(unit)
    for unit, figures in _all(missing, settings, workers):
        write_text(_file(folder, unit), json.dumps(figures) + "\n")
        found[unit] = figures
        done(unit, figures, False)
    found = {unit: found[unit] for unit in work}  # not in the order in which they were done
    results = summary(found)
    write_text(folder / "results.json", json.dumps(results, indent=1) + "\n")
    write_text(folder / "details.json", json.dumps(details(found, settings), indent=1) + "\n")
    return results


def load(folder: Path, methods: Sequence[str]) -> dict[Unit, Figures]:
    """The units that a run of these methods left in ``folder``."""
    chosen = units([key for key in METHODS if key in set(methods)])
    return {unit: json.loads(_file(folder, unit).read_text(encoding="utf-8")) for unit in chosen}


def summary(found: dict[Unit, Figures]) -> dict[str, Any]:
    """What `results.json` holds.

    Of a method: ``nll``, the mean over the densities; ``auroc``, the least over densities and digits;
    ``effective_rank``, that of its features on digits (RankMe); the verdict, `verdict`.
    """
    methods = {}
    for (kind, key), figures in found.items():
        if kind == "methods":
            tasks = figures["tasks"].values()
            methods[key] = {
                "verdict": verdict(key, figures),
                "effective_rank": figures["tasks"]["digits"]["effective_rank"],
                "nll": _mean([task["nll"] for task in tasks if "nll" in task]),
                "auroc": min(task["auroc"] for task in tasks),
                "seconds": round(figures["seconds"], 2),
            }
    collapsed = {
        name: {"effective_rank": figures["effective_rank"], "verdict": figures["verdict"]}
        for (kind, name), figures in found.items()
        if kind == "collapse" and name not in collapse.LIMITS
    }
    return {"methods": methods, "collapse": collapsed}


def verdict(key: str, figures: Figures) -> str:
    """What the figures of a method say: whether it matches the densities (rows 1 to 4) or separates data (others)."""
    tasks = figures["tasks"].values()
    if key in ALLOWED_NATS:
        worst = max(task["nll"] - task["true_nll"] for task in tasks if "nll" in task)
        word = "matches" if worst <= ALLOWED_NATS[key] else "misses"
        return f"{word} the densities: at most {worst:.2f} nat above the truth (allowed {ALLOWED_NATS[key]:g})"
    least = min(task["auroc"] for task in tasks)
    word = "separates" if least >= LEAST_AUROC else "does not separate"
    return f"{word} data from corrupted data: AUROC at least {least:.3f} (needed {LEAST_AUROC:g})"


def details(found: dict[Unit, Figures], settings: Settings) -> dict[str, Any]:
    """Everything measured but maps, images and curves."""
    bulky = {"energy", "completed", "ranks", "spectrum"}

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items() if key not in bulky}
        return value

    return {
        "settings": asdict(settings),
        "torch": torch.__version__,
        "densities": {
            density.name: {"means": density.means, "sigmas": density.sigmas, "weights": density.weights}
            for density in DENSITIES
        },
        **{
            kind: {name: plain(figures) for (of, name), figures in found.items() if of == kind}
            for kind in ("methods", "collapse")
        },
    }


def _method(key: str, task: Task, settings: Settings, generator: torch.Generator) -> Figures:
    """Trains a row of Table 1 on one task and measures it."""
    made = learner(key, task, generator)
    on_plane = isinstance(task, Plane)
    steps = settings.plane_steps if on_plane else settings.digits_steps
    steps *= {"9": 2, "10": 3}.get(key, 1)  # a generator and an auto-encoder learn slowly, at little cost a step
    train(
        made,
        task,
        steps=steps,
        generator=generator,
        batch=(1024 if key == "3" else 256) if on_plane else 128,  # one draw of proposals serves a whole batch
        rate=5e-3 if on_plane else 2e-3,
    )
    x, y = task.test()
    noisy = corrupt(y, task.noise, generator=generator)
    energy = made.energy
    with torch.no_grad():
        low = energy(x, y)
        figures: Figures = {
            "steps": steps,
            "auroc": energy_gap(low, energy(x, noisy)).auroc,
            "effective_rank": rankme(energy.features(x, y)),  # type: ignore[operator]  # every energy here has it
        }
        if isinstance(task, Plane):
            density = task.density
            figures["nll"] = negative_log_likelihood(energy, y, density.box)
            figures["true_nll"] = negative_log_likelihood(density.energy, y, density.box)
            figures["best_auroc"] = energy_gap(density.energy(x, y), density.energy(x, noisy)).auroc
            points = plane(density.box, MAP_SIDE)
            figures["energy"] = [round(v, 3) for v in energy(points[:, :0], points).tolist()]
        else:
            figures["mismatched_auroc"] = energy_gap(low, energy(x, y.roll(1, 0))).auroc
    if not on_plane:
        figures["completed"] = _completed(made, x[:6], y[:6], generator)
    return figures


def _completed(made: Learner, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> list[list[float]]:
    """The right halves whose lower half was hidden and found again by descending the energy."""
    hidden = torch.arange(y.shape[1]) >= y.shape[1] // 2
    start = torch.where(hidden, 0.5, y)
    filled = complete(
        made.energy, x, start, hidden, starts=4, steps=100, spread=0.3, bounds=(0.0, 1.0), generator=generator
    )
    return [[round(v, 3) for v in row] for row in filled.y.tolist()]


@contextmanager
def _seeded(unit: Unit, seed: int) -> Iterator[torch.Generator]:
    """One thread, and random numbers of the unit's own; torch's global generator is put back afterwards.

    One thread: with a neighbour on one of two cores, two threads are many times slower than one.
    """
    # Torch seeds with 32 bits: the seed must reach them.
    own = zlib.crc32("/".join(unit).encode()) ^ (seed * 0x9E3779B1 & 0xFFFFFFFF)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(own)
            yield torch.Generator().manual_seed(own)
    finally:
        torch.set_num_threads(threads)


def _all(missing: Sequence[Unit], settings: Settings, workers: int) -> Iterator[tuple[Unit, Figures]]:
    if workers == 1 or len(missing) < 2:
        for unit in missing:
            yield unit, run_unit(unit, settings)
        return
    context = multiprocessing.get_context("spawn")  # a forked torch may hang on the parent's locks
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        running = {pool.submit(run_unit, unit, settings): unit for unit in missing}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _claim(folder: Path, settings: Settings) -> None:
    """Makes the folder ours: new or empty, or the results of the same settings."""
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "settings.json"
    ours = json.dumps({**asdict(settings), "torch": torch.__version__}, indent=1) + "\n"
    if note.is_file():
        if note.read_text(encoding="utf-8") != ours:
            raise InvalidArgumentError(f"{folder} holds results of other settings ({note}): choose another folder")
    elif any(folder.iterdir()):
        raise InvalidArgumentError(f"{folder} holds something else: choose a new or empty folder")
    else:
        write_text(note, ours)
    (folder / "units").mkdir(exist_ok=True)


def _file(folder: Path, unit: Unit) -> Path:
    return folder / "units" / f"{'-'.join(unit)}.json"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
