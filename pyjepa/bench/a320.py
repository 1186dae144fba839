"""What the A320 agent is worth: prediction beside baselines, plans under the model, surprise at faulty sensors.

All of it on the blocks of the flight that training never saw (`pyjepa.training.a320.Split`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjepa import agent_file
from pyjepa.adapters.recordings import CONTROLS, OBSERVED, Flight
from pyjepa.agent import Agent, Model
from pyjepa.bench.percentiles import milliseconds
from pyjepa.surprise import Surprise
from pyjepa.training import a320

FloatArray = npt.NDArray[np.float64]

ONSET = 60
"""Seconds into a held-out block at which a sensor fails."""
QUIET = 30
"""Seconds without alarm after which another one counts as another."""
DRIFTS = (0.2, 0.5, 1.0)
"""kt/s by which an airspeed reading wanders off."""
SPACING = 30
"""Seconds between the starts of plans."""
REACH = 0.95
"""A plan keeps every control within that quantile of how far the flight's own moved in as long a time."""
STEPS = (1, 2, 4, 6)
"""Predictor steps over which surprise may be taken; validation chooses."""


def baselines(flight: Flight) -> dict[str, Any]:
    """Persistence and ridge regression, whose penalty the validation blocks choose."""
    split = a320.Split.of(flight)
    test, validation = a320.judged_windows(split.test), a320.judged_windows(split.validation)
    tried = {}
    for penalty in a320.Ridge.PENALTIES:
        ridge = a320.Ridge(flight, a320.windows(split.training), penalty)
        tried[penalty] = a320.errors(ridge.predict(flight, validation), flight, validation)
    best = min(tried, key=lambda penalty: relative(tried[penalty]))
    ridge = a320.Ridge(flight, a320.windows(split.training | split.validation), best)
    return {
        "windows": len(test),
        "persistence": a320.errors(a320.persistence(flight, test), flight, test),
        "ridge": a320.errors(ridge.predict(flight, test), flight, test),
        "ridge_penalty": best,
    }


def relative(found: dict[str, float]) -> float:
    """Errors in units of their tolerance, averaged: what validation chooses by."""
    return float(np.mean([found[name] / a320.TOLERANCE[name] for name in a320.JUDGED]))


def choose(
    flight: Flight, candidates: Sequence[a320.Settings], progress: Callable[[int], None] | None = None
) -> tuple[a320.Settings, list[dict[str, Any]]]:
    """The settings that do best on the validation blocks, trained on the other training blocks; and all tried."""
    split = a320.Split.of(flight)
    tried: list[dict[str, Any]] = []
    for i, settings in enumerate(candidates):
        spec, tensors = a320.train_agent(flight, settings, usable=split.training)
        model = Model.from_bytes(agent_file.to_bytes(spec, tensors))
        found = prediction(model, flight, split.validation)
        tried.append({"settings": asdict(settings), "validation": found, "relative": relative(found)})
        if progress is not None:
            progress(i + 1)
    best = min(range(len(tried)), key=lambda i: float(tried[i]["relative"]))
    return candidates[best], tried


