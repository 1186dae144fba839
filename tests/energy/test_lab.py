"""`pyjepa energy-lab`: a short run of it all; what its verdicts and its folder do. The whole of it is marked slow."""

import json
import re

import pytest
from click.testing import CliRunner

from pyjepa.cli import main

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from pyjepa.energy import collapse, lab  # noqa: E402
from pyjepa.energy.methods import METHODS  # noqa: E402
from pyjepa.energy.page import page  # noqa: E402
from pyjepa.energy.recipes import Digits, Plane, learner, train  # noqa: E402
from pyjepa.errors import InvalidArgumentError, NonFiniteEnergyError  # noqa: E402

SHORT = lab.Settings(seed=0, plane_steps=2, digits_steps=2, collapse_steps=2)
JOINT = ("joint_none", "joint_vicreg", "joint_sigreg", "joint_ema")
SEVEN = [*JOINT, "autoencoder", "generative_z", "prediction"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder and results of a run of two methods."""
    folder = tmp_path_factory.mktemp("lab") / "out"
    return folder, lab.run(folder, methods=("10", "5"), settings=SHORT)


def test_results_have_exactly_these_keys(run):
    folder, results = run
    assert results == json.loads((folder / "results.json").read_text())
    assert set(results) == {"methods", "collapse"}
    assert list(results["methods"]) == ["5", "10"]
    for row in results["methods"].values():
        assert set(row) == {"verdict", "effective_rank", "nll", "auroc", "seconds"}
        assert all(isinstance(row[name], float) for name in set(row) - {"verdict"})
        assert 0 <= row["auroc"] <= 1
    assert list(results["collapse"]) == SEVEN
    for row in results["collapse"].values():
        assert set(row) == {"effective_rank", "verdict"}
        assert row["verdict"] in ("collapsed", "not collapsed")
    details = json.loads((folder / "details.json").read_text())
    assert details["settings"]["seed"] == 0
    assert set(details["collapse"]) == set(collapse.UNITS)
    assert {"true_nll", "best_auroc"} <= set(details["methods"]["5"]["tasks"]["ring of 6"])


def test_a_run_goes_on_where_it_stopped_and_gives_the_same_again(run, tmp_path):
    folder, results = run
    seen = []
    again = lab.run(
        folder, methods=("5", "6a"), settings=SHORT, done=lambda unit, _, before: seen.append((unit, before))
    )
    assert {unit for unit, before in seen if not before} == {("methods", "6a")}
    assert again["methods"]["5"] == results["methods"]["5"]
    assert again["collapse"] == results["collapse"]
    fresh = lab.run_unit(("methods", "5"), SHORT)
    assert fresh["tasks"] == lab.load(folder, ["5"])[("methods", "5")]["tasks"]


def test_other_settings_and_other_folders_are_refused(run, tmp_path):
    folder, _ = run
    with pytest.raises(InvalidArgumentError, match="other settings"):
        lab.run(folder, methods=("5",), settings=lab.Settings(seed=1))
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InvalidArgumentError, match="something else"):
        lab.run(tmp_path, methods=("5",), settings=SHORT)
    with pytest.raises(InvalidArgumentError, match="no method 11, 12"):
        lab.run(tmp_path / "new", methods=("5", "12", "11"), settings=SHORT)
    with pytest.raises(InvalidArgumentError, match="no method chosen"):
        lab.run(tmp_path / "new", methods=(), settings=SHORT)
    with pytest.raises(InvalidArgumentError, match="at least one step"):
        lab.Settings(plane_steps=0)
    with pytest.raises(InvalidArgumentError, match="no method '11'"):
        learner("11", Digits(), torch.Generator())


def test_the_page_holds_its_pictures_and_reaches_for_nothing(run):
    folder, _ = run
    text = page(lab.load(folder, ("5", "10")), SHORT)
    assert text.count('src="data:image/png;base64,') == 3
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert all(METHODS[key].name in text for key in ("5", "10"))
    assert text.count("<td>") > 10


def test_the_command_writes_everything_and_says_what_it_found(run, monkeypatch):
    folder, _ = run
    monkeypatch.setattr(lab, "Settings", lambda seed=0: SHORT)
    found = CliRunner().invoke(main, ["energy-lab", "--out", str(folder), "--methods", "10, 5", "--workers", "1"])
    assert found.exit_code == 0, found.output
    assert (folder / "index.html").read_text().startswith("<!doctype html>")
    assert "joint_none" in found.output
    assert "Denoising AE" in found.output
    bad = CliRunner().invoke(main, ["energy-lab", "--out", str(folder), "--methods", "13"])
    assert bad.exit_code == 2
    assert "no method 13" in bad.output


def test_an_energy_that_is_no_number_names_the_unit(monkeypatch):
    def broken(name, *rest, **options):
        raise NonFiniteEnergyError("energy: 3 of 4 values are not finite")

    monkeypatch.setattr(collapse, "run", broken)
    with pytest.raises(NonFiniteEnergyError, match="collapse joint_none: energy: 3 of 4"):
        lab.run_unit(("collapse", "joint_none"), SHORT)


def test_verdicts_follow_the_figures():
    def figures(nats, auroc):
        return {"tasks": {"a": {"nll": 1.0 + nats, "true_nll": 1.0, "auroc": auroc}, "digits": {"auroc": 0.99}}}

    assert lab.verdict("1", figures(0.09, 0.1)).startswith("matches")
    assert lab.verdict("1", figures(0.11, 1.0)).startswith("misses")
    assert lab.verdict("3", figures(0.29, 0.1)).startswith("matches")
    assert lab.verdict("4", figures(0.31, 1.0)).startswith("misses")
    for key in ("5", "6a", "6b", "7", "8", "9", "10"):
        assert lab.verdict(key, figures(9.0, 0.951)).startswith("separates")
        assert lab.verdict(key, figures(0.0, 0.949)).startswith("does not separate")
    assert collapse.judged(1.2, None) == "collapsed"
    assert collapse.judged(8.0, None) == "not collapsed"
    assert collapse.judged(8.0, 0.01) == "collapsed"
    assert collapse.judged(8.0, float("nan")) == "collapsed"
    assert collapse.judged(8.0, 0.9) == "not collapsed"


@pytest.mark.parametrize("key", METHODS)
def test_every_recipe_trains(key):
    """Three steps of every recipe on both tasks: finite, and it changes the energy."""
    torch.manual_seed(0)
    for task in (Plane(lab.DENSITIES[0]), Digits()):
        generator = torch.Generator().manual_seed(0)
        made = learner(key, task, generator)
        x, y = task.test()
        before = made.energy(x[:8], y[:8]).detach()
        train(made, task, steps=3, generator=generator, batch=16)
        after = made.energy(x[:8], y[:8]).detach()
        assert torch.isfinite(after).all()
        assert not torch.equal(before, after)


def test_an_unregularised_joint_embedding_shrinks_towards_a_point_and_vicreg_does_not():
    found = {}
    for name in ("joint_none", "joint_vicreg"):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        found[name] = collapse.run(name, Digits(), steps=150, generator=generator)
    none, vicreg = found["joint_none"], found["joint_vicreg"]
    assert none.effective_rank < 0.5 * none.ranks[0][1]
    assert none.effective_rank < 0.6 * vicreg.effective_rank
    assert sum(none.spectrum) < 1e-2 < sum(vicreg.spectrum)


@pytest.mark.slow
def test_the_whole_lab_shows_what_the_paper_claims(tmp_path):
    results = lab.run(tmp_path / "lab", workers=2)
    assert list(results["methods"]) == list(METHODS)
    for key, row in results["methods"].items():
        assert row["verdict"].startswith("matches" if key in lab.ALLOWED_NATS else "separates"), (key, row)
    verdicts = {name: row["verdict"] for name, row in results["collapse"].items()}
    assert {name for name, verdict in verdicts.items() if verdict == "collapsed"} == {
        "joint_none",
        "autoencoder",
        "generative_z",
    }
    details = json.loads((tmp_path / "lab" / "details.json").read_text())
    assert all(details["collapse"][name]["verdict"] == "not collapsed" for name in collapse.LIMITS)


def test_every_seed_and_every_unit_draws_its_own_numbers():
    drawn = set()
    for unit in (("methods", "1"), ("methods", "2")):
        for seed in (0, 1, 2):
            with lab._seeded(unit, seed) as generator:
                drawn.add((float(torch.rand(())), float(torch.rand((), generator=generator))))
    assert len({first for first, _ in drawn}) == len({second for _, second in drawn}) == 6
