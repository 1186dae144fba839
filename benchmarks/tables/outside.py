"""The world outside: what `pyjepa train` wrote of a flight, of stable-worldmodel's and of Gymnasium's environments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tables.planners import percent
from tables.planning import load, markdown, milliseconds

TITLES = {"persistence": "nothing changes", "ridge": "ridge regression", "model": "the model, mean of its seeds"}


def prediction(results: Path) -> str:
    """Errors 30 s ahead beside the baselines."""
    document = load(results, "a320")
    sensors = list(document["units"])
    rows = [[title, *(f"{document[key][s]:.3g}" for s in sensors)] for key, title in TITLES.items()]
    rows += [[f"seed {i}", *(f"{row[s]:.3g}" for s in sensors)] for i, row in enumerate(document["seeds"])]
    rows.append(
        ["the agent in the file (without the validation blocks)", *(f"{document['agent'][s]:.3g}" for s in sensors)]
    )
    about = (
        f"Root mean squared error 30 s ahead, {document['windows']:,} windows of held-out blocks; torch "
        f"{document['machine']['torch']}, one thread.\n"
    )
    return about + "\n" + markdown(["", *(f"{s}, {document['units'][s]}" for s in sensors)], rows)


def choices(results: Path) -> str:
    """What validation chose among."""
    document = load(results, "a320")
    rows = []
    for tried in document["choices"]:
        settings, found = tried["settings"], tried["validation"]
        chosen = " (chosen)" if settings == document["settings"] else ""
        rows.append([
            f"{settings['latent']}, {settings['weight_decay']:g}, {settings['shift']:g}{chosen}",
            *(f"{found[s]:.3g}" for s in document["units"]), f"{tried['relative']:.3f}",
        ])  # fmt: skip
    headings = [
        "latent, weight decay, shift",
        *(f"{s}, {u}" for s, u in document["units"].items()),
        "mean, in tolerances",
    ]
    return markdown(headings, rows)


def plans(results: Path) -> str:
    """Plans under the model."""
    found = load(results, "a320")["plans"]
    change = found["change"]
    titles = {
        "flown": "what the flight had",
        "asked": f"{change['altitude']:+g} ft, {change['CAS']:+g} kt",
    }
    rows = []
    for key, title in titles.items():
        row = found[key]
        rows.append([
            title, f"{row['altitude_ft_median']:.0f} ({row['altitude_ft_p90']:.0f})",
            f"{row['CAS_kt_median']:.1f} ({row['CAS_kt_p90']:.1f})", percent(row["met"]), percent(row["kept_met"]),
            ", ".join(f"{name} {value:.3g}" for name, value in row["controls_differ"].items()),
        ])  # fmt: skip
    about = (
        f"{found['starts']} starts in held-out blocks, {found['horizon_s']} s ahead; median (90th percentile) of what "
        f"a plan misses its target by, under the model; a plan takes {milliseconds(found['plan_cpu_ms_p50'])} ms "
        f"of one core (p99 {milliseconds(found['plan_cpu_ms_p99'])}).\n"
    )
    headings = [
        "target",
        "altitude, ft",
        "CAS, kt",
        "met",
        "met by keeping the controls",
        "controls differ from the flown",
    ]
    return about + "\n" + markdown(headings, rows)


def surprise(results: Path) -> str:
    """Alarms."""
    found = load(results, "a320")["surprise"]

    def seconds(value: float | None) -> str:
        return "" if value is None else f"{value:.0f}"

    rows = [
        [f["fault"], f"{f['noticeable_found']} of {f['noticeable']}", f"{f['found']} of {f['blocks']}",
         seconds(f["delay_s_median"]), seconds(f["delay_s_max"])]
        for f in found["faults"]
    ]  # fmt: skip
    about = (
        f"Energy over {found['steps'] * 5} s, threshold at its {found['quantile']:g} quantile on validation blocks. "
        f"Without a fault: {found['false_alarms']} alarms in {found['hours']:.2f} h, "
        f"{found['false_alarms_per_hour']:.1f} an hour.\n"
    )
    return (
        about
        + "\n"
        + markdown(["fault", "found where it shows", "found in all", "median delay, s", "longest, s"], rows)
    )


def plot(results: Path, path: Path) -> None:
    """Predictions for a held-out block, and its energies with and without faults."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    document: dict[str, Any] = load(results, "a320")
    stretch, example = document["stretch"], document["example"]
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.2))
    for i, name in enumerate(stretch["names"]):
        axes[i].plot(stretch["observed_at"], [row[i] for row in stretch["observed"]], label="observed")
        axes[i].plot(
            stretch["predicted_at"], [row[i] for row in stretch["predicted"]], "o", ms=3, label="predicted 30 s before"
        )
        axes[i].set(title=f"{name}, {document['units'][name]}", xlabel="s")
    axes[0].legend()
    for name, energies in example["energies"].items():
        axes[3].semilogy(example["seconds"], energies, label=name)
    axes[3].axhline(example["threshold"], color="black", lw=0.8, ls="--")
    axes[3].axvline(example["onset"], color="grey", lw=0.8, ls=":")
    axes[3].set(title="surprise", xlabel="s")
    axes[3].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def two_room(results: Path) -> str:
    """Success beside policies and what others published."""
    document = load(results, "swm-two-room")
    rows = [["random actions", f"{document['random']:.0f}", ""], ["its expert", f"{document['expert']:.0f}", ""]]
    rows += [[f"{name}, as published", f"{value:.0f}", ""] for name, value in document["published"].items()]
    for row in document["seeds"]:
        tried = ", ".join(f"{reach['success']:.0f} ({reach['reach']:g})" for reach in row["calibration"])
        rows.append([
            f"pyjepa, seed {row['seed']} (probe {row['probe_px']:.1f} px of 224), reach {row['reach']:g}",
            f"{row['success']:.0f}", tried,
        ])  # fmt: skip
    rows.append(["pyjepa, mean", f"{document['success']:.1f}", ""])
    about = (
        f"Goals reached, in percent of {document['episodes']}: pictures {document['goal_offset']} steps later in "
        f"episodes of the undisturbed expert, {document['budget']} steps allowed; planned by {document['planner']}. "
        f"Beside it what each reach gave on {document['calibrated_on']} other starts, which chose among them.\n"
    )
    return about + "\n" + markdown(["", "%", "before, % (with reach)"], rows)


