"""A function of tensors captured in a CUDA graph, with pinned host memory at both ends. Only a GPU can run this file.

The whole call - arrays in, launches, arrays out - is one graph launch: a planner's iteration then costs one driver
call, however many kernels a rollout takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Captured:
    """`function`, which takes and returns tensors of fixed shapes on a GPU, as a function of NumPy arrays."""

    def __init__(
        self, function: Callable[..., Sequence[Tensor]], shapes: Sequence[tuple[int, ...]], device: torch.device
    ) -> None:
        """``shapes``: of the float32 arguments. Runs the function a few times: the first call compiles its kernels."""
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._inputs = [torch.zeros(shape, pin_memory=True) for shape in shapes]
            inputs = [torch.zeros(shape, device=device) for shape in shapes]
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(3):
                    outputs = function(*inputs)
            self._stream.synchronize()
            self._outputs = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in outputs]
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=self._stream):
                for host, there in zip(self._inputs, inputs, strict=True):
                    there.copy_(host, non_blocking=True)
                for back, there in zip(self._outputs, function(*inputs), strict=True):
                    back.copy_(there, non_blocking=True)
            self._device_inputs = inputs  # the graph reads them
        self._device = device

    def __call__(self, arrays: Sequence[npt.NDArray[np.float32]], out: Sequence[npt.NDArray[np.float32]]) -> None:
        """Copies arrays in, runs, waits, and copies the results to `out`."""
        for host, array in zip(self._inputs, arrays, strict=True):
            host.numpy()[...] = array
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            self._graph.replay()
        self._stream.synchronize()
        for back, array in zip(self._outputs, out, strict=True):
            array[...] = back.numpy()
