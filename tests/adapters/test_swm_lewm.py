"""LeWM and PLDM as agent files: against what their modules compute, in plain torch and, where installed, their own."""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch.nn import functional as F  # noqa: E402

from pyjepa import agent_file  # noqa: E402
from pyjepa.adapters import swm_lewm  # noqa: E402
from pyjepa.adapters.stable_worldmodel import Solver, lift, load_weights  # noqa: E402
from pyjepa.adapters.torchvision import import_stable_worldmodel  # noqa: E402
from pyjepa.agent import Agent, Model  # noqa: E402
from pyjepa.errors import AgentFileError, InvalidArgumentError, MissingPackageError, UnsupportedError  # noqa: E402
from pyjepa.spec import Actions  # noqa: E402

HEADS, ENCODER_HEADS = 2, 3


def state_dict(
    *,
    width=24,
    hidden=18,
    latent=16,
    inner=20,
    frames=3,
    depth=2,
    actions=6,
    patch=4,
    side=3,
    norm="batch",
    projector=True,
):
    """Random weights under the names of stable_worldmodel.wm.lewm.LeWM with Hugging Face's ViTModel.

    ``width``: the encoder's; ``hidden``: the predictor's; ``latent``: the state's.
    """
    generator = torch.Generator().manual_seed(0)
    state = {}

    def drawn(*shape, scale=1.0):
        return scale * torch.randn(*shape, generator=generator)

    def dense(name, out, *in_, bias=True):
        state[f"{name}.weight"] = drawn(out, *in_, scale=float(np.prod(in_)) ** -0.5)
        if bias:
            state[f"{name}.bias"] = drawn(out, scale=0.2)

    def layer_norm(name, size):
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + drawn(size, scale=0.2), drawn(size, scale=0.2)

    def mlp(name, in_, middle, out):
        dense(f"{name}.net.0", middle, in_)
        if norm != "none":
            layer_norm(f"{name}.net.1", middle)
        if norm == "batch":
            state[f"{name}.net.1.running_mean"] = drawn(middle)
            state[f"{name}.net.1.running_var"] = drawn(middle).square() + 0.1
            state[f"{name}.net.1.num_batches_tracked"] = torch.tensor(7)
        dense(f"{name}.net.3", out, middle)

    state["encoder.embeddings.cls_token"] = drawn(1, 1, width)
    state["encoder.embeddings.mask_token"] = drawn(1, 1, width)
    state["encoder.embeddings.position_embeddings"] = drawn(1, 1 + side * side, width)
    dense("encoder.embeddings.patch_embeddings.projection", width, 3, patch, patch)
    for d in range(depth):
        layer = f"encoder.encoder.layer.{d}"
        for part in ("query", "key", "value"):
            dense(f"{layer}.attention.attention.{part}", width, width)
        dense(f"{layer}.attention.output.dense", width, width)
        dense(f"{layer}.intermediate.dense", 4 * width, width)
        dense(f"{layer}.output.dense", width, 4 * width)
        layer_norm(f"{layer}.layernorm_before", width)
        layer_norm(f"{layer}.layernorm_after", width)
    layer_norm("encoder.layernorm", width)
    if projector:
        mlp("projector", width, 30, latent)
    dense("action_encoder.patch_embed", 7, actions, 1)
    dense("action_encoder.embed.0", 22, 7)
    dense("action_encoder.embed.2", latent, 22)
    state["predictor.pos_embedding"] = drawn(1, frames, latent)
    root = "predictor.transformer"
    if hidden != latent:
        dense(f"{root}.input_proj", hidden, latent)
        dense(f"{root}.cond_proj", hidden, latent)
        dense(f"{root}.output_proj", latent, hidden)
    for d in range(depth):
        layer = f"{root}.layers.{d}"
        layer_norm(f"{layer}.attn.norm", hidden)
        dense(f"{layer}.attn.to_qkv", 3 * inner, hidden, bias=False)
        dense(f"{layer}.attn.to_out.0", hidden, inner)
        layer_norm(f"{layer}.mlp.net.0", hidden)
        dense(f"{layer}.mlp.net.1", 26, hidden)
        dense(f"{layer}.mlp.net.4", hidden, 26)
        dense(f"{layer}.adaLN_modulation.1", 6 * hidden, hidden)
    layer_norm(f"{root}.norm", hidden)
    if projector:
        mlp("pred_proj", latent, 30, latent)
    return state


