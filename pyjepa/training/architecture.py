"""Encoder and predictor modules of the configured sizes."""

from __future__ import annotations

from pyjepa.spec import AdalnTransformer, Conv, ConvLayer, Layer, Mlp, Module
from pyjepa.training.config import Sizes, Transformer


def encoder(sizes: Sizes) -> Module:
    """Convolutions, a hidden layer, the latent."""
    convolutions = tuple(
        ConvLayer(out=out, kernel=kernel, stride=stride, padding=padding, activation=sizes.activation)
        for out, kernel, stride, padding in zip(
            sizes.channels, sizes.kernels, sizes.strides, sizes.paddings, strict=True
        )
    )
    head = dense(sizes, [sizes.encoder_hidden], sizes.latent)
    return Module(inputs=("observation",), blocks=(Conv(layers=convolutions), head))


def predictor(sizes: Sizes, *, ensemble: int = 1) -> Module:
    """From state and action to the change of the state; ``ensemble`` networks that do."""
    return Module(
        inputs=("state", "action"),
        blocks=(dense(sizes, sizes.predictor_hidden, sizes.latent),),
        residual=True,
        ensemble=ensemble,
    )


def transformer(sizes: Sizes, settings: Transformer) -> Module:
    """From the last states and actions to the change of the state: a transformer and a projector."""
    block = AdalnTransformer(
        window=settings.window,
        depth=settings.depth,
        width=settings.width,
        heads=settings.heads,
        head_dim=settings.head_dim,
        hidden=settings.hidden,
        embedding=settings.action_hidden,
    )
    return Module(
        inputs=("state", "action"),
        combine="adaln",
        blocks=(block, dense(sizes, sizes.predictor_hidden, sizes.latent)),
        residual=True,
    )


def dense(sizes: Sizes, hidden: list[int], out: int) -> Mlp:
    """Hidden layers, and a linear one at the end."""
    layers = tuple(Layer(out=width, norm=sizes.norm, activation=sizes.activation) for width in hidden)
    return Mlp(layers=(*layers, Layer(out=out)))
