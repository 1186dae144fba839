"""What representations learned from images are worth: linear probe, k-NN and ten labels a class, beside raw pixels, PCA
and the same network with random weights.

Run: python benchmarks/images.py [--splits 5] [--objectives vicreg sigreg] [--json benchmarks/results/images.json]

scikit-learn's digits in stratified 80/20 splits. Training sees the training images alone, and no labels; the probes'
regularisation, k and the number of components are cross-validated within them. The recipe (the shipped configuration)
was chosen on validation images from within the first split's training images.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyjepa.atomic import write_text
from pyjepa.bench.machine import describe
from pyjepa.training.config import default_config, load_config
from pyjepa.training.evaluation import compare, head_accuracies
from pyjepa.training.image_config import ImageConfig
from pyjepa.training.images import digits
from pyjepa.training.joint_embedding import train_images

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    from rich.progress import track
    from sklearn.model_selection import StratifiedShuffleSplit

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--objectives", nargs="+", default=["vicreg", "sigreg"])
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "images.json")
    options = parser.parse_args()
    images = digits()
    splitter = StratifiedShuffleSplit(options.splits, test_size=0.2, random_state=0)
    load_before = round(os.getloadavg()[0], 2)
    rows: list[dict[str, Any]] = []
    splits = list(splitter.split(np.zeros(len(images)), images.labels))
    for split, (training_rows, test_rows) in enumerate(track(splits, description="splits")):
        training, test = images.subset(np.sort(training_rows)), images.subset(np.sort(test_rows))
        for objective in options.objectives:
            overrides = {"objective.kind": objective, "seed": split}
            config = load_config(default_config("digits"), overrides, schema=ImageConfig)
            run = train_images(config, training, test)
            probes = compare(run.model, config, training, test, baselines=objective == options.objectives[0])
            common = {"split": split, "objective": objective}
            for name, worth in probes.items():
                labels = common if name == "jepa" else {"split": split, "objective": None}
                rows.append({**labels, "features": name, **worth.as_dict()})
            own = next(row for row in rows if row["features"] == "jepa" and row.items() >= common.items())
            own |= {"heads": head_accuracies(run.model, config, training, test), "seconds": round(run.seconds, 1)}
            own |= {"effective_rank": run.figures["effective_rank"], "alarms": len(run.alarms)} if run.figures else {}
            document = {
                "machine": {**describe(), "torch": torch.__version__, "threads": config.threads},
                "load_before": load_before,
                "load_after": round(os.getloadavg()[0], 2),
                "steps": config.optimiser.steps,
                "batch": config.optimiser.batch,
                "images": {"training": len(training), "test": len(test)},
                "rows": rows,
            }
            write_text(options.json, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
