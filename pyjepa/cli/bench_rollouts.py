"""``pyjepa bench rollouts``: plans over rollouts on a device, fused and otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pyjepa.atomic import write_text


@click.command(name="rollouts")
@click.option("--workload", "names", multiple=True, help="W0s, W0, W0L, W1-like or GRU; again for more. [all]")
@click.option(
    "--candidates", multiple=True, type=click.IntRange(2), help="Candidates; again for more. [64 256 1024 8192]"
)
@click.option("--provider", "providers", multiple=True, help="What computes rollouts; again for more. [all]")
@click.option("--horizon", type=click.IntRange(1), help="Predictor steps. [the workload's]")
@click.option("--device", default="cuda", show_default=True, type=click.Choice(("cpu", "cuda")))
@click.option("--seconds", default=2.0, show_default=True, help="Time to spend on a workload and number of candidates.")
@click.option("--json", "path", type=click.Path(path_type=Path), metavar="FILE", help="Write the results to FILE.")
def rollouts(
    names: tuple[str, ...],
    candidates: tuple[int, ...],
    providers: tuple[str, ...],
    horizon: int | None,
    device: str,
    seconds: float,
    path: Path | None,
) -> None:
    """Compare plans over fused, stepwise, eager and compiled rollouts and the engine's: median and p99 time.

    On a CPU, fused and stepwise need TRITON_INTERPRET=1 and say nothing about speed.
    """
    from pyjepa.bench.losses import machine
    from pyjepa.bench.rollouts import PROVIDERS, compare
    from pyjepa.kernels.rollout.estimate import CANDIDATES, WORKLOADS

    for given, known in ((names, tuple(WORKLOADS)), (providers, PROVIDERS)):
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise click.UsageError(f"no such choice: {', '.join(unknown)}; there are {', '.join(known)}")
    rows = compare(
        names or tuple(WORKLOADS), candidates or CANDIDATES, device=device, providers=providers or PROVIDERS,
        horizon=horizon, seconds=seconds, progress=lambda done: click.echo(done, err=True),
    )  # fmt: skip
    if path is not None:
        document = {"kernel": "rollout", "machine": machine(device, 1), "results": rows}
        write_text(path, json.dumps(document, indent=1) + "\n")
    click.echo(f"{'workload':10s} {'N':>6s} {'provider':16s} {'p50 ms':>10s} {'p99 ms':>10s}")
    for row in rows:
        times = f"{row['p50_ms']:10.3f} {row['p99_ms']:10.3f}" if "p50_ms" in row else f"refused: {row['reason']}"
        click.echo(f"{row['workload']:10s} {row['candidates']:6d} {row['provider']:16s} {times}")
