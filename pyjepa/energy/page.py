"""The page that `pyjepa energy-lab` writes: one HTML file, pictures included."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np

from pyjepa.energy.collapse import LEAST_GAP, LEAST_RANK, LIMITS
from pyjepa.energy.densities import DENSITIES, plane
from pyjepa.energy.lab import MAP_SIDE, Figures, Settings, Unit, summary
from pyjepa.energy.methods import METHODS
from pyjepa.energy.recipes import Digits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .25rem .6rem; border-bottom: 1px solid #ddd }
th { text-align: left } td.number { text-align: right; font-variant-numeric: tabular-nums }
.bad { color: #b00020 } .good { color: #18703a } img { max-width: 100%; height: auto } code { font-size: 90% }
"""

NAMES = {
    "joint_none": "joint embedding, un-regularised",
    "joint_vicreg": "joint embedding + VICReg",
    "joint_sigreg": "joint embedding + SIGReg",
    "joint_ema": "joint embedding, EMA target (BYOL)",
    "autoencoder": "auto-encoder, code wider than y",
    "generative_z": "generative, z unlimited",
    "prediction": "deterministic prediction",
    "generative_discrete": "generative, z discrete (16 codes)",
    "generative_low_dimensional": "generative, z of 2 dimensions",
    "generative_sparse": "generative, z sparse",
    "generative_noisy": "generative, z noisy",
}