class Reference:
    """What LeWM computes from a state dict, written out in double precision."""

    def __init__(self, state, heads=HEADS, encoder_heads=ENCODER_HEADS, eps=1e-12):
        self.state = {name: value.double() for name, value in state.items()}
        self.heads, self.encoder_heads, self.eps = heads, encoder_heads, eps

    def dense(self, name, x):
        return F.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))

    def norm(self, name, x, eps=1e-5):
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps)

    def mlp(self, name, x):
        if f"{name}.net.0.weight" not in self.state:
            return x
        x = self.dense(f"{name}.net.0", x)
        if f"{name}.net.1.running_mean" in self.state:
            shape, norm = (
                x.shape,
                [self.state[f"{name}.net.1.{part}"] for part in ("running_mean", "running_var", "weight", "bias")],
            )
            x = F.batch_norm(x.flatten(0, -2), *norm).view(shape)
        elif f"{name}.net.1.weight" in self.state:
            x = self.norm(f"{name}.net.1", x)
        return self.dense(f"{name}.net.3", F.gelu(x))

    @staticmethod
    def attend(q, k, v, heads, causal):
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(-2, -3) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(-2, -3).flatten(-2)

    def encode(self, pixels):
        """Images (B, 3, H, W) -> latents (B, L)."""
        return self.mlp("projector", self.see(pixels))

    def see(self, pixels):
        """Images (B, 3, H, W) -> class tokens (B, W)."""
        state, root = self.state, "encoder.embeddings"
        projection = f"{root}.patch_embeddings.projection"
        weight = state[f"{projection}.weight"]
        x = F.conv2d(pixels.double(), weight, state[f"{projection}.bias"], stride=weight.shape[-1])
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([state[f"{root}.cls_token"].expand(len(x), -1, -1), x], 1) + state[f"{root}.position_embeddings"]
        for d in itertools.count():
            layer = f"encoder.encoder.layer.{d}"
            if f"{layer}.output.dense.weight" not in state:
                break
            h = self.norm(f"{layer}.layernorm_before", x, self.eps)
            q, k, v = (self.dense(f"{layer}.attention.attention.{part}", h) for part in ("query", "key", "value"))
            x = x + self.dense(f"{layer}.attention.output.dense", self.attend(q, k, v, self.encoder_heads, False))
            h = self.norm(f"{layer}.layernorm_after", x, self.eps)
            x = x + self.dense(f"{layer}.output.dense", F.gelu(self.dense(f"{layer}.intermediate.dense", h)))
        return self.norm("encoder.layernorm", x, self.eps)[:, 0]

    def predict(self, z, actions):
        """Latents and actions (B, T, ...) -> latents (B, T, L)."""
        state, root = self.state, "predictor.transformer"
        c = F.conv1d(
            actions.double().transpose(1, 2),
            state["action_encoder.patch_embed.weight"],
            state["action_encoder.patch_embed.bias"],
        ).transpose(1, 2)
        c = self.dense("action_encoder.embed.2", F.silu(self.dense("action_encoder.embed.0", c)))
        x = z + state["predictor.pos_embedding"][:, : z.shape[1]]
        if f"{root}.input_proj.weight" in state:
            x, c = self.dense(f"{root}.input_proj", x), self.dense(f"{root}.cond_proj", c)
        for d in itertools.count():
            layer = f"{root}.layers.{d}"
            if f"{layer}.mlp.net.4.weight" not in state:
                break
            shift, scale, gate, shift1, scale1, gate1 = self.dense(f"{layer}.adaLN_modulation.1", F.silu(c)).chunk(
                6, -1
            )
            h = self.norm(f"{layer}.attn.norm", F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)
            mixed = self.attend(*self.dense(f"{layer}.attn.to_qkv", h).chunk(3, -1), self.heads, True)
            x = x + gate * (
                self.dense(f"{layer}.attn.to_out.0", mixed) if f"{layer}.attn.to_out.0.weight" in state else mixed
            )
            h = self.norm(f"{layer}.mlp.net.0", F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale1) + shift1)
            x = x + gate1 * self.dense(f"{layer}.mlp.net.4", F.gelu(self.dense(f"{layer}.mlp.net.1", h)))
        x = self.norm(f"{root}.norm", x)
        if f"{root}.output_proj.weight" in state:
            x = self.dense(f"{root}.output_proj", x)
        return self.mlp("pred_proj", x)

    def cost(self, pixels, goal, plans, window=3):
        """LeWM.get_cost for plans (N, T, A'): squared distances of the last latents to the goal's."""
        z = [self.encode(pixels).expand(len(plans), -1)]
        for t in range(plans.shape[1]):
            first = max(0, t + 1 - window)
            z.append(self.predict(torch.stack(z[first:], 1), plans[:, first : t + 1])[:, -1])
        return (z[-1] - self.encode(goal)).square().sum(-1)