def prediction(model: Model, flight: Flight, usable: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Root mean squared errors 30 s ahead over the windows of these rows."""
    seconds = a320.judged_windows(usable)
    return a320.errors(a320.predicted(model, flight, seconds), flight, seconds)


def busiest(flight: Flight) -> int:
    """The whole held-out block in which the altitude changes most."""
    blocks = range(3, len(flight) // a320.BLOCK, 4)
    altitude = flight.observed[:, OBSERVED.index("altitude")]
    return max(blocks, key=lambda b: float(np.ptp(altitude[b * a320.BLOCK : (b + 1) * a320.BLOCK])))


def track_record(model: Model, flight: Flight, first: int, seconds: int, *, every: int = 10) -> dict[str, Any]:
    """For a plot: what was observed in a held-out stretch, and what was predicted for it 30 s before."""
    starts = np.arange(first + a320.HISTORY - 1, first + seconds - a320.AHEAD, every)
    told = a320.predicted(model, flight, starts)
    columns = [OBSERVED.index(name) for name in a320.JUDGED]
    rows = np.arange(first, first + seconds, every)
    return {
        "names": list(a320.JUDGED),
        "observed_at": (rows - first).tolist(),
        "observed": np.round(flight.observed[rows][:, columns], 2).tolist(),
        "predicted_at": (starts + a320.AHEAD - first).tolist(),
        "predicted": np.round(told[:, columns], 2).tolist(),
    }


def plans(
    model: Model, flight: Flight, *, horizon: int = 60, change: tuple[float, float] = (-500.0, 0.0)
) -> dict[str, Any]:
    """Plans of pitch, roll and fuel flow from held-out seconds, judged by the model that made them.

    Two targets each: the altitude and airspeed that the flight had ``horizon`` seconds later, and ``change`` (ft, kt)
    from the present ones. Beside them: what the model says of keeping the present controls. Controls stay within what
    the flight showed, and near the present ones (`REACH`).
    """
    split = a320.Split.of(flight)
    seconds = a320.windows(split.test, ahead=horizon, within=a320.BLOCK)
    keep = np.unique(seconds // SPACING, return_index=True)[1]
    seconds = seconds[keep]
    agent = Agent(model)
    seen = a320.observations(flight, seconds)
    altitude, speed = OBSERVED.index("altitude"), OBSERVED.index("CAS")
    low, high = np.asarray(model.spec.actions.low), np.asarray(model.spec.actions.high)
    reach = control_reach(flight, horizon)
    found: dict[str, Any] = {
        "starts": len(seconds),
        "horizon_s": horizon,
        "reach": dict(zip(CONTROLS, reach.tolist(), strict=True)),
        "change": {"altitude": change[0], "CAS": change[1]},
    }
    times: list[float] = []
    for name in ("flown", "asked"):
        missed, idle, outside, deviations = [], [], 0, []
        for observation, second in zip(seen, seconds, strict=True):
            now = flight.observed[second]
            later = flight.observed[second + horizon]
            wanted = (
                (later[altitude], later[speed])
                if name == "flown"
                else (now[altitude] + change[0], now[speed] + change[1])
            )
            goal = np.repeat(observation[-1:], a320.HISTORY, axis=0)
            goal[:, altitude], goal[:, speed] = wanted
            held = np.clip(flight.controls[second], low, high).astype(np.float32)
            bounds = np.maximum(low, held - reach), np.minimum(high, held + reach)
            agent.configure(goal=goal, horizon=horizon, bounds=bounds, seed=int(second))
            began = time.thread_time()
            plan = agent.plan(observation)
            times.append(time.thread_time() - began)
            assert plan.states is not None
            reached = model.forward("instruments", plan.states[-1:])[0]
            missed.append((reached[altitude] - wanted[0], reached[speed] - wanted[1]))
            outside += bool(((plan.actions < bounds[0] - 1e-3) | (plan.actions > bounds[1] + 1e-3)).any())
            steady = _imagined(model, observation, np.repeat(held[None], horizon // a320.STEP, axis=0))
            idle.append((steady[altitude] - wanted[0], steady[speed] - wanted[1]))
            flown = a320.actions(flight, np.array([second]), horizon // a320.STEP)[0]
            deviations.append(np.abs(plan.actions[:: a320.STEP] - flown).mean(axis=0))
        error, kept = np.abs(missed), np.abs(idle)
        found[name] = {
            "altitude_ft_median": float(np.median(error[:, 0])),
            "altitude_ft_p90": float(np.percentile(error[:, 0], 90)),
            "CAS_kt_median": float(np.median(error[:, 1])),
            "CAS_kt_p90": float(np.percentile(error[:, 1], 90)),
            "met": float(((error[:, 0] <= 100.0) & (error[:, 1] <= 2.0)).mean()),
            "kept_altitude_ft_median": float(np.median(kept[:, 0])),
            "kept_CAS_kt_median": float(np.median(kept[:, 1])),
            "kept_met": float(((kept[:, 0] <= 100.0) & (kept[:, 1] <= 2.0)).mean()),
            "outside_bounds": outside,
            "controls_differ": dict(zip(CONTROLS, np.mean(deviations, axis=0).tolist(), strict=True)),
        }
    found["plan_cpu_ms_p50"], found["plan_cpu_ms_p99"] = milliseconds(times, 50), milliseconds(times, 99)
    return found


def control_reach(flight: Flight, horizon: int) -> FloatArray:
    """How far the controls usually move within ``horizon`` seconds of the training blocks: (3,)."""
    seconds = a320.windows(a320.Split.of(flight).training, ahead=horizon)
    later = seconds[:, None] + np.arange(a320.STEP, horizon + 1, a320.STEP)
    moved = np.abs(flight.controls[later] - flight.controls[seconds][:, None])
    reach: FloatArray = np.quantile(moved, REACH, axis=(0, 1))
    return reach


def _imagined(model: Model, observation: npt.NDArray[np.float32], held: npt.NDArray[np.float32]) -> FloatArray:
    state = model.encode(observation[None])
    box = model.spec.actions
    for action in held:
        normal = (action - np.asarray(box.center, np.float32)) / np.asarray(box.scale, np.float32)
        state = model.forward("predictor", np.concatenate([state, normal[None]], axis=1))
    instruments: FloatArray = model.forward("instruments", state)[0].astype(np.float64)
    return instruments


def energies(monitor: Surprise, model: Model, flight: Flight, seconds: npt.NDArray[np.int64]) -> FloatArray:
    """Surprise at each of these seconds."""
    back = monitor.steps * a320.STEP
    return monitor.energy(
        a320.observations(flight, seconds - back),
        a320.actions(flight, seconds - back, monitor.steps),
        a320.observations(flight, seconds),
    )


def surprise_steps(model_of: Callable[[int], Model], flight: Flight) -> tuple[int, dict[int, float]]:
    """Over how many predictor steps faults in the validation blocks are found soonest, on average; and all delays.

    ``model_of`` gives the model calibrated for so many steps; a fault that is not found counts as the rest of a block.
    """
    usable = a320.Split.of(flight).validation
    delays = {}
    for steps in STEPS:
        found = surprise(model_of(steps), flight, usable)["faults"]
        late = [a320.BLOCK - ONSET if d is None else d for fault in found for d in fault["delays_s"]]
        delays[steps] = float(np.mean(late))
    return min(delays, key=lambda steps: delays[steps]), delays


def surprise(model: Model, flight: Flight, usable: npt.NDArray[np.bool_] | None = None) -> dict[str, Any]:
    """Alarms on the held-out blocks (or other ``usable`` ones) as they are, and with a sensor at fault: an altimeter
    that freezes, an airspeed that drifts.

    A fault begins 60 s into a block and lasts to its end; it counts as found at the first alarm after that. What can be
    found depends on the flight: an altimeter that freezes at cruising altitude is right.
    """
    monitor = Surprise(model)
    usable = a320.Split.of(flight).test if usable is None else usable
    blocks = [int(b) for b in np.unique(np.flatnonzero(usable) // a320.BLOCK)]
    reach = monitor.steps * a320.STEP + a320.HISTORY - 1
    hours, alarms = 0.0, 0
    clean: list[FloatArray] = []
    for block in blocks:
        seconds = np.arange(block * a320.BLOCK + reach, min(len(flight), (block + 1) * a320.BLOCK))
        found = energies(monitor, model, flight, seconds)
        clean.append(found)
        hours += len(seconds) / 3600
        at = np.flatnonzero(found > monitor.threshold)
        alarms += int(len(at) > 0) + int((np.diff(at) > QUIET).sum())
    result: dict[str, Any] = {
        "steps": monitor.steps,
        "quantile": monitor.calibration.quantile,
        "threshold": monitor.threshold,
        "hours": hours,
        "false_alarms": alarms,
        "false_alarms_per_hour": alarms / hours,
        "median_energy": float(np.median(np.concatenate(clean))),
        "faults": [],
    }
    faults = [("frozen altimeter", None), *((f"airspeed drifting {rate:g} kt/s", rate) for rate in DRIFTS)]
    for name, rate in faults:
        delays, moving = [], []
        for block in blocks:
            onset, end = block * a320.BLOCK + ONSET, min(len(flight), (block + 1) * a320.BLOCK)
            if end - onset < ONSET:
                continue
            faulty = _faulty(flight, onset, rate)
            seconds = np.arange(onset, end)
            over = np.flatnonzero(energies(monitor, model, faulty, seconds) > monitor.threshold)
            delays.append(int(over[0]) if len(over) else None)
            altitude = flight.observed[onset:end, OBSERVED.index("altitude")]
            moving.append(bool(np.ptp(altitude) > 200.0))
        detected = [d for d in delays if d is not None]
        noticeable = [d for d, m in zip(delays, moving, strict=True) if m or rate is not None]
        result["faults"].append(
            {
                "fault": name,
                "blocks": len(delays),
                "found": len(detected),
                "noticeable": len(noticeable),
                "noticeable_found": sum(d is not None for d in noticeable),
                "delay_s_median": float(np.median(detected)) if detected else None,
                "delay_s_max": max(detected) if detected else None,
                "delays_s": delays,
            }
        )
    return result


def _faulty(flight: Flight, onset: int, rate: float | None) -> Flight:
    """The flight with its altimeter frozen from ``onset`` on, or its airspeed drifting by ``rate`` kt/s."""
    observed = flight.observed.copy()
    if rate is None:
        column = OBSERVED.index("altitude")
        observed[onset:, column] = observed[onset, column]
    else:
        observed[onset:, OBSERVED.index("CAS")] += rate * np.arange(1, len(observed) - onset + 1)
    return replace(flight, observed=observed)


def example(model: Model, flight: Flight, block: int) -> dict[str, Any]:
    """For a plot: energies in one held-out block, as it is and with each kind of fault."""
    monitor = Surprise(model)
    reach = monitor.steps * a320.STEP + a320.HISTORY - 1
    first = block * a320.BLOCK
    seconds = np.arange(first + reach, first + a320.BLOCK)
    lines = {
        "as recorded": flight,
        "frozen altimeter": _faulty(flight, first + ONSET, None),
        "airspeed drifting 0.5 kt/s": _faulty(flight, first + ONSET, 0.5),
    }
    return {
        "block": block,
        "seconds": (seconds - first).tolist(),
        "onset": ONSET,
        "threshold": monitor.threshold,
        "energies": {name: np.round(energies(monitor, model, f, seconds), 3).tolist() for name, f in lines.items()},
    }
