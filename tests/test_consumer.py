"""C and C++ programs against the installed package: they find it, plan as Python does, and hold no Python."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pyjepa
from pyjepa import agent_file, agents
from pyjepa.envs import two_rooms
from pyjepa.spec import Actions, Conv, ConvLayer, CostTerm, Layer, Level, Mlp, Module, Observation, Planner, Spec

ROOT = Path(__file__).resolve().parents[1]
# What pip installs beside this Python first: cmake and ninja.
ENVIRONMENT = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
AGENTS = {
    "vectors": ROOT / "tests" / "golden" / "version-1.safetensors",
    "images": ROOT / "tests" / "golden" / "version-1-image.safetensors",
    "demo": "two_rooms",
}


def run(*command: object, **options: object) -> str:
    """A program's standard output; it must succeed."""
    done = subprocess.run(
        [str(part) for part in command],
        **{"capture_output": True, "text": True, "check": False, "timeout": 300, "env": ENVIRONMENT, **options},
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def folder(option: str) -> Path:
    """What ``python -m pyjepa --OPTION`` prints (-P: without the working directory on the path)."""
    return Path(run(sys.executable, "-P", "-m", "pyjepa", f"--{option}").strip())


def build(source: Path, target: Path) -> Path:
    """Builds a CMake project against the installed package; where its programs are."""
    run("cmake", "-G", "Ninja", "-S", source, "-B", target, f"-Dpyjepa_DIR={folder('cmakedir')}")
    run("cmake", "--build", target)
    return target


def agent_path(name: str) -> Path:
    """One of `AGENTS`."""
    if isinstance(AGENTS[name], Path):
        return AGENTS[name]
    try:
        return agents.path(AGENTS[name])
    except FileNotFoundError as error:
        pytest.skip(str(error))


def pattern(spec: Spec, factor: int) -> np.ndarray:
    """The observation that the consumers make too."""
    values = np.arange(np.prod(spec.observation.shape)) * factor % 251
    if spec.observation.dtype == "float32":
        values = values / np.float32(256)
    return values.reshape(spec.observation.shape).astype(spec.observation.dtype)


def mapped(lines: list[str]) -> set[str]:
    """The names of the files in a /proc/self/maps."""
    return {Path(line.split(maxsplit=5)[5]).name for line in lines if "/" in line}


@pytest.fixture(scope="module", params=["c99", "cpp17"])
def consumer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp(request.param)
    return build(ROOT / "tests" / "consumer" / request.param, target) / "consumer"


def test_the_folders_hold_what_they_should() -> None:
    assert (folder("cmakedir") / "pyjepaConfig.cmake").is_file()
    assert (folder("includedir") / "pyjepa" / "pyjepa.h").is_file()
    assert (folder("libdir") / "libpyjepa.so.0").is_file()
    assert (folder("pkgconfigdir") / "pyjepa.pc").is_file()


def test_no_symbolic_links_are_needed() -> None:
    libraries = sorted(folder("libdir").glob("*.so*"))
    assert [library.name for library in libraries] == ["libpyjepa.so.0"]
    assert not libraries[0].is_symlink()


def test_exactly_the_header_is_exported() -> None:
    header = (folder("includedir") / "pyjepa" / "pyjepa.h").read_text(encoding="utf-8")
    declared = set(re.findall(r"^PYJEPA_API\b[^;(]*?\b(pyjepa_\w+)\(", header, re.MULTILINE))
    symbols = run("nm", "--dynamic", "--defined-only", folder("libdir") / "libpyjepa.so.0")
    assert {line.split()[-1] for line in symbols.splitlines()} == declared
    assert "pyjepa_plan" in declared


def test_python_runs_the_same_library() -> None:
    code = "import pyjepa._engine; print(open('/proc/self/maps').read())"
    maps = run(sys.executable, "-P", "-c", code).splitlines()
    assert "libpyjepa.so.0" in mapped(maps)
    assert any(line.endswith(str(folder("libdir") / "libpyjepa.so.0")) for line in maps)


@pytest.mark.parametrize("name", AGENTS)
def test_consumers_plan_as_python_does(consumer: Path, name: str) -> None:
    path = agent_path(name)
    lines = run(consumer, path, env={}).splitlines()
    agent = pyjepa.load(path, threads=2)
    agent.configure(goal=pattern(agent.spec, 37), seed=9)
    expected = [("plan", agent.plan(pattern(agent.spec, 13 + i)).actions) for i in range(3)]
    if agent.spec.policy is not None:
        expected.append(("act", agent.act()))
    assert lines[0] == f"version {pyjepa.__version__}"
    end = lines.index("maps")
    given = [line.split() for line in lines[1:end]]
    assert [words[0] for words in given] == [kind for kind, _ in expected]
    for words, (_, actions) in zip(given, expected, strict=True):
        assert [float.fromhex(word) for word in words[1:]] == actions.ravel().tolist()
    # No Python in the process.
    files = mapped(lines[end + 1 :])
    assert "libpyjepa.so.0" in files
    assert not [file for file in files if re.search(r"python|_engine", file)]


def test_consumers_need_little(consumer: Path) -> None:
    needed = {line.split()[0] for line in run("ldd", consumer).splitlines()}
    assert "libpyjepa.so.0" in needed
    assert not [file for file in needed if "python" in file]
    assert ("libstdc++.so.6" in needed) == (consumer.parent.name.startswith("cpp17"))


def test_consumers_report_errors(consumer: Path) -> None:
    done = subprocess.run([str(consumer), "no-such-file"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "status 3: cannot read 'no-such-file': No such file or directory\n"


@pytest.mark.skipif(shutil.which("pkg-config") is None, reason="needs pkg-config")
def test_pkg_config(tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "PKG_CONFIG_PATH": str(folder("pkgconfigdir"))}
    assert run("pkg-config", "--modversion", "pyjepa", env=environment).strip() == pyjepa.__version__
    flags = run("pkg-config", "--cflags", "--libs", "pyjepa", env=environment).split()
    library = run("pkg-config", "--variable=libdir", "pyjepa", env=environment).strip()
    source, program = ROOT / "tests" / "consumer" / "c99" / "consumer.c", tmp_path / "consumer"
    run("cc", "-std=c99", source, "-o", program, *flags, f"-Wl,-rpath,{library}")
    assert run(program, AGENTS["vectors"]).startswith("version")


def test_the_example_states_the_same_world(tmp_path: Path) -> None:
    program = tmp_path / "replay"
    source = ROOT / "tests" / "consumer" / "two_rooms" / "replay.cpp"
    run("c++", "-std=c++17", "-O1", f"-I{ROOT / 'examples' / 'embed_cpp'}", source, "-o", program)
    rng = np.random.default_rng(0)
    for door in (10, 31, 54):
        # Beside the door, heading back and forth: through it, along the wall, against the jambs and the border.
        at = np.array([[27.0, door + 1.0]])
        steps = rng.normal(0.0, 1.5, (120, 2)) + np.repeat([[1.5, 0.2], [-1.5, -0.2], [1.0, -1.0], [-1.0, 1.0]], 30, 0)
        walk = "\n".join(f"{dx!r} {dy!r}" for dx, dy in steps.tolist())
        lines = run(program, input=f"{door} {at[0, 0]} {at[0, 1]}\n{walk}\n").splitlines()
        assert len(lines) == 121
        rooms = set()
        for i, line in enumerate(lines):
            words = line.split()
            np.testing.assert_allclose([float(word) for word in words[:2]], at[0], rtol=0, atol=1e-12)
            picture = two_rooms.render(at, np.array([door])).ravel()
            assert np.abs(np.array(words[2:], dtype=int) - picture).max() <= 1
            rooms.add(at[0, 0] < 31.5)
            if i < len(steps):
                at = two_rooms.move(at, steps[i : i + 1], np.array([door]))
        assert len(rooms) == 2


def random_two_rooms_agent(path: Path) -> None:
    """An agent for Two Rooms' pictures that has learnt nothing."""
    spec = Spec(
        observation=Observation(shape=(2, 64, 64), dtype="uint8", scale=1 / 255),
        actions=Actions(low=(-3.0, -3.0), high=(3.0, 3.0)),
        modules={
            "encoder": Module(
                inputs=("observation",),
                blocks=(
                    Conv(layers=(ConvLayer(out=4, kernel=8, stride=8, padding=0, activation="relu"),)),
                    Mlp(layers=(Layer(out=8),)),
                ),
            ),
            "predictor": Module(inputs=("state", "action"), residual=True, blocks=(Mlp(layers=(Layer(out=8),)),)),
        },
        levels=(Level(encoder="encoder", predictor="predictor", action_block=4, hold=True),),
        cost=(CostTerm(kind="goal_distance"),),
        planner=Planner(horizon=16, candidates=32, iterations=2, elites=4),
    )
    rng = np.random.default_rng(0)
    shapes = {
        "encoder.0.conv0.weight": (4, 2, 8, 8),
        "encoder.0.conv0.bias": (4,),
        "encoder.1.linear0.weight": (8, 256),
        "encoder.1.linear0.bias": (8,),
        "predictor.0.linear0.weight": (8, 10),
        "predictor.0.linear0.bias": (8,),
    }
    agent_file.save(path, spec, {k: rng.normal(0, 0.1, s).astype(np.float32) for k, s in shapes.items()})


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT / "examples" / "embed_cpp", tmp_path_factory.mktemp("example")) / "embed_cpp"


def test_the_example_plays(example: Path, tmp_path: Path) -> None:
    random_two_rooms_agent(tmp_path / "agent.safetensors")
    output = run(example, tmp_path / "agent.safetensors", 4, 2, 50)
    assert f"pyjepa {pyjepa.__version__} on " in output
    assert re.search(r"^all +\d of 4 reached", output, re.MULTILINE)
    assert re.search(r"^cross-room +\d of 2 reached", output, re.MULTILINE)
    decisions = int(re.search(r"^(\d+) decisions on 2 thread", output, re.MULTILINE)[1])
    assert 4 <= decisions <= 4 * 50
    for row in ("perceive", "plan", "decide"):
        times = re.search(rf"^{row} +p50 +(\S+) ms +p99 +(\S+) ms +p99.9 +(\S+) ms +max +(\S+) ms$", output, re.M)
        values = [float(value) for value in times.groups()]
        assert values == sorted(values)
    # The start is measured in docs/embedding.md; here, that it is not seconds.
    assert float(re.search(r"^cold start (\S+) ms", output, re.MULTILINE)[1]) < 1000


def test_the_demo_agent_reaches_its_goals_in_the_example(example: Path) -> None:
    output = run(example, agent_path("demo"), 10)
    assert int(re.search(r"^all +(\d+) of 10 reached", output, re.MULTILINE)[1]) >= 8


def test_the_example_names_its_errors(example: Path) -> None:
    for arguments, words in (([], "usage: "), (["no-such-file"], "cannot read 'no-such-file'")):
        done = subprocess.run([str(example), *arguments], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode != 0
        assert words in done.stderr


def snippet(language: str, mark: str) -> str:
    """The block of docs/embedding.md in a language that holds ``mark``."""
    text = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
    (found,) = [b for b in re.findall(rf"^```{language}\n(.+?)^```$", text, re.MULTILINE | re.DOTALL) if mark in b]
    return found


def documented_inputs(tmp_path: Path) -> None:
    """The files that the documentation's programs read, in the working directory."""
    random_two_rooms_agent(tmp_path / "agent.safetensors")
    start = two_rooms.draw_episodes(1, seed=0)
    (tmp_path / "goal.raw").write_bytes(two_rooms.render(start.goal, start.door).tobytes())
    (tmp_path / "observation.raw").write_bytes(two_rooms.render(start.start, start.door).tobytes())


def expected_action(tmp_path: Path) -> list[float]:
    agent = pyjepa.load(tmp_path / "agent.safetensors")
    pictures = {
        name: np.frombuffer((tmp_path / f"{name}.raw").read_bytes(), np.uint8).reshape(2, 64, 64)
        for name in ("goal", "observation")
    }
    agent.configure(goal=pictures["goal"])
    return agent.plan(pictures["observation"]).actions[0].tolist()


def printed(output: str) -> list[float]:
    """The numbers of the last line."""
    return [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", output.splitlines()[-1])]


def test_documented_ctypes_call(tmp_path: Path) -> None:
    documented_inputs(tmp_path)
    output = run(sys.executable, "-P", "-c", snippet("python", "ctypes"), folder("libdir"), cwd=tmp_path)
    assert printed(output) == pytest.approx(expected_action(tmp_path), rel=1e-5)


@pytest.mark.skipif(shutil.which("rustc") is None, reason="needs rustc")
def test_documented_rust_call(tmp_path: Path) -> None:
    documented_inputs(tmp_path)
    (tmp_path / "main.rs").write_text(snippet("rust", "fn main"), encoding="utf-8")
    library = folder("libdir")
    flags = ["-C", f"link-arg={library / 'libpyjepa.so.0'}", "-C", f"link-arg=-Wl,-rpath,{library}"]
    run("rustc", "--edition", "2021", "-D", "warnings", "main.rs", *flags, cwd=tmp_path)
    assert printed(run(tmp_path / "main", cwd=tmp_path)) == pytest.approx(expected_action(tmp_path), rel=1e-5)


@pytest.mark.parametrize(("language", "compiler", "standard"), [("c", "cc", "c99"), ("cpp", "c++", "c++17")])
def test_documented_c_and_cpp(tmp_path: Path, language: str, compiler: str, standard: str) -> None:
    documented_inputs(tmp_path)
    source = tmp_path / f"main.{language}"
    source.write_text(snippet(language, "int main"), encoding="utf-8")
    library, warnings = folder("libdir"), ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    run(
        compiler, f"-std={standard}", *warnings, f"-I{folder('includedir')}", source, "-o", tmp_path / "main",
        library / "libpyjepa.so.0", f"-Wl,-rpath,{library}",
    )  # fmt: skip
    assert printed(run(tmp_path / "main", cwd=tmp_path)) == pytest.approx(expected_action(tmp_path), rel=1e-5)


def test_documented_layout_of_the_structs(tmp_path: Path) -> None:
    """The ctypes structs lie in memory as C's do."""
    names = {"Dims": "pyjepa_model_dims", "Task": "pyjepa_task", "PlanOut": "pyjepa_plan_out"}
    source = snippet("python", "ctypes").split("# ---- the call", maxsplit=1)[0]
    report = (
        "import json; print(json.dumps({name: [[field, getattr(struct, field).offset] for field, _ in struct._fields_] "
        f"for name, struct in [{', '.join(f'({name!r}, {name})' for name in names)}]}}))"
    )
    code = f"{source}\n{report}"
    layout = json.loads(run(sys.executable, "-P", "-c", code, folder("libdir"), cwd=tmp_path).splitlines()[-1])
    checks = [
        f"_Static_assert(offsetof({names[name]}, {field}) == {offset}, {json.dumps(f'{name}.{field}')});"
        for name, fields in layout.items()
        for field, offset in fields
    ]
    assert len(checks) > 30
    (tmp_path / "layout.c").write_text("\n".join(["#include <pyjepa/pyjepa.h>", *checks, ""]), encoding="utf-8")
    run("cc", "-std=c11", "-fsyntax-only", f"-I{folder('includedir')}", tmp_path / "layout.c")
