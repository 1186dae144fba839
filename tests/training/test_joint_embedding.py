"""Self-supervised training on images: the loss, what it learns, resuming, collapse, two processes that are one."""

import json
import os
import subprocess
import sys
import tomllib

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from pyjepa.kernels import sigreg, vicreg  # noqa: E402

import pyjepa  # noqa: E402
from pyjepa.diagnostics import CollapseError, CollapseWarning  # noqa: E402
from pyjepa.errors import InvalidArgumentError  # noqa: E402
from pyjepa.objectives.barlow_twins import barlow_twins  # noqa: E402
from pyjepa.objectives.ema import byol  # noqa: E402
from pyjepa.training import evaluation  # noqa: E402
from pyjepa.training.checkpoint import CheckpointError  # noqa: E402
from pyjepa.training.config import default_config, load_config, validate  # noqa: E402
from pyjepa.training.image_config import ImageConfig  # noqa: E402
from pyjepa.training.images import ImageSet, digits  # noqa: E402
from pyjepa.training.joint_embedding import (  # noqa: E402
    Embeddings,
    ImageRun,
    Objective,
    SplitError,
    build_spec,
    encode,
    split,
    train_images,
)

OBJECTIVES = ("vicreg", "sigreg", "barlow_twins", "ema", "none")


def tiny(kind="vicreg", steps=6, **changes):
    values = tomllib.loads(default_config("digits").read_text())
    values["architecture"] |= {"channels": [8, 16, 16], "encoder_hidden": 32, "latent": 16}
    values["architecture"] |= {"predictor_hidden": [32], "expander": [32, 32]}
    values["optimiser"] |= {"steps": steps, "batch": 32, "warmup": 2}
    values["objective"] |= {"kind": kind, "directions": 32}
    values["log"] |= {"every": 2, "evaluate_every": 3, "checkpoint_every": 2}
    values["alarms"]["grace"] = 1000
    values["alarms"] |= {"effective_rank": 0.0, "std": 0.0, "auroc": 0.0}
    for section, change in changes.items():
        values[section] = {**values[section], **change} if isinstance(change, dict) else change
    return validate(values, "test", schema=ImageConfig)


@pytest.fixture(scope="module")
def sets():
    return split(digits().subset(np.arange(400)), 0.2, 0)


def weights(run):
    return {name: value for name, value in run.network.state_dict().items() if isinstance(value, torch.Tensor)}


# ---- configuration and data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "images"])
def test_the_shipped_configurations_state_every_field(name):
    def keys(values):
        return {key: keys(value) if isinstance(value, dict) else None for key, value in values.items()}

    values = tomllib.loads(default_config(name).read_text())
    assert keys(values) == keys(load_config(default_config(name), schema=ImageConfig).model_dump())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": {"kind": "mae"}}, r"objective\.kind: Input should be 'vicreg'"),
        ({"views": {"scale": 1.0}}, r"views\.scale: Input should be less than 1"),
        ({"architecture": {"paddings": [0, 0, 0]}}, r"architecture\.kernels\[2\]: 3 px on a picture of 2 px"),
        ({"data": {"channels": 2}}, r"data\.channels"),
    ],
)
def test_a_wrong_configuration_names_its_fields(changes, message):
    with pytest.raises(pyjepa.errors.PyjepaError, match=message):
        tiny(**changes)


def test_a_split_holds_out_of_every_class_and_shares_nothing():
    images = digits()
    training, held_out = split(images, 0.2, 3)
    assert (len(training), len(held_out)) == (1437, 360)
    assert np.bincount(held_out.labels).min() >= 34
    together = np.concatenate([training.pixels, held_out.pixels])
    assert sorted(map(bytes, together)) == sorted(map(bytes, images.pixels))


