"""The documents say what the results say."""

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