def solvers(results: Path) -> str:
    """The same planners of two libraries on the same weights."""
    document = load(results, "swm-two-room")
    machine = document["machine"]
    rows = [
        [row["planner"], row["impl"], f"{row['success']:.0f}", milliseconds(row["plan_cpu_ms_p50"]),
         milliseconds(row["plan_cpu_ms_p99"])]
        for row in document["compared"]
    ]  # fmt: skip
    about = f"{machine['cpu']}, one thread, {machine['isa']}, torch {machine['torch']}.\n"
    return about + "\n" + markdown(["planner", "of", "goals, %", "a plan, CPU ms", "p99"], rows, left=2)


def plot_solvers(results: Path, path: Path) -> None:
    """Success over the time that a plan takes."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = load(results, "swm-two-room")["compared"]
    figure, axis = plt.subplots(figsize=(5, 3.2))
    for impl in dict.fromkeys(row["impl"] for row in rows):
        own = [row for row in rows if row["impl"] == impl]
        axis.semilogx([row["plan_cpu_ms_p50"] for row in own], [row["success"] for row in own], "o", label=impl)
        for row in own:
            axis.annotate(
                row["planner"], (row["plan_cpu_ms_p50"], row["success"]), xytext=(4, 4), textcoords="offset points"
            )
    axis.set(xlabel="a plan, CPU ms", ylabel="goals reached, %", ylim=(0, 105))
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


GAMES = ("reacher", "cartpole")
"""What results there are of `pyjepa train --env`."""


def games(results: Path) -> str:
    """What agents earn from pictures beside random actions, none, and those who know the true state."""
    documents = [load(results, name) for name in GAMES]

    def earned(row: dict[str, float] | None) -> str:
        return "" if row is None else f"{row['mean']:.1f} ± {row['std']:.1f}"

    rows = []
    for document in documents:
        random, oracle = document["random"]["mean"], document["oracle"]["mean"]
        rows.append([
            document["environment"], str(document["episodes"]), earned(document["random"]),
            earned(document.get("still")), earned(document["agent"]), earned(document["oracle"]),
            percent((document["agent"]["mean"] - random) / (oracle - random)), f"{document['cpu_seconds'] / 60:.0f}",
            milliseconds(document.get("plan_cpu_ms_p50")), milliseconds(document.get("plan_cpu_ms_p99")),
        ])  # fmt: skip
    machine = documents[0]["machine"]
    about = (
        f"What a game earns, mean and deviation. {machine['cpu']}, one thread, {machine['isa']}, "
        f"torch {machine['torch']}, Gymnasium {machine['gymnasium']}.\n"
    )
    headings = [
        "", "games", "random", "no action", "agent", "oracle", "agent's share of the way from random to the oracle",
        "CPU minutes", "a plan, CPU ms", "p99",
    ]  # fmt: skip
    tried = []
    for document in (each for each in documents if "tried" in each):
        means = ", ".join(f"{each['mean']:.1f} ({each['horizon']})" for each in document["tried"])
        tried.append(
            f"\nBy horizon, the agent of {document['environment']} earned in {document['settings']['trials']} other "
            f"games, which chose among them: {means}.\n"
        )
    return about + "\n" + markdown(headings, rows) + "".join(tried)


def plot_games(results: Path, path: Path) -> None:
    """Every game's return, sorted, between random actions and the oracle."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(GAMES), figsize=(4.8 * len(GAMES), 3.2), squeeze=False)
    for axis, name in zip(axes[0], GAMES, strict=True):
        document = load(results, name)
        axis.plot(sorted(document["agent"]["returns"]), label="agent")
        for other, style in (("random", ":"), ("still", "-."), ("oracle", "--")):
            if other in document:
                label = {"still": "no action"}.get(other, other) + ", mean"
                axis.axhline(document[other]["mean"], color="grey", lw=0.9, ls=style, label=label)
        axis.set(title=document["environment"], xlabel="games, sorted", ylabel="return")
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


TABLES = {
    "games": games,
    "swm-two-room": two_room,
    "swm-solvers": solvers,
    "a320": prediction,
    "a320-choices": choices,
    "a320-plans": plans,
    "a320-surprise": surprise,
}
PLOTS = {
    "docs/results/a320.png": plot,
    "docs/results/swm-two-room.png": plot_solvers,
    "docs/results/games.png": plot_games,
}