@pytest.mark.parametrize(
    ("counts", "message"),
    [([5, 1], "class b has 1 image: two are needed"), ([2, 2], "4 images cannot be split at 0.2")],
)
def test_too_few_images_are_a_named_error(counts, message):
    labels = np.repeat(np.arange(len(counts)), counts)
    images = ImageSet("some", np.zeros((len(labels), 1, 8, 8), np.uint8), labels, ("a", "b"))
    with pytest.raises(SplitError, match=message):
        split(images, 0.2, 0)


def test_a_batch_must_be_filled(sets):
    training, held_out = sets
    config = tiny()
    with pytest.raises(SplitError, match=r"20 images to train on do not fill optimiser\.batch 32"):
        ImageRun(build_spec(config, training), config, training.subset(np.arange(20)), held_out)


# ---- the loss -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_the_objective_by_its_parts(kind):
    torch.manual_seed(0)
    e, targets = Embeddings(*torch.randn(4, 16, 6).unbind()), tuple(torch.randn(2, 16, 6).unbind())
    config = tiny(kind)

    def compared(guess, target):
        return byol(*((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (guess, target)))

    loss, terms = Objective(config, None)(e, targets)
    error = (((e.predicted_x - e.x) ** 2).mean() + ((e.predicted_y - e.y) ** 2).mean()) / 2
    expected = {
        "none": error,
        "vicreg": (vicreg(e.predicted_x, e.x).loss + vicreg(e.predicted_y, e.y).loss) / 2,
        "sigreg": 0.98 * error + 0.01 * (sigreg(e.x, directions=32, seed=0) + sigreg(e.y, directions=32, seed=1)),
        "barlow_twins": (barlow_twins(e.predicted_x, e.x) + barlow_twins(e.predicted_y, e.y)) / 2,
        "ema": (compared(e.predicted_x, targets[0]) + compared(e.predicted_y, targets[1])) / 2,
    }[kind]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert terms["prediction"].item() == pytest.approx(error.item(), rel=1e-6)


def test_the_predictor_is_told_the_way(sets):
    config = tiny()
    run = ImageRun(build_spec(config, sets[0]), config, *sets)
    x, y = torch.rand(2, 5, 1, 8, 8).mul(255).unbind()
    actions = torch.rand(5, 6)
    e = run.network(x, y, actions)
    model, expander = run.model, run.network.expander
    assert torch.allclose(e.x, expander(model.encode(x)), atol=1e-5)
    assert torch.allclose(e.predicted_y, expander(model.step(model.encode(x), actions)), atol=1e-5)
    assert torch.allclose(e.predicted_x, expander(model.step(model.encode(y), -actions)), atol=1e-5)


# ---- the run --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sigreg", "ema"])
def test_an_interrupted_and_resumed_run_ends_with_the_same_bits(sets, tmp_path, kind):
    config = tiny(kind)
    straight = train_images(config, *sets)
    checkpoint = tmp_path / "checkpoint.pt"
    ImageRun(build_spec(config, sets[0]), config, *sets).run(until=3, checkpoint=checkpoint)
    resumed = train_images(config, *sets, run_directory=tmp_path, resume=True)
    for name, value in weights(straight).items():
        assert torch.equal(value, weights(resumed)[name]), name
    assert resumed.history[-1]["diagnostics/energy_auroc"] == straight.history[-1]["diagnostics/energy_auroc"]
    with pytest.raises(FileExistsError, match="resume that run"):
        train_images(config, *sets, run_directory=tmp_path)
    with pytest.raises(CheckpointError, match=r"another configuration: objective\.kind"):
        train_images(tiny("vicreg"), *sets, run_directory=tmp_path, resume=True)


def test_every_image_is_seen_once_an_epoch(sets):
    config = tiny(optimiser={"steps": 40, "batch": 64})
    run = ImageRun(build_spec(config, sets[0]), config, *sets)
    per_epoch = len(sets[0]) // 64
    first, second = (np.concatenate(list(run.batches(k * per_epoch, (k + 1) * per_epoch))) for k in (0, 1))
    assert len(np.unique(first)) == len(first) == 64 * per_epoch
    assert first.tolist() != second.tolist()


def test_a_joint_embedding_without_a_cure_collapses_and_is_stopped(sets):
    alarms = {"grace": 0, "action": "stop", "effective_rank": 4.0, "std": 0.01, "auroc": 0.0}
    log = {"every": 50, "evaluate_every": 50, "checkpoint_every": 500}
    config = tiny("none", 400, alarms=alarms, log=log)
    with pytest.warns(CollapseWarning), pytest.raises(CollapseError, match="shrinking to a point"):
        train_images(config, *sets)


@pytest.mark.parametrize("kind", ["vicreg", "sigreg", "barlow_twins", "ema"])
def test_each_cure_prevents_it(sets, kind):
    run = train_images(tiny(kind, 250, log={"every": 50, "evaluate_every": 250, "checkpoint_every": 500}), *sets)
    assert run.figures["effective_rank"] > 3
    assert run.figures["dead"] == 0
    assert run.figures["energy_auroc"] > 0.6


def test_what_is_learnt_beats_random_weights_and_the_engine_runs_it(sets, tmp_path):
    training, held_out = sets
    log = {"every": 50, "evaluate_every": 150, "checkpoint_every": 500}
    run = train_images(tiny("vicreg", 150, log=log), *sets)
    labels = (training.labels, held_out.labels)
    found = [
        evaluation.linear_probe(encode(model, training), labels[0], encode(model, held_out), labels[1])
        for model in (run.model, evaluation.untrained(run.config, training))
    ]
    assert found[0] > 0.85
    assert found[0] > found[1] + 0.03
    run.model.export(tmp_path / "images.safetensors")
    agent = pyjepa.load(tmp_path / "images.safetensors")
    states = agent.model.encode(held_out.pixels[:4])
    assert np.allclose(states, encode(run.model, held_out.subset(np.arange(4))), atol=1e-4)


def test_random_weights_are_those_that_training_starts_from(sets):
    config = tiny()
    run = ImageRun(build_spec(config, sets[0]), config, *sets)
    for name, value in evaluation.untrained(config, sets[0]).state_dict().items():
        assert torch.equal(value, run.model.state_dict()[name]), name


# ---- evaluation -----------------------------------------------------------------------------------------------------


def test_probes_find_what_is_there_and_nothing_else():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    told = np.eye(3)[labels] @ rng.normal(size=(3, 8)) * 100 + rng.normal(size=(300, 8))
    silent = rng.normal(size=(300, 8))
    for probe in (evaluation.linear_probe, evaluation.nearest_neighbours):
        assert probe(told[:200], labels[:200], told[200:], labels[200:]) == 1.0
        assert probe(silent[:200], labels[:200], silent[200:], labels[200:]) < 0.5


def test_principal_components_are_those_of_the_training_features():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 2)) @ rng.normal(size=(2, 6)) + 1e-3 * rng.normal(size=(200, 6))
    training, test = evaluation.principal_components(features[:150], features[150:])
    assert training.shape[1] <= 2
    assert test.shape == (50, training.shape[1])
    assert np.allclose(training.mean(0), 0, atol=1e-9)


