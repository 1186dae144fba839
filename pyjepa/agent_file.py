"""Writing agent files, and asking the engine's validator about them.

An agent file is a safetensors file with float32 tensors ``module.block.param`` and the spec as JSON under the metadata
key ``pyjepa``. Reading is the engine's business (`pyjepa.load`): its validator is the only one there is, and writing
asks it too, so that what was saved can be loaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from pyjepa import _engine
from pyjepa.atomic import replacing
from pyjepa.spec import Spec

METADATA_KEY = "pyjepa"


def to_bytes(spec: Spec, tensors: Mapping[str, npt.NDArray[np.float32]]) -> bytes:
    """An agent file as bytes; the same spec and tensors give the same bytes.

    Raises `AgentFileError` naming what does not fit, or `UnsupportedError` for what the engine lacks.
    """
    data = _serialize(spec, tensors)
    _engine.Model.parse(data)
    return data


def save(path: str | os.PathLike[str], spec: Spec, tensors: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Write an agent file, or leave what is there untouched.

    The bytes go to a temporary file beside ``path``, which the engine's validator reads back before it takes the
    place of ``path``. Raises like `to_bytes`, and `OSError` where the file cannot be written.
    """
    data = _serialize(spec, tensors)
    with replacing(path) as temporary:
        temporary.write_bytes(data)
        validate(temporary)


def validate(path: str | os.PathLike[str]) -> Spec:
    """The spec of a sound agent file.

    Raises `AgentFileError` naming what is wrong, `UnsupportedError` for what the engine lacks, `OSError` where the
    file cannot be read.
    """
    return Spec.from_json(_engine.Model.load(os.fsencode(path)).spec)


def _serialize(spec: Spec, tensors: Mapping[str, npt.NDArray[np.float32]]) -> bytes:
    # asarray(order="C") rather than ascontiguousarray, which turns a scalar into a vector.
    arrays: dict[str, npt.NDArray[Any]] = {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}
    return bytes(safetensors.numpy.save(arrays, metadata={METADATA_KEY: spec.to_json()}))
