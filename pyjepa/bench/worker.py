"""A process of its own for every implementation that is measured.

So each has its threads, its environment variables and its processors to itself, sleeps while the others run, and a
crash takes none of them along. The parent speaks first; requests and answers are tuples over a pipe.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from pyjepa.agent import Precision
from pyjepa.bench.workloads import Workload
from pyjepa.errors import PyjepaError

ENCODING = "encode and plan"
"""The operation that begins with pictures: observation and goal are encoded once, then planned with."""


@dataclass(frozen=True)
class Contestant:
    """An implementation in one configuration. ``peer`` "" is the engine itself."""

    peer: str
    threads: int
    precision: Precision = "fp32"
    """The engine's; peers have their own."""
    variant: str = ""
    deadline: float | None = None
    """Seconds per plan, the engine's."""


@dataclass
class Samples:
    """Calls and how each went."""

    seconds: list[float] = field(default_factory=list)
    switches: list[int] = field(default_factory=list)
    """Involuntary context switches of the process during each call."""
    disturbed: list[bool] = field(default_factory=list)
    """Whether another had the processor during each call: a switch, or with a deadline time stolen by a hypervisor."""
    overrun: list[float] = field(default_factory=list)
    """Seconds beyond the deadline, by the engine's own clock, negative where a plan was done before; empty without."""
    stolen: float = 0.0
    """Seconds that a hypervisor gave to others meanwhile, all processors."""

    def extend(self, other: Samples) -> None:
        """Adds another's."""
        self.seconds += other.seconds
        self.switches += other.switches
        self.disturbed += other.disturbed
        self.overrun += other.overrun
        self.stolen += other.stolen


class WorkerError(PyjepaError):
    """An implementation that could not be prepared or stopped while running."""