def test_heads_learn_classes_and_numbers():
    torch.manual_seed(0)
    states = torch.randn(200, 5) * 10 + 3
    classes, numbers = (states[:, 0] > 3).long(), (states @ torch.randn(5, 2)) / 10
    head = evaluation.PredictionHead(5, 2)
    evaluation.fit_head(head, states[:150], classes[:150])
    assert (head(states[150:]).argmax(1) == classes[150:]).float().mean() > 0.9
    head = evaluation.PredictionHead(5, 2, hidden=32)
    assert evaluation.fit_head(head, states[:150], numbers[:150]) < 0.1 * numbers.var()


def test_a_head_reads_predicted_states_too(sets):
    still = dict.fromkeys(("shift", "rotation", "scale", "shear", "elastic", "flip", "brightness", "noise"), 0.0)
    config = tiny(views=still)
    model = evaluation.untrained(config, sets[0])
    last = [p for name, p in model.named_parameters() if name.startswith("predictor.0.linear1")]
    assert len(last) == 2
    changed = evaluation.head_accuracies(model, config, *sets)
    with torch.no_grad():
        for parameter in last:
            parameter.zero_()  # the predictor then says that nothing changes, which is true of these views
    same = evaluation.head_accuracies(model, config, *sets)
    assert same["encoded"] == same["predicted"] == changed["encoded"] > 0.5
    assert changed["predicted"] < same["predicted"]


