"""A transformer that predicts from a window of states and the actions taken in them: LeWM's predictor, in torch.

Each token is modulated by its action (AdaLN-zero, Peebles and Xie 2023). Symbols: B batch, T states in the window, L
latent dimension, A' numbers of an action, W width. `pyjepa.spec.AdalnTransformer` says what it computes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyjepa.spec import AdalnTransformer


class AdalnLayer(nn.Module):
    """Attention and MLP, each between a modulated norm and a gate. The gates are zero at first: the identity."""

    def __init__(self, block: AdalnTransformer) -> None:
        super().__init__()
        width, inner = block.width, block.heads * block.head_dim
        self.heads = block.heads
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.norm0, self.norm1 = nn.LayerNorm(width, eps=1e-5), nn.LayerNorm(width, eps=1e-5)
        self.qkv, self.out = nn.Linear(width, 3 * inner, bias=False), nn.Linear(inner, width)
        self.linear0, self.linear1 = nn.Linear(width, block.hidden), nn.Linear(block.hidden, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Tokens (B, T, W) and silu of their conditions (B, T, W) -> (B, T, W)."""
        shift, scale, gate, shift1, scale1, gate1 = self.modulation(condition).chunk(6, dim=-1)
        h = self.norm0(_modulated(x, shift, scale))
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + gate * self.out(mixed.transpose(1, 2).flatten(2))
        h = functional.gelu(self.linear0(self.norm1(_modulated(x, shift1, scale1))))
        output: Tensor = x + gate1 * self.linear1(h)
        return output


class AdalnTransformerBlock(nn.Module):
    """See `pyjepa.spec.AdalnTransformer`."""

    def __init__(self, block: AdalnTransformer, latent: int, inputs: int) -> None:
        """``latent``: L; ``inputs``: A'."""
        super().__init__()
        self.block = block
        self.position = nn.Parameter(torch.randn(block.window, block.width))
        if block.width != latent:
            self.input = nn.Linear(latent, block.width)
        self.action0, self.action1 = nn.Linear(inputs, block.embedding), nn.Linear(block.embedding, block.width)
        for d in range(block.depth):
            self.add_module(f"layer{d}", AdalnLayer(block))
        self.norm = nn.LayerNorm(block.width, eps=1e-5)
        self.output_shape = (block.width,)

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        """(B, T, L) and (B, T, A') -> (B, T, W); of each token what it and those before it say.

        Raises ValueError for more tokens than positions.
        """
        length = states.shape[1]
        if length > self.block.window:
            raise ValueError(f"{length} states are more than the window of {self.block.window}")
        x = (self.input(states) if hasattr(self, "input") else states) + self.position[:length]
        condition = functional.silu(self.action1(functional.silu(self.action0(actions))))
        for d in range(self.block.depth):
            x = self.get_submodule(f"layer{d}")(x, condition)
        output: Tensor = self.norm(x)
        return output


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