class Worker:
    """The parent's end."""

    def __init__(self, contestant: Contestant, *, processors: Sequence[int] | None) -> None:
        """``processors`` the process may run on; None: all."""
        from pyjepa.bench import peers

        variables = peers.environment(contestant.peer, contestant.threads) if contestant.peer else {}
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.contestant = contestant
        self._process = context.Process(target=serve, args=(theirs, contestant, processors), daemon=True)
        with _environment(variables):
            self._process.start()
        theirs.close()

    def prepare(self, workload: Workload) -> Mapping[str, Any]:
        """Gets ready for a workload: ``version``, ``precision``, ``flops`` per operation; with a deadline also
        ``tile_seconds``. Raises `WorkerError`."""
        answer: Mapping[str, Any] = self._ask("prepare", workload)
        return answer

    def run(self, operation: str, seconds: float, most: int = 1_000_000) -> Samples:
        """Calls an operation for so long, at least once."""
        samples: Samples = self._ask("run", operation, seconds, most)
        return samples

    def final_costs(self, plans: int) -> list[float] | None:
        """What so many plans from scratch cost under the engine's fp32 model; None if no whole plan is returned."""
        costs: list[float] | None = self._ask("final_costs", plans)
        return costs

    def pace(self, operation: str, period: float, seconds: float) -> list[tuple[float, float]]:
        """Calls an operation once a period: per call, seconds from its tick to its start and to its end."""
        ticks: list[tuple[float, float]] = self._ask("pace", operation, period, seconds)
        return ticks

    def peak(self, precision: str, seconds: float) -> float | None:
        """GFLOP/s (Gop/s) of a loop that only multiplies and adds in registers; None where the machine lacks it."""
        found: float | None = self._ask("peak", precision, seconds)
        return found

    def _ask(self, *request: Any) -> Any:
        try:
            self._pipe.send(request)
            status, answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(5)
            raise WorkerError(f"{self._name()} died (exit code {self._process.exitcode})") from error
        if status != "ok":
            raise WorkerError(f"{self._name()}: {answer}")
        return answer

    def _name(self) -> str:
        return self.contestant.peer or "pyjepa"

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def serve(pipe: Connection, contestant: Contestant, processors: Sequence[int] | None) -> None:
    """The child's end: answers until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    if processors is not None:
        os.sched_setaffinity(0, processors)
    stage = _Stage(contestant)
    while True:
        try:
            name, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = ("ok", getattr(stage, name)(*arguments))
        except Exception as error:
            answer = ("failed", f"{type(error).__name__}: {error}")
        try:
            pipe.send(answer)
        except BrokenPipeError:
            return


class _Stage:
    """What a worker has prepared."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        self.operations: dict[str, Callable[[], object]] = {}
        self.fresh: Callable[[int], list[float] | None] = lambda plans: None
        self.elapsed: Callable[[], float] = lambda: 0.0

    def prepare(self, workload: Workload) -> dict[str, Any]:
        from pyjepa.bench import engine, peers
        from pyjepa.bench.workloads import problem_of

        given = self.contestant
        if workload.name == "mode1":
            reflexes = engine.reflex_operations(workload)
            self.operations = {name: operation.call for name, operation in reflexes.items()}
            flops = {name: operation.flops for name, operation in reflexes.items()}
            return {"impl": engine.IMPL, "precision": given.precision, "flops": flops}
        problem = problem_of(workload)
        flops = {"plan": problem.flops}
        if not given.peer:
            static = given.variant == engine.STATIC
            planning = engine.Planning(
                workload, given.threads, precision=given.precision, static=static, deadline=given.deadline
            )
            self.operations = {"plan": planning.plan}
            if problem.perception is not None and given.deadline is None:
                self.operations[ENCODING] = planning.perceive_and_plan
                flops[ENCODING] = problem.flops + 2 * problem.perception.flops
            self.fresh = lambda plans: planning.final_costs(problem, plans)
            self.elapsed = lambda: planning.elapsed
            facts: dict[str, Any] = {"impl": engine.IMPL, "precision": given.precision, "flops": flops}
            return facts if given.deadline is None else facts | {"tile_seconds": planning.tile_seconds()}
        prepared = peers.prepare(given.peer, problem, threads=given.threads, variant=given.variant)
        self.operations = {"plan": prepared.plan}
        if problem.perception is not None and prepared.encode_and_plan is not None:
            self.operations[ENCODING] = prepared.encode_and_plan
            flops[ENCODING] = problem.flops + 2 * problem.perception.flops

        def fresh(plans: int) -> list[float] | None:
            found = [prepared.plan() for _ in range(plans)]
            whole = [peers.clamp(problem, plan) for plan in found if plan is not None]
            return [float(cost) for cost in problem.costs(whole)] if whole else None

        self.fresh = fresh
        return {"impl": prepared.version, "precision": prepared.precision, "flops": flops}

    def run(self, operation: str, seconds: float, most: int) -> Samples:
        call, samples = self.operations[operation], Samples()
        gc.collect()
        gc.disable()
        # Asking for the stolen time takes 40 µs, so between calls only where single ones are judged.
        timed = self.contestant.deadline is not None
        stolen, stop = stolen_seconds(), time.perf_counter() + seconds
        before, stolen_before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw, stolen
        while True:
            started = time.perf_counter()
            call()
            ended = time.perf_counter()
            after = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
            samples.seconds.append(ended - started)
            stolen_after = stolen_seconds() if timed else stolen_before
            samples.switches.append(after - before)
            samples.disturbed.append(after > before or stolen_after > stolen_before)
            if self.contestant.deadline is not None:
                samples.overrun.append(self.elapsed() - self.contestant.deadline)
            before, stolen_before = after, stolen_after
            if ended >= stop or len(samples.seconds) >= most:
                break
        samples.stolen = stolen_seconds() - stolen
        gc.enable()
        return samples

    def final_costs(self, plans: int) -> list[float] | None:
        return self.fresh(plans)

    def pace(self, operation: str, period: float, seconds: float) -> list[tuple[float, float]]:
        call, ticks = self.operations[operation], []
        gc.collect()
        gc.disable()
        start = time.perf_counter() + period
        tick = 0
        while tick * period < seconds:
            due = start + tick * period
            time.sleep(max(0.0, due - time.perf_counter()))
            begun = time.perf_counter()
            call()
            ended = time.perf_counter()
            ticks.append((begun - due, ended - due))
            # A call that overruns its period takes the next ticks with it; they are counted as missed, not queued.
            tick = max(tick + 1, int((ended - start) / period) + 1)
        gc.enable()
        return ticks

    def peak(self, precision: str, seconds: float) -> float | None:
        from pyjepa import _engine
        from pyjepa.errors import UnsupportedError

        try:
            return _engine.measure_peak(precision, seconds)
        except UnsupportedError:
            return None


def stolen_seconds() -> float:
    """Seconds that a hypervisor has given to others since the system began, all processors; 0 where unknown."""
    try:
        with open("/proc/stat", encoding="ascii") as stat:
            return int(stat.readline().split()[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0
