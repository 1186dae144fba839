"""`pyjepa import`: the command line. What it makes of weights is tests/adapters' business."""

import itertools
import json
import pickle

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")

from pyjepa.agent import Model  # noqa: E402
from pyjepa.cli import main  # noqa: E402


def lewm(frames=2):
    """A model without projectors: the encoder's class token is the state."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "encoder.embeddings.cls_token": (1, 1, 8),
        "encoder.embeddings.position_embeddings": (1, 5, 8),
        "encoder.embeddings.patch_embeddings.projection": (8, 3, 2, 2),
        "encoder.layernorm": (8,),
        "action_encoder.patch_embed": (4, 4, 1),
        "action_encoder.embed.0": (6, 4),
        "action_encoder.embed.2": (8, 6),
        "predictor.pos_embedding": (1, frames, 8),
        "predictor.transformer.norm": (8,),
    }
    vit, layer = "encoder.encoder.layer.0", "predictor.transformer.layers.0"
    shapes |= {f"{vit}.attention.attention.{part}": (8, 8) for part in ("query", "key", "value")}
    shapes |= {f"{vit}.attention.output.dense": (8, 8), f"{vit}.intermediate.dense": (12, 8)}
    shapes |= {f"{vit}.output.dense": (8, 12), f"{vit}.layernorm_before": (8,), f"{vit}.layernorm_after": (8,)}
    shapes |= {f"{layer}.attn.norm": (8,), f"{layer}.attn.to_qkv.weight": (24, 8), f"{layer}.attn.to_out.0": (8, 8)}
    shapes |= {f"{layer}.mlp.net.0": (8,), f"{layer}.mlp.net.1": (10, 8), f"{layer}.mlp.net.4": (8, 10)}
    shapes |= {f"{layer}.adaLN_modulation.1": (48, 8)}
    state = {}
    for name, shape in shapes.items():
        whole = name.endswith(("token", "embeddings", "embedding", ".weight"))
        state[name if whole else f"{name}.weight"] = torch.randn(shape, generator=generator)
        if not whole:
            state[f"{name}.bias"] = torch.randn(shape[:1], generator=generator)
    return state


def run(*arguments):
    return CliRunner().invoke(main, ["import", *map(str, arguments)])


@pytest.fixture
def folder(tmp_path):
    torch.save(lewm(), tmp_path / "weights.pt")
    config = {
        "_target_": "stable_worldmodel.wm.lewm.LeWM",
        "encoder": {"num_attention_heads": 2},
        "predictor": {"heads": 2, "num_frames": 2},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_folder_becomes_an_agent(folder):
    out = folder / "agent.safetensors"
    found = run(folder, "--out", out, "--action-block", 2, "--low", "-2,-1", "--high", 3, "--action-std", 0.5,
                "--pixels", "imagenet", "--window", 1)  # fmt: skip
    assert found.exit_code == 0, found.output
    assert "lewm, latent 8" in found.output
    spec = Model.load(out).spec
    assert spec.actions.low == (-2.0, -1.0)
    assert spec.actions.high == (3.0, 3.0)
    assert spec.actions.center == (0.0, 0.0)
    assert spec.actions.scale == (0.5, 0.5)
    assert (spec.levels[0].action_block, spec.modules["predictor"].blocks[0].window) == (2, 1)
    plain = folder / "plain.safetensors"
    found = run(folder / "weights.pt", "--out", plain, "--config", folder / "config.json", "--name", "mine")
    assert found.exit_code == 0, found.output
    model = Model.load(plain)
    assert (model.spec.name, len(model.spec.actions.low)) == ("mine", 4)
    seen = np.full((1, 3, 4, 4), 200, np.uint8)
    assert not np.allclose(model.encode(seen), Model.load(out).encode(seen))  # pixels are normalised in one of them


def test_what_cannot_be_imported_is_said(folder, tmp_path_factory):
    out, bare = folder / "agent.safetensors", tmp_path_factory.mktemp("bare")
    torch.save(lewm(), bare / "weights.pt")

    def refused(*arguments):
        found = run(*arguments, "--out", out)
        assert found.exit_code == 2, found.output
        assert not out.exists()
        return " ".join(found.output.split())

    assert "heads: how many" in refused(bare)
    assert "window 3: the predictor has positions for 1 to 2 states" in refused(folder, "--window", 3)
    assert "3 numbers, an action has 4" in refused(folder, "--low", "1,2,3")
    assert "numbers between commas" in refused(folder, "--low", "a")
    assert "action_block 3 does not divide" in refused(folder, "--action-block", 3)
    assert "LeWM and PLDM has no such option, but TD-MPC2" in refused(folder, "--value-range", "-1,1")
    (folder / "config.json").write_text("{")
    assert "no JSON" in refused(folder)
    (folder / "config.json").write_text("[]")
    assert "expected an object" in refused(folder)
    torch.save(lewm(), folder / "second.pt")
    assert "holds 2 files of weights" in refused(folder)

    class Opens:
        def __reduce__(self):
            return (open, (str(bare / "executed"), "w"))

    (bare / "weights.pt").write_bytes(pickle.dumps(Opens()))
    assert "no file of weights alone" in refused(bare)
    assert not (bare / "executed").exists()
    torch.save({"wheel.weight": torch.zeros(2)}, bare / "weights.pt")
    assert "none of PLDM, LeWM, DINO-WM and TD-MPC2" in refused(bare)
    assert "TD-MPC2 has no such option, but LeWM and PLDM" in refused(bare, "--heads", 2)


def test_td_mpc2_is_imported(tmp_path):
    state = {}

    def mlp(name, sizes, last_norm=False):
        for j, (size, out) in enumerate(itertools.pairwise(sizes)):
            state[f"{name}.{j}.weight"], state[f"{name}.{j}.bias"] = torch.randn(out, size), torch.randn(out)
            if j < 2 or last_norm:
                state[f"{name}.{j}.ln.weight"], state[f"{name}.{j}.ln.bias"] = torch.ones(out), torch.zeros(out)

    mlp("dynamics", (18, 12, 12, 16), last_norm=True)
    mlp("reward", (18, 12, 12, 5))
    mlp("pi", (16, 12, 12, 4))
    mlp("qs.0", (18, 12, 12, 5))
    mlp("extra_encoders.state", (3, 12, 16))
    for kind in ("weight", "bias"):
        state.pop(f"extra_encoders.state.1.ln.{kind}")
        state[f"extra_encoders.state.2.{kind}"] = torch.zeros(16)
    torch.save(state, tmp_path / "weights.pt")
    out = tmp_path / "agent.safetensors"
    assert "value_range" in run(tmp_path, "--out", out).output
    assert run(tmp_path, "--out", out, "--value-range", "1").exit_code == 2
    torch.save({k: v for k, v in state.items() if k != "dynamics.1.ln.weight"}, tmp_path / "weights.pt")
    found = run(tmp_path, "--out", out, "--value-range", "-3,3")
    assert found.exit_code == 2
    assert "tensor 'dynamics.1.ln.weight': missing" in found.output
    torch.save(state, tmp_path / "weights.pt")
    found = run(tmp_path, "--out", out, "--value-range", "-3,3")
    assert found.exit_code == 0, found.output
    assert Model.load(out).spec.modules["reward"].blocks[-1].low == -3.0
    wm = {"vmin": -4, "vmax": 4, "uncertainty_penalty": 0.0, "simnorm_dim": 8, "discount": 0.9}
    (tmp_path / "config.json").write_text(json.dumps({"_target_": "TDMPC2", "cfg": {"wm": wm}}))
    found = run(tmp_path, "--out", out)
    assert found.exit_code == 0, found.output
    spec = Model.load(out).spec
    assert (spec.modules["reward"].blocks[-1].low, spec.discount) == (-4.0, pytest.approx(0.9))


def test_eb_jepa_is_imported_from_a_checkpoint_of_its_training(tmp_path):
    shapes = {"encoder.mlp": (8, 3 * 9 * 9), "encoder.final_ln": (8,), "predictor.final_ln": (8,)}
    for name, size in (("initial_conv", 2), *((f"blocks.{r}.conv{c}", 3) for r in (0, 1) for c in (1, 2))):
        shapes[f"encoder.stack_blocks.0.{name}"] = (3, size, 3, 3)
    state = {f"{name}.weight": torch.ones(shape) for name, shape in shapes.items()}
    state |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items()}
    for part, *shape in (("weight_ih", 2), ("weight_hh", 8), ("bias_ih",), ("bias_hh",)):
        state[f"predictor.rnn.{part}_l0"] = torch.ones(24, *shape)
    torch.save({"epoch": 1, "jepa_state_dict": state}, tmp_path / "latest.pth.tar")
    out = tmp_path / "agent.safetensors"
    found = run(tmp_path, "--out", out, "--image-size", 17)
    assert found.exit_code == 0, found.output
    assert "eb-jepa, latent 8" in found.output
    assert Model.load(out).spec.actions.low == (-2.45, -2.45)
    found = run(tmp_path, "--out", out, "--image-size", 18, "--low", -1, "--action-std", "2,3")
    assert found.exit_code == 0, found.output
    spec = Model.load(out).spec
    assert (spec.observation.shape, spec.actions.low, spec.actions.scale) == ((2, 18, 18), (-1.0, -1.0), (2.0, 3.0))
    assert "image_size" in run(tmp_path, "--out", out).output
    assert "EB-JEPA has no such option, but LeWM and PLDM" in run(tmp_path, "--out", out, "--window", 1).output
