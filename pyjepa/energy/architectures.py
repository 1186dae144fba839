"""The paper's four architectures (section 4.3, figure 9) on the same blocks, each an `Energy` in a few lines.

(a) prediction cannot collapse; (b) a latent that carries all of y, (c) an auto-encoder that copies and (d) encoders
that are constant can. `features` gives what the energy compares, whose effective rank tells.
"""

from __future__ import annotations

from torch import Tensor, nn

from pyjepa.energy.energies import joined, mlp, squared_distance


class Prediction(nn.Module):
    """(a) Deterministic prediction, `F(x, y) = D(y, Pred(x))`: one minimum for each x, so it cannot be flat."""

    def __init__(self, x_dim: int, y_dim: int, *, hidden: int = 64) -> None:
        super().__init__()
        self.predictor = mlp([x_dim, hidden, hidden, y_dim])

    def features(self, x: Tensor, y: Tensor) -> Tensor:
        """The prediction (..., Y)."""
        out: Tensor = self.predictor(x)
        return out

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The energies (...)."""
        return squared_distance(y, self.features(x, y))


class Generative(nn.Module):
    """(b) Generative with a latent, `E(x, y, z) = D(y, Dec(x, z))`, for a `LatentVariableEBM`.

    The decoder is linear in z. Where z has as many dimensions as y and no limit, there is a z for every y.
    """

    def __init__(self, x_dim: int, y_dim: int, z_dim: int, *, hidden: int = 64) -> None:
        super().__init__()
        self.predictor = mlp([x_dim, hidden, hidden, y_dim])
        self.decoder = nn.Linear(z_dim, y_dim, bias=False)

    def decode(self, x: Tensor, z: Tensor) -> Tensor:
        """The y that z stands for: (..., Y)."""
        predicted, detail = self.predictor(x), self.decoder(z)
        out: Tensor = predicted + detail
        return out

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Tensor:
        """The energies (...)."""
        return squared_distance(y, self.decode(x, z))


class AutoEncoder(nn.Module):
    """(c) Auto-encoder, `F(x, y) = D(y, Dec(Enc(x, y)))`: flat where the code is wide enough to copy y."""

    def __init__(self, x_dim: int, y_dim: int, *, code: int, hidden: int = 64) -> None:
        super().__init__()
        self.encoder = mlp([x_dim + y_dim, hidden, code])
        self.decoder = mlp([code, hidden, y_dim])

    def features(self, x: Tensor, y: Tensor) -> Tensor:
        """The code (..., code)."""
        out: Tensor = self.encoder(joined(x, y))
        return out

    def reconstruct(self, x: Tensor, y: Tensor) -> Tensor:
        """What comes out for y (..., Y): (..., Y)."""
        out: Tensor = self.decoder(self.features(x, y))
        return out

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The energies (...)."""
        return squared_distance(y, self.reconstruct(x, y))


class JointEmbedding(nn.Module):
    """(d) Joint embedding, `F(x, y) = D(Enc_y(y), Pred(Enc_x(x)))`: flat where the encoders are constant."""

    def __init__(self, x_dim: int, y_dim: int, *, embedding: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.encoder_x = mlp([x_dim, hidden, embedding])
        self.encoder_y = mlp([y_dim, hidden, embedding])
        self.predictor = mlp([embedding, hidden, embedding])

    def features(self, x: Tensor, y: Tensor) -> Tensor:
        """`s_y` (..., embedding)."""
        out: Tensor = self.encoder_y(y)
        return out

    def predict(self, x: Tensor) -> Tensor:
        """`ŝ_y = Pred(s_x)` (..., embedding)."""
        out: Tensor = self.predictor(self.encoder_x(x))
        return out

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The energies (...)."""
        return squared_distance(self.features(x, y), self.predict(x))