def images(count, pixels=12, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, pixels, pixels), dtype=np.uint8)


def check(state, reference, *, pixels=12, **options):
    """The lifted agent encodes, predicts and judges as the reference does."""
    options = {"heads": HEADS, "encoder_heads": ENCODER_HEADS, "action_block": 3} | options
    model = Model.from_bytes(agent_file.to_bytes(*lift(state, **options)))
    seen, goal = images(2, pixels)[:, None]
    pictures = [torch.from_numpy(each).double() / 255 for each in (seen, goal)]
    with torch.no_grad():
        encoded = reference.encode(pictures[0]).numpy()
        np.testing.assert_allclose(model.encode(seen), encoded, rtol=1e-5, atol=1e-5 * np.abs(encoded).max())
        plans = np.random.default_rng(1).uniform(-1, 1, (5, 5, 6)).astype(np.float32)
        costs = reference.cost(*pictures, torch.from_numpy(plans)).numpy()
    agent = Agent(model)
    agent.configure(goal=goal[0], horizon=15)
    agent.observe(seen[0])
    np.testing.assert_allclose(agent.evaluate(plans), costs, rtol=2e-5)


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("hidden", [18, 16])
def test_lewm_is_lifted_with_parity(norm, hidden):
    state = state_dict(norm=norm, hidden=hidden)
    check(state, Reference(state))


def test_variants_are_lifted_with_parity():
    bare = state_dict(projector=False, width=16, latent=16, hidden=18, side=2)
    check(bare, Reference(bare, encoder_heads=4), encoder_heads=4, pixels=8)
    one = state_dict(hidden=16, inner=16)  # one head, as wide as the layer: no layer behind the attention
    one = {name: value for name, value in one.items() if ".to_out." not in name}
    check(one, Reference(one, heads=1), heads=1)
    state = state_dict()
    prefixed = {f"model.{name}": value for name, value in state.items()}
    check(prefixed, Reference(state))
    no_bias = {
        name: value for name, value in state.items() if not (".attention.attention." in name and name.endswith("bias"))
    }
    check(no_bias, Reference(no_bias))


def test_a_shorter_window_looks_back_less():
    state = state_dict()
    model = Model.from_bytes(
        agent_file.to_bytes(*lift(state, heads=HEADS, encoder_heads=ENCODER_HEADS, action_block=3, window=2))
    )
    assert model.spec.modules["predictor"].blocks[0].window == 2
    reference = Reference(state)
    seen, goal = images(2)[:, None]
    plans = np.random.default_rng(1).uniform(-1, 1, (5, 5, 6)).astype(np.float32)
    agent = Agent(model)
    agent.configure(goal=goal[0], horizon=15)
    agent.observe(seen[0])
    with torch.no_grad():
        pictures = [torch.from_numpy(each) / 255 for each in (seen, goal)]
        costs = {window: reference.cost(*pictures, torch.from_numpy(plans), window).numpy() for window in (2, 3)}
    np.testing.assert_allclose(agent.evaluate(plans), costs[2], rtol=2e-5)
    assert not np.allclose(costs[2], costs[3], rtol=1e-3)