def page(found: dict[Unit, Figures], settings: Settings) -> str:
    """The whole document."""
    results = summary(found)
    methods = {key: figures for (kind, key), figures in found.items() if kind == "methods"}
    collapsed = {name: figures for (kind, name), figures in found.items() if kind == "collapse"}
    sigmas = "; ".join(f"{d.name}, σ = {', '.join(f'{s:g}' for s in dict.fromkeys(d.sigmas))}" for d in DENSITIES)
    noise = Digits().noise
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Energy lab</title><style>{STYLE}</style></head><body>
<h1>Energy lab</h1>
<p>Every contrastive method of the paper's Table 1, and the four architectures with and without what keeps them from
collapsing: trained and measured here. Seed {settings.seed}; {settings.plane_steps} steps on the plane,
{settings.digits_steps} on digits, {settings.collapse_steps} for an architecture. All verdicts are computed.</p>
<h2>Methods</h2>
<p>Densities: {html.escape(sigmas)}. Negative log-likelihoods are integrated numerically; only rows 1 to 4 try to reach
the truth. AUROC: data against data with Gaussian noise (σ 1 on the plane, {noise:g} on digits), the least over
densities and digits; the density itself reaches {_best(methods):.3f}. Rank: RankMe of the energy's features on
digits.</p>
{_methods_table(results, methods)}
{_picture(_maps(methods), "The energies on the plane, darker is lower; on the left the true -log p")}
<h3>Digits: the right half from the left</h3>
<p>Of the right half the upper part is given, the lower was found by descending the energy.</p>
{_picture(_digits(methods, settings), "Completed digits, one row a method")}
<h2>Collapse</h2>
<p>A representation has collapsed where its rank is below {LEAST_RANK:g}; an energy that is measured in the space of y
has where corruption raises it by less than {LEAST_GAP:g} of the corruption's own squared size.</p>
{_collapse_table(collapsed)}
{_picture(_ranks(collapsed), "Rank along the training, and covariance spectra at its end")}
</body></html>
"""


def _methods_table(results: dict[str, Any], methods: dict[str, Figures]) -> str:
    truth = _truth(methods)
    rows = []
    for key, result in results["methods"].items():
        method = METHODS[key]
        good = result["verdict"].startswith(("matches", "separates"))
        rows.append(
            f"<tr><td>{key}</td><td>{html.escape(method.name)}</td><td><code>{html.escape(method.formula)}</code></td>"
            f"<td>{html.escape(method.contrast)}</td>"
            + "".join(
                f'<td class="number">{value}</td>'
                for value in (
                    f"{result['nll']:.2f}",
                    f"{result['auroc']:.3f}",
                    f"{result['effective_rank']:.1f}",
                    f"{result['seconds']:.0f}",
                )
            )
            + f'<td class="{"good" if good else "bad"}">{html.escape(result["verdict"])}</td></tr>'
        )
    return (
        f"<table><tr><th>#</th><th>method</th><th>loss</th><th>ŷ from</th><th>NLL (truth {truth:.2f})</th>"
        f"<th>AUROC</th><th>rank</th><th>s</th><th>verdict</th></tr>{''.join(rows)}</table>"
    )


def _collapse_table(collapsed: dict[str, Figures]) -> str:
    rows = []
    for name, figures in collapsed.items():
        gap = figures["relative_gap"]
        bad = figures["verdict"] == "collapsed"
        rows.append(
            f"<tr><td>{html.escape(NAMES[name])}</td>"
            f'<td class="number">{figures["effective_rank"]:.1f} of {figures["dimensions"]}</td>'
            f'<td class="number">{"" if gap is None else f"{gap:z.2f}"}</td>'
            f'<td class="{"bad" if bad else "good"}">{figures["verdict"]}</td></tr>'
        )
    return (
        "<table><tr><th>architecture</th><th>effective rank</th><th>energy gap</th><th>verdict</th></tr>"
        f"{''.join(rows)}</table>"
    )


def _truth(methods: dict[str, Figures]) -> float:
    tasks = next(iter(methods.values()))["tasks"].values()
    return float(np.mean([task["true_nll"] for task in tasks if "true_nll" in task]))


def _best(methods: dict[str, Figures]) -> float:
    tasks = next(iter(methods.values()))["tasks"].values()
    return float(min(task["best_auroc"] for task in tasks if "best_auroc" in task))


def _maps(methods: dict[str, Figures]) -> Figure:
    plt = _plt()
    columns = 1 + len(methods)
    figure: Figure
    figure, axes = plt.subplots(
        len(DENSITIES), columns, figsize=(1.5 * columns, 1.7 * len(DENSITIES)), squeeze=False, layout="constrained"
    )
    for row, density in zip(axes, DENSITIES, strict=True):
        truth = -density.log_density(plane(density.box, MAP_SIDE)).numpy()
        maps = {"truth": truth} | {key: np.array(f["tasks"][density.name]["energy"]) for key, f in methods.items()}
        for axis, (name, values) in zip(row, maps.items(), strict=True):
            # From the lowest energy to the middle one: beyond, rows differ in what they never had to say.
            axis.imshow(
                values.reshape(MAP_SIDE, MAP_SIDE).T,
                origin="lower",
                cmap="viridis",
                vmin=values.min(),
                vmax=np.median(values),
            )
            axis.set(title=name, xticks=[], yticks=[])
        row[0].set_ylabel(density.name)
    return figure


def _digits(methods: dict[str, Figures], settings: Settings) -> Figure:
    plt = _plt()
    x, y = (part[:6].numpy() for part in Digits(settings.seed).test())
    rows = {"data": y} | {key: np.array(f["tasks"]["digits"]["completed"]) for key, f in methods.items()}
    figure: Figure
    figure, axes = plt.subplots(
        len(rows), len(x), figsize=(0.8 * len(x), 0.8 * len(rows)), squeeze=False, layout="constrained"
    )
    for line, (name, right) in zip(axes, rows.items(), strict=True):
        for axis, left, found in zip(line, x, right, strict=True):
            axis.imshow(np.hstack([left.reshape(8, 4), found.reshape(8, 4)]), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


def _ranks(collapsed: dict[str, Figures]) -> Figure:
    plt = _plt()
    figure: Figure
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, figures in collapsed.items():
        if name in LIMITS:
            continue
        steps, ranks = zip(*figures["ranks"], strict=True)
        left.plot(steps, ranks, label=NAMES[name])
        if name.startswith("joint"):
            spectrum = np.array(figures["spectrum"])
            right.semilogy(np.arange(1, len(spectrum) + 1), np.maximum(spectrum, 1e-12), label=NAMES[name])
    left.axhline(1, color="black", linewidth=0.5)
    left.set(xlabel="step", ylabel="effective rank (RankMe)", yscale="log")
    left.legend(fontsize=8)
    right.set(xlabel="index", ylabel="eigenvalue of the covariance")
    right.legend(fontsize=8)
    return figure


def _picture(figure: Figure, description: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    _plt().close(figure)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<p><img alt="{html.escape(description)}" src="data:image/png;base64,{data}"></p>'


def _plt() -> Any:
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt
