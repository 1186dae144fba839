"""The blocks of the spec as torch modules. Their parameters are named as the tensors of an agent file are.

A module's block i holds ``linear{j}`` and ``norm{j}`` (mlp), ``conv{j}`` (conv), ``stage{s}.conv`` and
``stage{s}.res{r}.conv{c}`` (impala) or `torch.nn.GRUCell`'s parameters and ``norm`` (gru); see `pyjepa.spec` for what
each block computes. `pyjepa.adaln` holds the transformer that predicts, `pyjepa.transformer` the one that sees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional

from pyjepa.adaln import AdalnTransformerBlock
from pyjepa.spec import Activation, AdalnTransformer, Conv, Gru, Impala, InputName, Layer, Mlp, Module, TwoHot, Vit
from pyjepa.transformer import VitBlock

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": functional.relu,
    "gelu": functional.gelu,  # exact, through erf
    "silu": functional.silu,
    "mish": functional.mish,
    "tanh": torch.tanh,
}


def simnorm(x: Tensor, group: int) -> Tensor:
    """Softmax within groups of ``group`` along the last dimension (TD-MPC2, Hansen et al. 2024)."""
    return functional.softmax(x.reshape(*x.shape[:-1], -1, group), dim=-1).flatten(-2)


class MlpBlock(nn.Module):
    """``activation(norm(W x + b))``, layer by layer, on the flattened input."""

    def __init__(self, block: Mlp, input_shape: tuple[int, ...]) -> None:
        """Raises ValueError if ``simnorm_group`` does not divide a layer that uses it."""
        super().__init__()
        self.block = block
        inputs = prod(input_shape)
        for j, layer in enumerate(block.layers):
            self.add_module(f"linear{j}", nn.Linear(inputs, layer.out))
            if layer.norm in ("layer", "layer+simnorm"):
                self.add_module(f"norm{j}", nn.LayerNorm(layer.out, eps=1e-5))
            if layer.norm in ("simnorm", "layer+simnorm") and layer.out % block.simnorm_group:
                raise ValueError(f"layer {j}: simnorm_group {block.simnorm_group} does not divide out {layer.out}")
            inputs = layer.out
        self.output_shape = (inputs,)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, out)."""
        x = x.flatten(1)
        for j, layer in enumerate(self.block.layers):
            x = ACTIVATIONS[layer.activation](self._normalise(j, layer, self.get_submodule(f"linear{j}")(x)))
        return x

    def _normalise(self, j: int, layer: Layer, x: Tensor) -> Tensor:
        if layer.norm in ("layer", "layer+simnorm"):
            x = self.get_submodule(f"norm{j}")(x)
        return simnorm(x, self.block.simnorm_group) if layer.norm in ("simnorm", "layer+simnorm") else x


