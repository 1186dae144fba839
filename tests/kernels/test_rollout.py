"""Rollout kernels against float64: under Triton's interpreter, or on the GPU where there is one."""

import pytest
import torch
from pyjepa.kernels.rollout import Gru, Layer, Mlp, Term, rollout, rollout_reference, rollout_way
from pyjepa.kernels.rollout.description import BACKWARD_TILES, FUSED_WEIGHT_BYTES, choose, decode, encode, program
from pyjepa.kernels.rollout.prepared import Prepared

pytest.importorskip("triton")

PLAIN = Mlp(9, 2, (Layer(20, activation="relu"), Layer(9)), residual=True)
NETWORKS = {
    "plain": PLAIN,
    "normed": Mlp(8, 3, (Layer(24, "layer", "mish"), Layer(16, "layer+simnorm", "gelu", 4), Layer(8, "simnorm")),
                  side_first=True),
    "wide": Mlp(33, 17, (Layer(65, activation="silu"), Layer(33, "layer", "tanh")), residual=True),
    "gru": Gru(9, 2),
    "gru without norm": Gru(17, 5, normalise=False),
}  # fmt: skip
TERMS = (
    Term("goal_distance", 0.3, 1.0, "l2"),
    Term("goal_distance", 0.2, 0.0, "cosine"),
    Term("goal_distance", 0.0, 0.7, "squared_l2"),
    Term("goal_distance", 0.1, 0.2, "l1", reach=12.0),
    Term("action_size", 0.1, 0.1),
    Term("action_change", 0.2, 0.7),
    Term("value", 0.1, 2.0),
)


