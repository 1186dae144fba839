"""What the documents show runs as it stands."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("guide.md", "reached: True"),
        ("modes.md", "Mode-1 reached the goal: True"),
        ("images.md", "masked prediction:"),
        ("energy.md", "higher on noise: True"),
    ],
)
def test_a_guide_runs_from_top_to_bottom(document, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.+?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, f"docs/{document}", "exec"), names)
    assert said in capsys.readouterr().out


def test_the_planners_page_runs(capsys):
    text = (ROOT / "docs" / "planners.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.+?)^```$", text, re.MULTILINE | re.DOTALL)
    exec(compile(block, "docs/planners.md", "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("example", sorted(p.name for p in (ROOT / "examples").glob("*.py")))
def test_examples_run(example, capsys):
    runpy.run_path(str(ROOT / "examples" / example), run_name="__main__")
    out = capsys.readouterr().out
    assert out.strip()
    if example == "two_rooms.py":
        assert out.strip().endswith("reached the goal")


def test_links_between_documents_lead_somewhere():
    missing = [
        f"{document.name}: {target}"
        for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8"))
        if not (document.parent / target).exists()
    ]
    assert not missing
