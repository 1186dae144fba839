"""``pyjepa inspect FILE``: what an agent file holds, or what is wrong with it (exit code 2)."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import safetensors
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pyjepa import _engine
from pyjepa.cli.text import printable
from pyjepa.errors import AgentFileError, UnsupportedError
from pyjepa.spec import AdalnTransformer, Block, Conv, Gru, Impala, Mlp, Spec, TwoHot, Vit

BYTES_PER_PARAMETER = 4  # float32


@dataclass(frozen=True)
class _ModuleSummary:
    """One row of the table of modules."""

    role: str
    inputs: tuple[str, ...]
    blocks: tuple[str, ...]
    input_size: int
    output_size: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class _Report:
    """What `inspect` says about a sound file."""

    file: str
    bytes: int
    spec: Spec
    observation_size: int
    action_size: int
    latent_size: int
    modules: dict[str, _ModuleSummary]
    tensors: dict[str, tuple[int, ...]]


@click.command(short_help="Say what an agent file holds, or what is wrong with it.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def command(file: Path, *, as_json: bool) -> None:
    """Print the modules, sizes and spec of an agent file, or say what is wrong with it (exit code 2)."""
    report = _inspect(file)
    if as_json:
        click.echo(json.dumps(_as_json(report), indent=2))
    else:
        _print(report)


def _inspect(file: Path) -> _Report:
    try:
        model = _engine.Model.load(os.fsencode(file))
        spec = Spec.from_json(model.spec)
    except (AgentFileError, UnsupportedError) as error:
        raise type(error)(f"{file}: {error}") from error
    with safetensors.safe_open(str(file), framework="np") as tensors_of:
        tensors = {name: tuple(tensors_of.get_slice(name).get_shape()) for name in tensors_of.keys()}  # noqa: SIM118
    modules = {name: _summary(model, spec, name, tensors) for name in spec.modules}
    observation_size = math.prod(spec.observation.shape)
    encoder = spec.levels[0].encoder
    return _Report(
        file=str(file),
        bytes=file.stat().st_size,
        spec=spec,
        observation_size=observation_size,
        action_size=spec.actions.size,
        latent_size=modules[encoder].output_size if encoder else observation_size,
        modules=modules,
        tensors=tensors,
    )


def _summary(model: Any, spec: Spec, name: str, tensors: dict[str, tuple[int, ...]]) -> _ModuleSummary:
    level = spec.levels[0]
    roles = {
        **{term.module: term.label for term in spec.cost},
        spec.critic: "critic",
        level.encoder: "encoder",
        level.predictor: "predictor",
        spec.policy: "policy",
    }
    module = spec.modules[name]
    input_size, output_size = model.module_sizes(name)
    blocks = [_block_text(block) for block in module.blocks]
    if module.ensemble > 1:
        blocks[0] = f"{module.ensemble} of: {blocks[0]}"
    if module.residual:
        blocks[-1] += " (+ state)"
    parameters = sum(math.prod(shape) for tensor, shape in tensors.items() if tensor.split(".")[0] == name)
    return _ModuleSummary(
        role=roles[name],
        inputs=module.inputs,
        blocks=tuple(blocks),
        input_size=input_size,
        output_size=output_size,
        parameters=parameters,
        bytes=parameters * BYTES_PER_PARAMETER,
    )


def _block_text(block: Block) -> str:
    match block:
        case Mlp():
            layers = (_words(str(layer.out), layer.norm, layer.activation) for layer in block.layers)
            return "mlp " + " → ".join(layers)
        case Conv():
            convolutions = (
                _words(f"{c.out}×{c.kernel}×{c.kernel}/{c.stride}+{c.padding}", c.activation) for c in block.layers
            )
            return "conv " + " → ".join(convolutions)
        case Impala():
            after = "" if block.preactivation else ", ReLU after the sum"
            return "impala " + " → ".join(map(str, block.channels)) + after
        case Gru():
            norm = {"none": "none", "layer": "layer", "tied": "the encoder's layer"}[block.norm]
            return _words(f"gru {block.hidden}", norm)
        case AdalnTransformer():
            return (
                f"adaln_transformer {block.depth} layers of {block.width}-{block.hidden}, {block.heads} heads of "
                f"{block.head_dim}, window {block.window}"
            )
        case Vit():
            words = f"vit of {block.patch}×{block.patch}, {block.depth} layers of {block.width}, {block.heads} heads"
            return f"{words}, mlp {block.hidden}, {block.pool}"
        case TwoHot():
            return f"two_hot {block.bins} bins, symlog {block.low:g} to {block.high:g}"


def _words(*words: str) -> str:
    return " ".join(word for word in words if word != "none")


def _as_json(report: _Report) -> dict[str, Any]:
    return {
        "file": report.file,
        "bytes": report.bytes,
        "observation_size": report.observation_size,
        "action_size": report.action_size,
        "latent_size": report.latent_size,
        "parameters": sum(module.parameters for module in report.modules.values()),
        "modules": {name: dataclasses.asdict(module) for name, module in report.modules.items()},
        "tensors": {
            name: {"shape": shape, "dtype": "F32", "bytes": math.prod(shape) * BYTES_PER_PARAMETER}
            for name, shape in report.tensors.items()
        },
        "spec": dataclasses.asdict(report.spec),
    }


def _print(report: _Report) -> None:
    console = Console(markup=False, highlight=False, emoji=False)
    spec = report.spec
    level = spec.levels[0]
    observation = spec.observation
    facts = {
        "file": f"{report.file} ({report.bytes:,} bytes)",
        "name": spec.name or "-",
        "version": str(spec.version),
        "observation": f"{_shape(observation.shape)} {observation.dtype}, read as x * {observation.scale:g} + "
        f"{observation.offset:g}",
        "actions": f"one of {spec.actions.count}"
        if spec.actions.kind == "discrete"
        else ", ".join(f"[{low:g}, {high:g}]" for low, high in zip(spec.actions.low, spec.actions.high, strict=True)),
        "state": f"{report.latent_size} (from {level.encoder or 'the observation itself'})",
        "predictor": f"{level.predictor or 'none: a callback rolls out'}, {level.action_block} environment step(s) "
        f"at once{', one held action' if level.hold else ''}",
        "policy": f"{spec.policy}, {spec.policy_head}" if spec.policy else "none",
        "critic": spec.critic or "none",
        "discount": f"{spec.discount:g} per predictor step",
    }
    _print_pairs(console, "Agent", facts)
    _print_rows(
        console,
        "Modules",
        ("module", "role", "inputs", "in", "out", "parameters", "bytes"),
        [
            (
                name,
                module.role,
                ", ".join(module.inputs),
                str(module.input_size),
                str(module.output_size),
                f"{module.parameters:,}",
                f"{module.bytes:,}",
            )
            for name, module in report.modules.items()
        ],
        numbers=4,
    )
    _print_rows(
        console,
        "Blocks",
        ("block", "layers"),
        [(f"{name}.{i}", text) for name, module in report.modules.items() for i, text in enumerate(module.blocks)],
        numbers=0,
    )
    _print_rows(
        console,
        "Tensors (float32)",
        ("tensor", "shape", "parameters", "bytes"),
        [
            (name, _shape(shape), f"{math.prod(shape):,}", f"{math.prod(shape) * BYTES_PER_PARAMETER:,}")
            for name, shape in report.tensors.items()
        ],
        numbers=2,
    )
    _print_rows(
        console,
        "Cost",
        ("term", "metric", "stage", "terminal"),
        [
            (
                term.label if term.label == term.kind else f"{term.label} ({term.kind})",
                term.metric if term.kind == "goal_distance" else "",
                f"{term.stage:g}",
                f"{term.terminal:g}",
            )
            for term in spec.cost
        ],
        numbers=2,
    )
    _print_pairs(console, "Planner", {key: str(value) for key, value in dataclasses.asdict(spec.planner).items()})
    _print_pairs(console, "Provenance", spec.provenance)


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def _print_pairs(console: Console, title: str, pairs: Any) -> None:
    _print_rows(console, title, None, list(pairs.items()), numbers=0)


def _print_rows(
    console: Console, title: str, header: tuple[str, ...] | None, rows: list[tuple[str, ...]], *, numbers: int
) -> None:
    """A table; the last `numbers` columns are aligned right. Nothing where there are no rows."""
    if not rows:
        return
    table = Table(title=title, title_justify="left", show_header=header is not None)
    columns = header or ("",) * len(rows[0])
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i >= len(columns) - numbers else "left", overflow="fold")
    for row in rows:
        # Text, because strings from a file must not be read as markup; line breaks of our own stay.
        table.add_row(*(Text("\n".join(map(printable, cell.split("\n")))) for cell in row))
    console.print(table)
