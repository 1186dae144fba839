"""Kernels run under Triton's interpreter here (see the conftest above), unless there is a GPU to run them on."""

import pytest
import torch


@pytest.fixture
def device():
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def poisoned(monkeypatch):
    """Fill every `torch.empty` of the launchers with NaN, so that an element left unwritten shows."""
    empty, new_empty = torch.empty, torch.Tensor.new_empty

    def poison(tensor):
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: poison(empty(*args, **kwargs)))
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda self, *args, **kwargs: poison(new_empty(self, *args, **kwargs))
    )