def test_nothing_can_be_probed_without_labels(sets):
    training, held_out = (ImageSet(part.path, part.pixels, None) for part in sets)
    config = tiny()
    with pytest.raises(InvalidArgumentError, match="without labels"):
        evaluation.compare(evaluation.untrained(config, training), config, training, held_out)
    with pytest.raises(InvalidArgumentError, match="two classes or more"):
        evaluation.linear_probe(np.zeros((4, 2)), np.zeros(4), np.zeros((1, 2)), np.zeros(1))


# ---- two processes --------------------------------------------------------------------------------------------------

WORKER = """
import json, sys, torch
from datetime import timedelta
from torch import distributed
from pyjepa.training.config import validate
from pyjepa.training.image_config import ImageConfig
from pyjepa.training.images import digits
from pyjepa.training.joint_embedding import ImageRun, build_spec, split
import numpy as np
rank, store, configs = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
distributed.init_process_group(
    "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=240)
)
sets = split(digits().subset(np.arange(400)), 0.2, 0)
results = []
for values in configs:
    config = validate(values, "worker", schema=ImageConfig)
    run = ImageRun(build_spec(config, sets[0]), config, *sets)
    loss, terms = run.losses(next(run.batches(0, 1)))
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in run.network.parameters()])
    results.append((terms, gradient, sum(p.numel() for p in run.network.parameters())))
    run.run()
    results[-1] += (run.history[-1]["loss/total"],)
torch.save(results, f"{store}.{rank}")
distributed.destroy_process_group()
"""


def test_two_processes_are_one(sets, tmp_path):
    configs = [tiny(kind, 3) for kind in OBJECTIVES]
    values = json.dumps([config.model_dump() for config in configs])
    store = tmp_path / "store"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(store), values],
            cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]  # fmt: skip
    errors = [run.communicate()[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors
    found = [torch.load(f"{store}.{rank}") for rank in range(2)]
    for index, config in enumerate(configs):
        alone = ImageRun(build_spec(config, sets[0]), config, *sets)
        loss, terms = alone.losses(next(alone.batches(0, 1)))
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in alone.network.parameters()])
        alone.run()
        for rank in found:
            their_terms, their_gradient, size, last = rank[index]
            assert their_terms == pytest.approx(terms, rel=1e-5)
            assert size == len(gradient)
            error = (their_gradient - gradient).norm()
            assert error <= 1e-5 * gradient.norm(), config.objective.kind
            # AdamW divides by a gradient's size: where that is rounding alone, its steps are, too.
            assert last == pytest.approx(alone.history[-1]["loss/total"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["vicreg", "sigreg"])
def test_the_shipped_recipe_beats_pixels_and_random_weights(kind):
    training, held_out = split(digits(), 0.2, 0)
    config = load_config(default_config("digits"), {"objective.kind": kind}, schema=ImageConfig)
    run = train_images(config, training, held_out)
    found = evaluation.compare(run.model, config, training, held_out)
    assert run.alarms == []
    assert found["jepa"].linear >= 0.97
    assert found["jepa"].linear > found["pixels"].linear
    assert found["jepa"].few >= found["random weights"].few + 0.05