def case(dynamics, shape=(2, 19, 3), dtype=torch.float32, weights=None, terms=TERMS, seed=0):
    """Arguments of a rollout: random weights, two environments, one of them without an action before."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    def parameters(network):
        made = [numbers(*size) / (size[-1] ** 0.5 if len(size) == 2 else 3.0) for size in network.shapes()]
        return [p.to(weights or dtype) for p in made]

    environments, candidates, steps = shape
    size, latent = dynamics.side, dynamics.state
    previous = numbers(environments, size)
    previous[-1] = float("nan")
    critic = (
        Mlp(latent, latent, (Layer(12, "layer", "mish"), Layer(1))) if any(t.kind == "value" for t in terms) else None
    )
    options = {
        "terms": terms,
        "goal": numbers(environments, latent),
        "previous": previous,
        "critic": critic,
        "critic_parameters": parameters(critic) if critic else [],
        "center": numbers(size),
        "scale": numbers(size).abs() + 0.5,
        "discount": 0.9,
    }
    return [
        dynamics,
        parameters(dynamics),
        numbers(environments, latent),
        numbers(environments, candidates, steps, size),
    ], options


def moved(arguments, options, *, device=None, dtype=None):
    def move(x):
        if isinstance(x, torch.Tensor):
            return x.to(device=device, dtype=dtype)
        return [move(y) for y in x] if isinstance(x, list) else x

    return [move(x) for x in arguments], {name: move(value) for name, value in options.items()}


def run(function, arguments, options, **more):
    found = function(*arguments, **options, **more)
    return [found.cost, found.states]


def gradients(function, arguments, options, **more):
    """Cost, states, and the gradients of a random combination of both."""
    dynamics, parameters, start, actions = arguments
    parameters, critic = (
        [p.detach().requires_grad_() for p in ps] for ps in (parameters, options["critic_parameters"])
    )
    start, actions = start.detach().requires_grad_(), actions.detach().requires_grad_()
    found = function(dynamics, parameters, start, actions, **{**options, "critic_parameters": critic}, **more)
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (x * torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)).sum()
        for x in (found.cost, found.states)
    )
    return [found.cost, found.states, *torch.autograd.grad(loss, [start, actions, *parameters, *critic])]


def assert_within_rule(found, plain, exact, atol=1e-6):
    """Each error at most twice that of plain torch in the same dtype, plus atol times the exact norm (or 1e-3)."""
    for i, (a, b, c) in enumerate(zip(found, plain, exact, strict=True)):
        error, other = (float((x.detach().double().cpu() - c.detach()).norm()) for x in (a, b))
        assert error <= 2 * other + atol * max(float(c.detach().norm()), 1e-3), i


@pytest.mark.parametrize("backend", ["fused", "stepwise"])
@pytest.mark.parametrize("name", NETWORKS)
def test_costs_and_states(name, backend, device, poisoned):
    arguments, options = case(NETWORKS[name])
    there = moved(arguments, options, device=device)
    found = run(rollout, *there, backend=backend, states=True)
    plain = run(rollout_reference, arguments, options)
    assert_within_rule(found, plain, run(rollout_reference, *moved(arguments, options, dtype=torch.float64)))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 17, 2), (3, 5, 2)])
def test_odd_shapes(shape, device, poisoned):
    arguments, options = case(PLAIN, shape)
    exact = run(rollout_reference, *moved(arguments, options, dtype=torch.float64))
    plain = run(rollout_reference, arguments, options)
    there = moved(arguments, options, device=device)
    for backend in ("fused", "stepwise"):
        assert_within_rule(run(rollout, *there, backend=backend, states=True), plain, exact)


@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, "fused") for name in NETWORKS]
    + [("normed", "stepwise"), ("wide", "stepwise"), ("gru", "stepwise")]
    + [pytest.param(name, "stepwise", marks=pytest.mark.slow) for name in ("plain", "gru without norm")],
)
def test_gradients(name, backend, device, poisoned):
    arguments, options = case(NETWORKS[name], (2, 9, 3))
    found = gradients(rollout, *moved(arguments, options, device=device), backend=backend, states=True)
    plain = gradients(rollout_reference, arguments, options)
    exact = gradients(rollout_reference, *moved(arguments, options, dtype=torch.float64))
    assert_within_rule(found, plain, exact, atol=2e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 11, 2)])
def test_gradients_of_odd_shapes_stepwise(shape, device, poisoned):
    arguments, options = case(NETWORKS["normed"], shape, terms=TERMS[:6])
    found = gradients(rollout, *moved(arguments, options, device=device), backend="stepwise", states=True)
    plain = gradients(rollout_reference, arguments, options)
    exact = gradients(rollout_reference, *moved(arguments, options, dtype=torch.float64))
    assert_within_rule(found, plain, exact, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 63, 2), (1, 127, 3), (5, 37, 4)])
@pytest.mark.parametrize("backend", ["fused", "stepwise"])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_more_odd_shapes(name, backend, shape, device, poisoned):
    arguments, options = case(NETWORKS[name], shape, seed=1)
    found = gradients(rollout, *moved(arguments, options, device=device), backend=backend, states=True)
    plain = gradients(rollout_reference, arguments, options)
    exact = gradients(rollout_reference, *moved(arguments, options, dtype=torch.float64))
    # Sums over up to 381 rows in fp32: by their order they differ by some units of the last place.
    assert_within_rule(found, plain, exact, atol=1e-5)


LARGE = Mlp(70, 66, (Layer(300, "layer", "mish"), Layer(512, activation="gelu"), Layer(70)), residual=True)


@pytest.mark.slow
@pytest.mark.parametrize("dynamics", [LARGE, Gru(140, 5)], ids=["mlp", "gru"])
def test_gradients_beyond_the_fused_rule(dynamics, device, poisoned):
    assert rollout_way(dynamics, device="cuda" if device == "cuda" else "cpu", backward=True).way == "stepwise"
    arguments, options = case(dynamics, (2, 9, 2))
    found = gradients(rollout, *moved(arguments, options, device=device), backend="triton", states=True)
    plain = gradients(rollout_reference, arguments, options)
    exact = gradients(rollout_reference, *moved(arguments, options, dtype=torch.float64))
    assert_within_rule(found, plain, exact, atol=2e-6)


@pytest.mark.parametrize("backend", ["fused", pytest.param("stepwise", marks=pytest.mark.slow)])
def test_gradients_of_the_actions_alone_and_of_the_states_alone(backend, device):
    arguments, options = case(PLAIN, (1, 3, 4))
    (dynamics, parameters, start, actions), there = moved(arguments, options, device=device)
    for pick in ("cost", "states"):
        results = []
        for function, more in ((rollout, {"backend": backend, "states": True}), (rollout_reference, {})):
            followed = actions.detach().requires_grad_()
            loss = getattr(function(dynamics, parameters, start, followed, **there, **more), pick).square().sum()
            results.append(torch.autograd.grad(loss, followed)[0])
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["fused", pytest.param("stepwise", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["normed", "gru"])
def test_gradcheck_in_float64(name, backend):
    if torch.cuda.is_available():
        pytest.skip("the fp64 arithmetic of the kernels runs under the interpreter")
    small = {"normed": Mlp(4, 2, (Layer(4, "layer+simnorm", "mish", 2), Layer(4, "layer", "gelu")), residual=True),
             "gru": Gru(3, 2)}[name]  # fmt: skip
    terms = (Term("goal_distance", 0.5, 1.0, "l2"), Term("action_change", 0.3, 0.4))
    (dynamics, parameters, start, actions), options = case(small, (1, 2, 2), torch.float64, terms=terms)
    actions, start = actions.requires_grad_(), start.requires_grad_()

    def function(start, actions, *weights):
        found = rollout(dynamics, list(weights), start, actions, **options, backend=backend, states=True)
        return found.cost, found.states

    weights = [p.requires_grad_() for p in parameters]
    assert torch.autograd.gradcheck(function, (start, actions, *weights), fast_mode=True)


@pytest.mark.parametrize("weights", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["plain", "gru"])
def test_sixteen_bit_weights(name, weights, device, poisoned):
    arguments, options = case(NETWORKS[name], (2, 9, 3), weights=weights)
    there = moved(arguments, options, device=device)
    plain = run(rollout_reference, arguments, options)
    wide = [[p.double() for p in arguments[1]], [p.double() for p in options["critic_parameters"]]]
    doubled, others = moved([arguments[0], wide[0], *arguments[2:]], options | {"critic_parameters": wide[1]})
    doubled[2:] = [x.double() for x in doubled[2:]]
    others = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in others.items()}
    exact = run(rollout_reference, doubled, others)
    for backend in ("fused", "stepwise"):
        found = run(rollout, *there, backend=backend, states=True)
        assert all(x.dtype == torch.float32 for x in found)
        # The interpreter truncates to bf16 where a GPU rounds: one unit in the last place, 2^-7, twice in a square.
        assert_within_rule(found, plain, exact, atol=2**-6 if weights == torch.bfloat16 else 2**-11)


@pytest.mark.parametrize("backend", ["fused", "stepwise"])
def test_gradients_through_sixteen_bit_weights(backend, device):
    arguments, options = case(PLAIN, (1, 5, 2), weights=torch.float16)
    found = gradients(rollout, *moved(arguments, options, device=device), backend=backend, states=True)
    plain = gradients(rollout_reference, arguments, options)
    assert [x.dtype for x in found] == [x.dtype for x in plain]
    for a, b in zip(found, plain, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=2e-2, atol=2e-2)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, when the interpreter takes inf - inf
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("backend", ["fused", "stepwise"])
def test_actions_that_are_not_finite_spoil_their_own_candidate_only(value, backend, device):
    arguments, options = case(PLAIN, (1, 18, 3))
    there, others = moved(arguments, options, device=device)
    clean = rollout(*there, **others, backend=backend).cost
    there[3] = there[3].clone()
    there[3][0, 7, 1, 0] = value
    followed = there[3].requires_grad_()
    spoilt = rollout(*there, **others, backend=backend).cost
    assert not torch.isfinite(spoilt[0, 7])
    assert torch.equal(torch.cat([spoilt[0, :7], spoilt[0, 8:]]), torch.cat([clean[0, :7], clean[0, 8:]]))
    slopes = torch.autograd.grad(spoilt[:, [*range(7), *range(8, 18)]].sum(), followed)[0]
    assert torch.isfinite(torch.cat([slopes[0, :7], slopes[0, 8:]])).all()


@pytest.mark.parametrize("backend", ["fused", "stepwise"])
def test_same_bits_every_run_and_in_any_company(backend, device):
    arguments, options = moved(*case(NETWORKS["normed"], (1, 35, 2)), device=device)
    first, again = (gradients(rollout, arguments, options, backend=backend, states=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    # The rows that begin a block: under the interpreter, NumPy's products depend on a row's place.
    few = [*arguments[:3], arguments[3][:, 32:].contiguous()]
    ready = Prepared(*few[:2], backend=backend, **{k: v for k, v in options.items() if k not in ("goal", "previous")})
    given = options["goal"], options["previous"]
    alone, slopes = ready.gradient(*few[2:], *given)
    assert torch.equal(alone, first[0][:, 32:].detach())
    assert torch.equal(slopes, ready.gradient(*arguments[2:], *given)[1][:, 32:])


def test_a_horizon_compiles_nothing_new(device):
    for steps in (1, 5):
        arguments, options = case(PLAIN, (1, 2, steps))
        found = rollout(*arguments, **options, backend="torch", states=True)
        assert found.states.shape == (1, 2, steps, 9)
    text = encode(program(PLAIN, TERMS, options["critic"]))
    assert decode(text) == program(PLAIN, TERMS, options["critic"])
    assert "steps" not in text


def test_opcheck(device):
    arguments, options = moved(*case(Gru(4, 2), (2, 3, 2), terms=TERMS[:1]), device=device)
    _, parameters, start, actions = arguments
    coefficients = torch.tensor([[0.3, 1.0, 0.0]], device=device)
    described = encode(program(Gru(4, 2), TERMS[:1]))
    weights = [p.requires_grad_() for p in parameters]
    torch.library.opcheck(
        torch.ops.pyjepa.rollout,
        (start.requires_grad_(), actions.reshape(6, 2, 2).requires_grad_(), options["goal"], None, options["center"],
         options["scale"], coefficients, weights, [], described, 0.9, "fused", "stepwise", True),
    )  # fmt: skip


def test_training_through_it_is_training_through_the_steps(device):
    """The multi-step latent prediction loss: gradients of encoder (start) and weights as of the stepwise module."""
    from pyjepa.blocks import Network
    from pyjepa.spec import Layer as SpecLayer
    from pyjepa.spec import Mlp as SpecMlp
    from pyjepa.spec import Module

    layers = (SpecLayer(out=12, norm="layer", activation="gelu"), SpecLayer(out=6))
    module = Module(inputs=("state", "action"), residual=True, blocks=(SpecMlp(layers=layers),))
    torch.manual_seed(0)
    network = Network(module, {"state": (6,), "action": (2,)}).to(device)
    start, actions, target = (
        torch.randn(4, 6).to(device),
        torch.randn(4, 3, 2).to(device),
        torch.randn(4, 3, 6).to(device),
    )
    start.requires_grad_()
    state, states = start, []
    for action in actions.unbind(1):
        state = network({"state": state, "action": action})
        states.append(state)
    parameters = list(network.parameters())
    one = torch.nn.functional.mse_loss(torch.stack(states, 1), target)
    dynamics = Mlp(6, 2, (Layer(12, "layer", "gelu"), Layer(6)), residual=True)
    found = rollout(dynamics, parameters, start, actions[:, None], states=True, backend="fused").states
    other = torch.nn.functional.mse_loss(found[:, 0], target)
    torch.testing.assert_close(other, one)
    for a, b in zip(*(torch.autograd.grad(x, [start, *parameters]) for x in (other, one)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", ["fused", "stepwise", "torch"])
def test_prepared_for_planning(backend, device):
    arguments, options = case(NETWORKS["normed"], (2, 5, 3))
    exact, slope = (x.detach() for x in gradients_of_actions(*moved(arguments, options, dtype=torch.float64)))
    (dynamics, parameters, start, actions), there = moved(arguments, options, device=device)
    goal, previous = there.pop("goal"), there.pop("previous")
    ready = Prepared(dynamics, parameters, backend=backend, **there)
    assert ready.way.way == ("eager" if backend == "torch" else backend)
    ready.check(start, actions, goal, previous)
    torch.testing.assert_close(ready(start, actions, goal, previous).cpu().double(), exact, rtol=1e-5, atol=1e-5)
    cost, found = ready.gradient(start, actions, goal, previous)
    torch.testing.assert_close(cost.cpu().double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.cpu().double(), slope, rtol=1e-4, atol=1e-5)


def gradients_of_actions(arguments, options):
    actions = arguments[3].detach().requires_grad_()
    cost = rollout_reference(*arguments[:3], actions, **options).cost
    return cost, torch.autograd.grad(cost.sum(), actions)[0]


# ---- which way ---------------------------------------------------------------------------------------------------


def wide_mlp(*widths, norm="none", group=8):
    return Mlp(widths[-1], 2, tuple(Layer(n, norm, "relu", group) for n in widths))


@pytest.mark.parametrize(
    ("dynamics", "size", "backward", "way", "reason"),
    [
        (wide_mlp(64, 64, 64), 4, False, "fused", ""),
        (wide_mlp(256, 256, 64), 4, True, "fused", ""),
        (wide_mlp(256, 256, 256, norm="layer"), 4, True, "stepwise", "768 columns to keep"),
        (wide_mlp(256, 256, 256), 4, False, "fused", ""),
        (wide_mlp(256, 256, 256, 256, 256), 4, False, "stepwise", f"fused at most {FUSED_WEIGHT_BYTES}"),
        (wide_mlp(512, 256), 2, False, "stepwise", "a width of 512, fused at most 256"),
        (wide_mlp(512, 512, norm="layer"), 4, False, "stepwise", "weights of"),
        (wide_mlp(1024, 64), 2, False, "stepwise", "a width of 1024"),
        (wide_mlp(1024, 64, norm="layer"), 2, False, "eager", "a normed row of 1024, stepwise at most 512"),
        (wide_mlp(512, 512), 4, True, "stepwise", "weights of"),
        (wide_mlp(1024, 64, norm="layer"), 2, True, "eager", "a normed row of 1024, stepwise at most 512"),
        (Mlp(600, 2, (Layer(600),)), 2, False, "eager", "a state of 600, stepwise at most 512"),
        (Mlp(8, 300, (Layer(8),)), 4, False, "stepwise", "a width of 300, fused at most 256"),
        (Mlp(8, 600, (Layer(8),)), 4, False, "eager", "an action of 600, stepwise at most 512"),
        (wide_mlp(24, 24, norm="simnorm", group=6), 4, False, "eager", "simnorm groups of 6"),
        (Gru(256, 2), 2, False, "fused", ""),
        (Gru(128, 2), 4, True, "fused", ""),
        (Gru(256, 2), 2, True, "stepwise", "a gru's state of 256"),
        (Gru(512, 2), 4, False, "stepwise", "weights of"),
    ],
)  # fmt: skip
def test_the_rule(dynamics, size, backward, way, reason):
    found = choose(program(dynamics), size, backward=backward)
    assert found.way == way
    assert reason in found.reason
    assert bool(found.reason) == (way != "fused")


def test_the_rule_without_triton_and_for_many_tiles():
    assert choose(program(PLAIN), 4, triton=False).way == "eager"
    critic = Mlp(256, 256, (Layer(256, activation="relu"), Layer(1)))
    large = program(wide_mlp(256, 256), [Term("value")], critic)
    assert choose(large, 2).way == "fused"
    assert f"72 weight tiles, fused at most {BACKWARD_TILES} in a backward" in choose(large, 2, backward=True).reason
    assert rollout_way(PLAIN, device="cpu" if not torch.cuda.is_available() else "cuda").way == "fused"


def test_beyond_the_rule_it_runs_stepwise_all_the_same(device):
    wide = Mlp(20, 70, (Layer(300, "none", "relu"), Layer(20)))
    arguments, options = moved(*case(wide, (1, 3, 2), terms=TERMS[:1]), device=device)
    assert "a width of 300" in rollout_way(wide, device="cuda" if device == "cuda" else "cpu").reason
    found = rollout(*arguments, **options, backend="triton").cost
    torch.testing.assert_close(found, rollout_reference(*arguments, **options).cost, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="cannot take this rollout: a width of 300"):
        rollout(*arguments, **options, backend="fused")
    followed = [arguments[3].detach().requires_grad_() for _ in range(2)]
    one = rollout(*arguments[:3], followed[0], **options, backend="triton").cost
    other = rollout_reference(*arguments[:3], followed[1], **options).cost
    slopes = [torch.autograd.grad(cost.sum(), x)[0] for cost, x in zip((one, other), followed, strict=True)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-5)


# ---- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"actions": torch.zeros(2, 3, 0, 2)}, ValueError, "horizon of 0 steps"),
        ({"actions": torch.zeros(2, 0, 3, 2)}, ValueError, "N >= 1"),
        ({"actions": torch.zeros(2, 3, 3, 5)}, ValueError, r"actions must be \(E, N, S, 2\)"),
        ({"actions": torch.zeros(2, 3, 3, 2, dtype=torch.int64)}, TypeError, "actions must be fp16"),
        ({"actions": torch.zeros(2, 3, 3, 2, dtype=torch.float64)}, TypeError, "fp64 goes with fp64"),
        ({"start": torch.zeros(3, 9)}, ValueError, r"start must be \(2, 9\)"),
        ({"start": torch.zeros(2, 9, device="meta")}, ValueError, "start must be on cpu"),
        ({"goal": None}, ValueError, "the cost reads a goal"),
        ({"goal": torch.zeros(2, 9).requires_grad_()}, ValueError, "goal must not require a gradient"),
        ({"parameters": []}, ValueError, "expected 4 tensors, got 0"),
        ({"discount": float("nan")}, ValueError, "discount must be finite"),
        ({"backend": "cuda"}, ValueError, "backend must be"),
    ],
)  # fmt: skip
def test_bad_input_is_named(change, error, message):
    (dynamics, parameters, start, actions), options = case(PLAIN, (2, 3, 3))
    given = {"parameters": parameters, "start": start, "actions": actions} | options | change
    with pytest.raises(error, match=message):
        rollout(dynamics, **given)


def test_mixed_parameter_dtypes_are_named():
    (dynamics, parameters, start, actions), options = case(PLAIN, (1, 2, 2))
    parameters[2] = parameters[2].half()
    with pytest.raises(TypeError, match=r"parameters\[2\] must be torch.float32"):
        rollout(dynamics, parameters, start, actions, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Layer(0), "out >= 1"),
        (lambda: Layer(8, "batch"), "norm must be one of"),
        (lambda: Layer(8, activation="swish"), "activation must be one of"),
        (lambda: Layer(9, "simnorm"), "do not divide 9"),
        (lambda: Mlp(4, 2, ()), "needs a state"),
        (lambda: Mlp(4, 2, (Layer(5),), residual=True), "no state of 4"),
        (lambda: Gru(4, 0), "needs a state and an action"),
        (lambda: Term("speed"), "kind must be one of"),
        (lambda: Term("goal_distance", metric="l3"), "metric must be one of"),
        (lambda: program(Mlp(4, 2, (Layer(5),))), "put out 5 numbers for a state of 4"),
        (lambda: program(PLAIN, [Term("value")]), "come together"),
        (lambda: program(PLAIN, [Term("value")], Mlp(9, 3, (Layer(1),))), "a critic reads"),
    ],
)
def test_descriptions_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_without_triton(monkeypatch):
    from pyjepa.kernels.rollout import op

    monkeypatch.setattr(op, "HAS_TRITON", False)
    arguments, options = case(PLAIN, (1, 2, 2))
    assert rollout(*arguments, **options).cost.shape == (1, 2)
    assert rollout_way(PLAIN).way == "eager"
    with pytest.raises(RuntimeError, match="not installed"):
        rollout(*arguments, **options, backend="triton")
    monkeypatch.setattr(op, "HAS_TRITON", True)
    monkeypatch.setattr(op, "interpreted", lambda: False)
    with pytest.raises(RuntimeError, match="Triton needs a GPU"):
        rollout(*arguments, **options, backend="triton")