class ConvBlock(nn.Module):
    """``activation(conv2d(x) + b)``, layer by layer."""

    def __init__(self, block: Conv, input_shape: tuple[int, ...]) -> None:
        """Raises ValueError if the input is no image, or smaller than a kernel."""
        super().__init__()
        self.block = block
        channels, height, width = _image(input_shape, "conv")
        for j, layer in enumerate(block.layers):
            convolution = nn.Conv2d(channels, layer.out, layer.kernel, layer.stride, layer.padding)
            self.add_module(f"conv{j}", convolution)
            height, width = ((n + 2 * layer.padding - layer.kernel) // layer.stride + 1 for n in (height, width))
            if height < 1 or width < 1:
                raise ValueError(f"conv layer {j}: kernel {layer.kernel} is larger than its input")
            channels = layer.out
        self.output_shape = (channels, height, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out, H', W')."""
        for j, layer in enumerate(self.block.layers):
            x = ACTIVATIONS[layer.activation](self.get_submodule(f"conv{j}")(x))
        return x


class _Residual(nn.Module):
    """``x + conv1(relu(conv0(relu(x))))``, or ``relu(x + conv1(relu(conv0(x))))``."""

    def __init__(self, channels: int, preactivation: bool) -> None:
        super().__init__()
        self.preactivation = preactivation
        self.conv0 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.conv1(functional.relu(self.conv0(functional.relu(x) if self.preactivation else x)))
        return x + inner if self.preactivation else functional.relu(x + inner)


class _Stage(nn.Module):
    """conv3 -> maxpool3/2 -> two residual blocks."""

    def __init__(self, inputs: int, channels: int, preactivation: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, channels, 3, padding=1)
        self.res0 = _Residual(channels, preactivation)
        self.res1 = _Residual(channels, preactivation)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.conv(x), 3, stride=2, padding=1)
        pooled: Tensor = self.res1(self.res0(x))
        return pooled


class ImpalaBlock(nn.Module):
    """The IMPALA encoder (Espeholt et al. 2018): stages of convolutions, a ReLU at the end."""

    def __init__(self, block: Impala, input_shape: tuple[int, ...]) -> None:
        """Raises ValueError if the input is no image."""
        super().__init__()
        self.block = block
        inputs, height, width = _image(input_shape, "impala")
        for s, channels in enumerate(block.channels):
            self.add_module(f"stage{s}", _Stage(inputs, channels, block.preactivation))
            inputs, height, width = channels, (height + 1) // 2, (width + 1) // 2
        self.output_shape = (inputs, height, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, channels[-1], H', W')."""
        for s in range(len(self.block.channels)):
            x = self.get_submodule(f"stage{s}")(x)
        return functional.relu(x)


class TwoHotBlock(nn.Module):
    """Logits over bins -> the number they stand for (TD-MPC2's two-hot inverse, Hansen et al. 2024)."""

    def __init__(self, block: TwoHot, input_shape: tuple[int, ...]) -> None:
        """Raises ValueError if there are not as many logits as bins."""
        super().__init__()
        if input_shape != (block.bins,):
            raise ValueError(f"two_hot: {block.bins} bins, but the input has shape {input_shape}")
        self.register_buffer("_places", torch.linspace(block.low, block.high, block.bins), persistent=False)
        self.output_shape = (1,)

    def forward(self, x: Tensor) -> Tensor:
        """(B, bins) -> (B, 1)."""
        mean = (functional.softmax(x, dim=-1) * self.get_buffer("_places")).sum(dim=-1, keepdim=True)
        return mean.sign() * mean.abs().expm1()


class GruBlock(nn.GRUCell):
    """A GRU cell on (state, action), and a LayerNorm."""

    def __init__(self, block: Gru, inputs: int) -> None:
        """``inputs``: numbers of an action. A tied norm is tied by whoever holds the encoder (`tie_norm`)."""
        super().__init__(inputs, block.hidden)
        if block.norm != "none":
            self.norm = nn.LayerNorm(block.hidden, eps=1e-5)
        self.block = block
        self.output_shape = (block.hidden,)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:  # type: ignore[override]
        """(B, hidden) and (B, inputs) -> (B, hidden)."""
        # In plain operations: the fused one has no rule for `torch.func.vmap`, which ensembles run through.
        reset, update, new = functional.linear(action, self.weight_ih, self.bias_ih).chunk(3, dim=1)
        r, z, n = functional.linear(state, self.weight_hh, self.bias_hh).chunk(3, dim=1)
        state = torch.lerp(torch.tanh(new + torch.sigmoid(reset + r) * n), state, torch.sigmoid(update + z))
        return state if self.block.norm == "none" else self.norm(state)


def tie_norm(predictor: Network, encoder: Network | None) -> None:
    """Gives the predictor's ``tied`` LayerNorm, if it has one, the parameters of the one that ends the encoder.

    Raises ValueError if the encoder ends otherwise, or if there is none.
    """
    cell = predictor.get_submodule("0")
    if not isinstance(cell, GruBlock) or cell.block.norm != "tied":
        return
    if predictor.module.ensemble > 1:
        raise ValueError("norm 'tied': each of an ensemble has a LayerNorm of its own")
    if encoder is None:
        raise ValueError("norm 'tied': there is no encoder")
    last = len(encoder.module.blocks) - 1
    block = encoder.module.blocks[last]
    if not isinstance(block, Mlp) or block.layers[-1].norm != "layer":
        raise ValueError("norm 'tied': the encoder does not end in an mlp layer with norm 'layer'")
    cell.norm = encoder.get_submodule(f"{last}.norm{len(block.layers) - 1}")  # type: ignore[assignment]


class Network(nn.Module):
    """One module of the spec: its inputs combined, its blocks in order, plus the state where ``residual``.

    With an ensemble of K every parameter has a leading axis K, and so has the output.
    """

    def __init__(self, module: Module, shapes: Mapping[InputName, tuple[int, ...]]) -> None:
        """``shapes`` gives the shape of every input, without the batch.

        Raises NotImplementedError for what torch lacks (reserved fields of the spec), ValueError where blocks do not
        fit their inputs.
        """
        super().__init__()
        for name, known in (("latent", (None,)), ("quantisation", (None,))):
            if getattr(module, name) not in known:
                raise NotImplementedError(f"the torch back end lacks {name}={getattr(module, name)!r}")
        self.module = module
        single = len(module.inputs) == 1
        shape = shapes[module.inputs[0]] if single else (sum(prod(shapes[name]) for name in module.inputs),)
        first = {"cell": Gru, "adaln": AdalnTransformer}.get(module.combine)
        if first is not None and sorted(module.inputs) != ["action", "state"]:
            raise ValueError(f"combine {module.combine!r} reads exactly 'state' and 'action', not {module.inputs}")
        if first is AdalnTransformer and module.ensemble > 1:
            raise NotImplementedError("the torch back end lacks ensembles with combine='adaln'")
        for i, block in enumerate(module.blocks):
            built: MlpBlock | ConvBlock | ImpalaBlock | TwoHotBlock | GruBlock | AdalnTransformerBlock | VitBlock
            if first is not None and i == 0 and not isinstance(block, first):
                raise ValueError(f"combine {module.combine!r} needs another first block than {block.kind!r}")
            if isinstance(block, Gru | AdalnTransformer) and (i > 0 or first is None):
                raise ValueError(f"{block.kind!r} is the first block of a module that combines so, and only there")
            if isinstance(block, Gru):
                if shapes["state"] != (block.hidden,):
                    raise ValueError(f"gru: the hidden state has size {block.hidden}, the state {shapes['state']}")
                built = GruBlock(block, prod(shapes["action"]))
            elif isinstance(block, AdalnTransformer):
                built = AdalnTransformerBlock(block, prod(shapes["state"]), prod(shapes["action"]))
            elif isinstance(block, Vit):
                built = VitBlock(block, shape)
            elif isinstance(block, Mlp):
                built = MlpBlock(block, shape)
            elif isinstance(block, Conv):
                built = ConvBlock(block, shape)
            elif isinstance(block, TwoHot):
                built = TwoHotBlock(block, shape)
            else:
                built = ImpalaBlock(block, shape)
            self.add_module(str(i), built)
            shape = built.output_shape
        self.output_shape = (prod(shape),)
        if module.residual and self.output_shape != shapes["state"]:
            raise ValueError(f"residual: the output {self.output_shape} has not the state's shape {shapes['state']}")
        if module.ensemble > 1:
            members = [Network(replace(module, ensemble=1), shapes) for _ in range(module.ensemble)]
            for name, stacked in stack_module_state(members)[0].items():
                owner, _, parameter = name.rpartition(".")
                setattr(self.get_submodule(owner), parameter, nn.Parameter(stacked.detach()))

    def forward(self, inputs: Mapping[InputName, Tensor], *, each: bool = False) -> Tensor:
        """Inputs of shape (B, ...) by name -> (B, out), or (K, B, out) for an ensemble.

        With ``combine`` "adaln" states and actions may be (B, T, ...) with T up to the window, the oldest first: the
        outputs are (B, T, out), each of what came until then.

        ``each``: the members of an ensemble have inputs of their own, (K, B, ...).
        """
        if self.module.ensemble == 1:
            return self._member(inputs)
        # One batched operation per layer for all members.
        member = vmap(
            lambda parameters, given: functional_call(_Member(self), parameters, (given,)),
            in_dims=(0, 0 if each else None),
        )
        outputs: Tensor = member({f"network.{name}": value for name, value in self.named_parameters()}, dict(inputs))
        return outputs

    def _member(self, inputs: Mapping[InputName, Tensor]) -> Tensor:
        blocks = [self.get_submodule(str(i)) for i in range(len(self.module.blocks))]
        given = [inputs[name] for name in self.module.inputs]
        if self.module.combine == "adaln":
            return self._windowed(inputs["state"], inputs["action"], *blocks)
        if self.module.combine == "cell":
            x = blocks.pop(0)(inputs["state"], inputs["action"].flatten(1))
        else:
            x = given[0] if len(given) == 1 else torch.cat([part.flatten(1) for part in given], dim=-1)
        for block in blocks:
            x = block(x)
        output: Tensor = x.flatten(1)
        return output + inputs["state"] if self.module.residual else output

    def _windowed(self, states: Tensor, actions: Tensor, first: nn.Module, *rest: nn.Module) -> Tensor:
        if states.dim() == 2:
            return self._windowed(states[:, None], actions[:, None], first, *rest)[:, 0]
        x = first(states, actions)
        length = x.shape[1]
        x = x.flatten(0, 1)
        for block in rest:
            x = block(x)
        output: Tensor = x.unflatten(0, (-1, length))
        return output + states if self.module.residual else output


class _Member(nn.Module):
    """What `functional_call` calls: a network with the parameters of one member in place."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Mapping[InputName, Tensor]) -> Tensor:
        return self.network._member(inputs)


def _image(shape: tuple[int, ...], kind: str) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise ValueError(f"{kind}: expected an input of shape (C, H, W), got {shape}")
    return shape[0], shape[1], shape[2]