def test_pixels_and_actions_are_normalised_as_in_training():
    state = state_dict()
    reference = Reference(state)
    actions = Actions(low=(-2.0, 0.0), high=(2.0, 5.0), center=(0.5, 2.0), scale=(1.5, 3.0))
    options = {"heads": HEADS, "encoder_heads": ENCODER_HEADS, "action_block": 3}
    spec, tensors = lift(state, pixels=swm_lewm.IMAGENET, actions=actions, **options)
    agent = Agent(Model.from_bytes(agent_file.to_bytes(spec, tensors)))
    seen, goal = images(2)[:, None]
    plans = np.random.default_rng(1).uniform(0, 2, (5, 4, 3, 2)).astype(np.float32)
    agent.configure(goal=goal[0], horizon=12)
    agent.observe(seen[0])
    mean, std = (torch.tensor(each)[:, None, None] for each in swm_lewm.IMAGENET)
    pictures = [(torch.from_numpy(each) / 255 - mean) / std for each in (seen, goal)]
    normal = (plans - np.float32(actions.center)) / np.float32(actions.scale)
    with torch.no_grad():
        costs = reference.cost(*pictures, torch.from_numpy(normal).flatten(2)).numpy()
    np.testing.assert_allclose(agent.evaluate(plans.reshape(5, 4, 6)), costs, rtol=2e-5)


def test_weights_of_half_precision_are_widened():
    half = {name: value.half() if value.is_floating_point() else value for name, value in state_dict().items()}
    check(
        half, Reference({name: value.float() if value.is_floating_point() else value for name, value in half.items()})
    )


CONFIG = {
    "_target_": "stable_worldmodel.wm.lewm.LeWM",
    "encoder": {"image_size": 12, "patch_size": 4, "num_attention_heads": ENCODER_HEADS},
    "predictor": {"num_frames": 3, "depth": 2, "heads": HEADS, "mlp_dim": 26, "input_dim": 16, "hidden_dim": 18,
                  "dim_head": 10},
    "projector": {"norm_fn": {"_target_": "torch.nn.BatchNorm1d", "_partial_": True}},
}  # fmt: skip


def test_a_config_says_what_weights_do_not():
    state = state_dict()
    spec, tensors = lift(state, config=CONFIG)
    again, same = lift(state, heads=HEADS, encoder_heads=ENCODER_HEADS, name="lewm")
    assert spec == again
    assert all(np.array_equal(tensors[name], same[name]) for name in tensors)


def changed(**sections):
    config = copy.deepcopy(CONFIG)
    for part, values in sections.items():
        config[part].update(values)
    return config


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (changed(predictor={"depth": 3}), InvalidArgumentError, "config.predictor.depth: 3, but the tensors have 2"),
        (changed(predictor={"num_frames": 4}), InvalidArgumentError, "config.predictor.num_frames: 4, but the tensors"),
        (changed(predictor={"heads": 3}), InvalidArgumentError, "heads: 3 do not divide the 20 numbers of a query"),
        (
            changed(predictor={"heads": "2"}),
            InvalidArgumentError,
            "config.predictor.heads: expected a positive integer",
        ),
        (
            changed(predictor={"dim_head": 64}),
            InvalidArgumentError,
            "config.predictor.dim_head: 64, but the tensors have 10",
        ),
        (changed(encoder={"image_size": 224}), InvalidArgumentError, "config.encoder.image_size: 224, but the tensors"),
        (changed(encoder={"hidden_act": "quick_gelu"}), UnsupportedError, "config.encoder.hidden_act: 'quick_gelu'"),
        (changed(encoder={"layer_norm_eps": "x"}), InvalidArgumentError, "config.encoder.layer_norm_eps: expected a"),
        (changed(projector={"act_fn": {"_target_": "torch.nn.PReLU"}}), UnsupportedError, "config.projector.act_fn"),
        (changed(projector={"norm_fn": {"eps": -1}}), InvalidArgumentError, "config.projector.norm_fn.eps"),
        (CONFIG | {"encoder": 7}, InvalidArgumentError, "config.encoder: expected an object"),
    ],
)
def test_a_config_that_does_not_fit_is_named(config, error, message):
    with pytest.raises(error, match=message):
        lift(state_dict(), config=config)


