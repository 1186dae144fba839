"""The transformer that looks back, in torch: causal, and the same numbers as LeWM's own modules."""

import pytest
import torch

from pyjepa.adaln import AdalnTransformerBlock
from pyjepa.adapters.torchvision import import_stable_worldmodel
from pyjepa.errors import MissingPackageError
from pyjepa.spec import AdalnTransformer

BLOCK = AdalnTransformer(window=3, depth=2, width=24, heads=4, head_dim=8, hidden=40, embedding=48)


def block_of(spec=BLOCK, latent=24, inputs=10):
    """With random weights throughout: the gates are zero at first."""
    torch.manual_seed(0)
    built = AdalnTransformerBlock(spec, latent, inputs)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return built


def test_what_comes_later_changes_nothing_before():
    built = block_of()
    states, actions = torch.randn(5, 3, 24), torch.randn(5, 3, 10)
    with torch.no_grad():
        whole = built(states, actions)
        torch.testing.assert_close(built(states[:, :2], actions[:, :2]), whole[:, :2])
        states[:, 0] = torch.randn(5, 24)
        assert (built(states, actions)[:, 2] - whole[:, 2]).abs().mean() > 1e-3


def test_gates_begin_at_zero():
    torch.manual_seed(0)
    built = AdalnTransformerBlock(BLOCK, 24, 10)
    states = torch.randn(5, 3, 24)
    expected = torch.nn.functional.layer_norm(states + built.position, (24,))
    torch.testing.assert_close(built(states, torch.randn(5, 3, 10)), expected)


def test_it_computes_what_lewms_modules_compute():
    try:
        theirs = import_stable_worldmodel("stable_worldmodel.wm.lewm.module")
    except MissingPackageError as error:
        pytest.skip(str(error))
    torch.manual_seed(1)
    predictor = theirs.Predictor(
        num_frames=3, depth=2, heads=4, mlp_dim=40, input_dim=24, hidden_dim=24, dim_head=8
    ).eval()
    embedder = theirs.Embedder(input_dim=10, smoothed_dim=10, emb_dim=24, mlp_scale=2)
    for parameter in (*predictor.parameters(), *embedder.parameters()):
        torch.nn.init.normal_(parameter, std=0.2)
    built = block_of()
    before, after = embedder.patch_embed, embedder.embed[0]
    state = {
        "position": predictor.pos_embedding[0],
        "action0.weight": after.weight @ before.weight[:, :, 0],
        "action0.bias": after.weight @ before.bias + after.bias,
        "action1.weight": embedder.embed[2].weight,
        "action1.bias": embedder.embed[2].bias,
        "norm.weight": predictor.transformer.norm.weight,
        "norm.bias": predictor.transformer.norm.bias,
    }
    for d, layer in enumerate(predictor.transformer.layers):
        parts = {
            "modulation": layer.adaLN_modulation[1],
            "norm0": layer.attn.norm,
            "qkv": layer.attn.to_qkv,
            "out": layer.attn.to_out[0],
            "norm1": layer.mlp.net[0],
            "linear0": layer.mlp.net[1],
            "linear1": layer.mlp.net[4],
        }
        for name, part in parts.items():
            state |= {f"layer{d}.{name}.{key}": value for key, value in part.state_dict().items()}
    built.load_state_dict(state)
    states, actions = torch.randn(5, 3, 24), torch.randn(5, 3, 10)
    with torch.no_grad():
        expected = predictor(states, embedder(actions))
        torch.testing.assert_close(built(states, actions), expected, rtol=1e-5, atol=1e-5)
        assert expected.std() > 0.1
