"""The documents say what the results say."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def render(*arguments, script=ROOT / "benchmarks" / "render.py"):
    return subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_documents_are_rendered_from_the_committed_results():
    done = render("--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_results_name_no_ones_machine():
    for file in (ROOT / "benchmarks" / "results").glob("*.json"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r'"/|/home|/root|localhost', text), file.name


@pytest.fixture
def copy(tmp_path):
    """The renderer and results in a tree of their own, with a README to write into."""
    import shutil

    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks", ignore=shutil.ignore_patterns("__pycache__"))

    def written(text):
        (tmp_path / "README.md").write_text(text)
        return tmp_path / "README.md", tmp_path / "benchmarks" / "render.py"

    return written


def test_a_stale_document_is_found_and_brought_up_to_date(copy):
    readme, script = copy("before\n<!-- render: plan -->\nold\n<!-- /render -->\nafter\n")
    assert render("--check", script=script).returncode == 1
    assert "old" in readme.read_text()
    assert render(script=script).returncode == 0
    text = readme.read_text()
    assert text.startswith("before\n<!-- render: plan -->\n| ")
    assert text.endswith("\n<!-- /render -->\nafter\n")
    assert "old" not in text
    assert render("--check", script=script).returncode == 0


def test_rows_with_encoding_stand_beside_torchs_with_encoding(copy):
    readme, script = copy("<!-- render: large -->\n<!-- /render -->\n")
    file = readme.parent / "benchmarks" / "results" / "large.json"
    document = json.loads(file.read_text())
    row = document["rows"][0] | {"workload": "W3", "threads": 1, "final_cost": 3.25}
    document["rows"] = [
        row | {"plan_ms_p50": 100.0},
        row | {"plan_ms_p50": 110.0, "operation": "encode and plan"},
        row | {"peer": "torch", "plan_ms_p50": 200.0},
        row | {"peer": "torch", "plan_ms_p50": 330.0, "operation": "encode and plan"},
        row | {"peer": "stable-worldmodel", "variant": "CEM", "plan_ms_p50": 400.0},
        row | {"peer": "onnxruntime", "plan_ms_p50": 50.0, "threads": 2},
    ]
    file.write_text(json.dumps(document))
    assert render(script=script).returncode == 0
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in readme.read_text().splitlines()[3:9]]
    assert [(name, times) for _, name, *_, times in lines] == [
        ("pyjepa fp32", "2.00×"),
        ("pyjepa fp32, encode and plan", "3.00×"),
        ("torch", "1.00×"),
        ("torch, encode and plan", "1.00×"),
        ("stable-worldmodel CEM", "0.50×"),
        ("onnxruntime", ""),
    ]
    assert all(line[-2] == "3.25" for line in lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- render: nonsense -->\n<!-- /render -->\n", "no table called 'nonsense'"),
        ("<!-- render: plan -->\n", "without its other half"),
        ("<!-- /render -->\n", "without its other half"),
    ],
)
def test_a_marker_that_makes_no_sense_is_an_error(copy, text, message):
    _, script = copy(text)
    done = render(script=script)
    assert done.returncode == 1
    assert message in done.stderr


def test_a_missing_result_is_an_error(copy):
    readme, script = copy("<!-- render: mode1 -->\n<!-- /render -->\n")
    (readme.parent / "benchmarks" / "results" / "mode1.json").unlink()
    done = render(script=script)
    assert done.returncode == 1
    assert "README.md: FileNotFoundError" in done.stderr