@pytest.mark.parametrize("name", sorted(state_dict(depth=1)))
def test_every_tensor_is_asked_for(name):
    """Missing, and of another shape: the message names it."""
    options = {"heads": HEADS, "encoder_heads": ENCODER_HEADS}
    state = state_dict(depth=1)
    if not state[name].is_floating_point() or name.endswith("mask_token"):
        pytest.skip("read by nothing")
    odd = state | {name: torch.zeros((*state[name].shape, 2))}
    with pytest.raises(InvalidArgumentError, match=r"tensor '.*'|window|action"):
        lift(odd, **options)
    number = state | {name: torch.tensor(1.0)}
    with pytest.raises((InvalidArgumentError, UnsupportedError)):
        lift(number, **options)
    gone = {key: value for key, value in state.items() if key != name}
    if name.startswith("encoder.encoder.layer.0.attention.attention.") and name.endswith("bias"):
        return  # such biases may be left out
    with pytest.raises((InvalidArgumentError, UnsupportedError)):
        lift(gone, **options)


def test_what_is_wrong_with_a_checkpoint_is_named(tmp_path):
    state, options = state_dict(), {"heads": HEADS, "encoder_heads": ENCODER_HEADS}
    for extra, message in (
        ("decoder.weight", "'decoder.weight': no part of LeWM or PLDM"),
        ("encoder.embeddings.register_tokens", "'encoder.embeddings.register_tokens': unknown, nothing of the model"),
        ("predictor.transformer.layers.0.attn.to_k.weight", r"'predictor.*to_k.weight': unknown"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            lift(state | {extra: torch.zeros(2)}, **options)
    with pytest.raises(InvalidArgumentError, match=r"'encoder.layernorm.weight': missing"):
        lift({k: v for k, v in state.items() if k != "encoder.layernorm.weight"}, **options)
    with pytest.raises(InvalidArgumentError, match=r"'encoder.layernorm.bias': shape \(3,\), expected \(24,\)"):
        lift(state | {"encoder.layernorm.bias": torch.zeros(3)}, **options)
    with pytest.raises(InvalidArgumentError, match=r"'encoder.layernorm.bias': torch.int64, expected floating point"):
        lift(state | {"encoder.layernorm.bias": torch.zeros(24, dtype=torch.int64)}, **options)
    with pytest.raises(InvalidArgumentError, match="window 4: the predictor has positions for 1 to 3 states"):
        lift(state, window=4, **options)
    with pytest.raises(InvalidArgumentError, match="action_block 4 does not divide the 6 numbers"):
        lift(state, action_block=4, **options)
    with pytest.raises(InvalidArgumentError, match="actions: a box of 2 numbers is expected"):
        lift(state, action_block=3, actions=Actions(low=(-1.0,), high=(1.0,)), **options)
    with pytest.raises(InvalidArgumentError, match="heads: how many the predictor has"):
        lift(state, encoder_heads=ENCODER_HEADS)
    with pytest.raises(InvalidArgumentError, match="encoder_heads: how many the encoder of width 24"):
        lift(state, heads=HEADS)
    with pytest.raises(InvalidArgumentError, match="pixels: 3 means"):
        lift(state, pixels=((0.5,), (0.5,)), **options)
    with pytest.raises(UnsupportedError, match="encoder: only Hugging Face's ViTModel"):
        lift({k: v for k, v in state.items() if not k.endswith("cls_token")}, **options)
    with pytest.raises(AgentFileError, match="non-finite"):
        agent_file.to_bytes(*lift(state | {"encoder.layernorm.bias": torch.full((24,), torch.inf)}, **options))
    file = tmp_path / "weights.pt"
    torch.save({"state_dict": state}, file)
    assert set(load_weights(file)) == set(state)


class Sees(torch.nn.Module):
    """A vision transformer with Hugging Face's interface, from a state dict."""

    def __init__(self, reference):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))  # its dtype is asked for
        self.reference = reference

    def forward(self, pixels, interpolate_pos_encoding):
        assert interpolate_pos_encoding
        return SimpleNamespace(last_hidden_state=self.reference.see(pixels)[:, None].float())


