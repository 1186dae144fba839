"""What ``pyjepa train images`` does once its options are read."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch
from torch import distributed

from pyjepa.atomic import write_text
from pyjepa.cli.progress import Display
from pyjepa.spec import Spec
from pyjepa.training.config import default_config, load_config
from pyjepa.training.evaluation import compare, head_accuracies
from pyjepa.training.image_config import ImageConfig
from pyjepa.training.images import ImageSet, digits, folder
from pyjepa.training.joint_embedding import ImageRun, split, train_images

TITLES = {"jepa": "JEPA", "pixels": "raw pixels", "pca": "PCA", "random weights": "random weights"}


def train(
    data: str, out: Path, config: Path | None, run_directory: Path, resume: bool, overrides: dict[str, Any]
) -> None:
    """Train, write the agent file, evaluate."""
    if not out.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {out.parent}", param_hint="--out")
    if data == "digits" and "data.size" in overrides:
        raise click.BadParameter("the digits have 8 pixels", param_hint="--size")
    default = default_config("digits" if data == "digits" else "images")
    settings = load_config(config or default, overrides, schema=ImageConfig)
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise click.BadParameter("torch finds no GPU", param_hint="--device")
    images = digits() if data == "digits" else folder(data, size=settings.data.size, channels=settings.data.channels)
    training, held_out = split(images, settings.data.holdout, settings.seed)
    with _processes(settings.device) as first, contextlib.ExitStack() as stack:
        shown = "rank {effective_rank:.1f} AUROC {energy_auroc:.2f}"
        display = stack.enter_context(Display(settings.optimiser.steps, shown=shown)) if first else _Silent()
        run = train_images(settings, training, held_out, run_directory=run_directory, resume=resume, reporter=display)
        stack.close()
        if not first:
            return
        run.model.export(out, _with_provenance(run, data))
        found = run.figures
        assert found is not None
        click.echo(
            f"{out}: {run.step} steps in {run.seconds / 60:.1f} minutes on {len(training)} images; effective rank "
            f"{found['effective_rank']:.1f}, energy AUROC {found['energy_auroc']:.3f}, {len(run.alarms)} alarms"
        )
        if images.labels is not None:
            _evaluate(run, training, held_out, run_directory)


def _evaluate(run: ImageRun, training: ImageSet, held_out: ImageSet, run_directory: Path) -> None:
    run.model.cpu()
    found = compare(run.model, run.config, training, held_out)
    heads = head_accuracies(run.model, run.config, training, held_out)
    click.echo(f"accuracy on {len(held_out)} held-out images  linear     k-NN  10 labels a class")
    for name, worth in found.items():
        click.echo(f"{TITLES[name]:34s}{worth.linear:9.1%}{worth.knn:9.1%}{worth.few:19.1%}")
    click.echo(f"prediction head on views: {heads['encoded']:.1%} encoded, {heads['predicted']:.1%} predicted")
    written = {"probes": {name: worth.as_dict() for name, worth in found.items()}, "heads": heads}
    write_text(run_directory / "evaluation.json", json.dumps(written, indent=1) + "\n")


def _with_provenance(run: ImageRun, data: str) -> Spec:
    """The spec with where the weights come from."""
    provenance = {
        "command": f"pyjepa train images --data {Path(data).name} --objective {run.config.objective.kind}",
        "seed": str(run.config.seed),
        "config": json.dumps(run.config.model_dump(), sort_keys=True),
        "config_sha256": run.config.digest(),
        "data_crc32": run.data.fingerprint(),
        "steps": str(run.step),
        "pyjepa": version("pyjepa-engine"),
        "torch": torch.__version__,
        "alarms": "; ".join(run.alarms) or "none",
        **{name: f"{value:.6g}" for name, value in (run.figures or {}).items()},
    }
    return dataclasses.replace(run.model.spec, provenance=provenance)


@contextlib.contextmanager
def _processes(device: str) -> Iterator[bool]:
    """Join torchrun's other processes where there are any; whether this is the one that speaks and writes."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield True
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield distributed.get_rank() == 0
    finally:
        distributed.destroy_process_group()


class _Silent:
    """What the other processes report to."""

    def progress(self, step: int, losses: dict[str, float]) -> None:
        """Say nothing."""

    def evaluated(self, step: int, figures: dict[str, float]) -> None:
        """Say nothing."""

    def alarm(self, step: int, message: str) -> None:
        """Say nothing."""