@pytest.mark.parametrize("kind", ["lewm", "pldm"])
def test_their_own_module_agrees(kind):
    try:
        wm = import_stable_worldmodel(f"stable_worldmodel.wm.{kind}.{kind}")
        parts = import_stable_worldmodel(f"stable_worldmodel.wm.{kind}.module")
    except MissingPackageError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    perceived = {name: value for name, value in state_dict().items() if name.startswith("encoder.")}
    norm = torch.nn.BatchNorm1d
    model = getattr(wm, {"lewm": "LeWM", "pldm": "PLDM"}[kind])(
        Sees(Reference(perceived)),
        parts.Predictor(
            num_frames=3, depth=2, heads=2, mlp_dim=26, input_dim=16, hidden_dim=18, output_dim=16, dim_head=10
        ),
        parts.Embedder(6, 7, 16),
        parts.MLP(24, 30, 16, norm_fn=norm),
        parts.MLP(16, 30, 16, norm_fn=norm),
    ).eval()
    seen, goal = images(2)
    plans = torch.rand(5, 4, 6) * 2 - 1

    def expanded(image):
        return torch.from_numpy(image)[None, None, None].expand(1, 5, 1, -1, -1, -1) / 255

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.add_(torch.rand_like(buffer))
        info = {"pixels": expanded(seen), "goal": expanded(goal), "action": torch.zeros(1, 5, 1, 6)}
        theirs = model.get_cost(info, plans[None])[0]
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("encoder.")}
    options = {"heads": HEADS, "encoder_heads": ENCODER_HEADS, "action_block": 3}
    engine = Agent(Model.from_bytes(agent_file.to_bytes(*lift(state | perceived, **options))))
    engine.configure(goal=goal, horizon=12)
    engine.observe(seen)
    np.testing.assert_allclose(engine.evaluate(plans.numpy()), theirs.numpy(), rtol=1e-4)
    # Theirs takes the actions of the past as a plan's first ones.
    before, done = images(2), torch.rand(2, 6) * 2 - 1
    for known in (1, 2):
        past, acted = before[2 - known :], done[2 - known :]
        frames = torch.from_numpy(np.stack([*past, seen]))[None, None].expand(1, 5, -1, -1, -1, -1) / 255
        info = {"pixels": frames, "goal": expanded(goal), "action": torch.zeros(1, 5, known + 1, 6)}
        with torch.no_grad():
            theirs = model.get_cost(info, torch.cat([acted.expand(5, -1, -1), plans], dim=1)[None])[0]
        engine.observe(past[0])
        for action, image in zip(acted, [*past[1:], seen], strict=True):
            engine.observe(image, taken=action.numpy())
        np.testing.assert_allclose(engine.evaluate(plans.numpy()), theirs.numpy(), rtol=1e-4)
    assert not Solver(model).native  # what its pixels and actions are, it does not say


def test_hugging_faces_vit_is_the_block():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96, image_size=12, patch_size=4
    )
    vit = transformers.ViTModel(config, add_pooling_layer=False, use_mask_token=True).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        seen = images(3)
        theirs = vit(torch.from_numpy(seen) / 255, interpolate_pos_encoding=True).last_hidden_state[:, 0].numpy()
    rest = {name: value for name, value in state_dict(latent=24, projector=False).items() if "encoder" not in name[:8]}
    state = rest | {f"encoder.{name}": value for name, value in vit.state_dict().items()}
    model = Model.from_bytes(agent_file.to_bytes(*lift(state, heads=HEADS, encoder_heads=3, action_block=3)))
    np.testing.assert_allclose(model.encode(seen), theirs, rtol=1e-4, atol=1e-5)
