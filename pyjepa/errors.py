"""The exceptions of pyjepa; each is also the built-in exception that says the same, so either may be caught."""

from __future__ import annotations


class PyjepaError(Exception):
    """What every error of pyjepa's own derives from."""


class InvalidArgumentError(PyjepaError, ValueError):
    """A value, shape or size that cannot be; the message gives the one expected and the one given."""


class AgentFileError(PyjepaError, ValueError):
    """An agent file or a spec is damaged or contradicts itself; the message names the place."""


class MemoryFileError(PyjepaError, ValueError):
    """A memory file is damaged or something else."""


class UnsupportedError(PyjepaError, ValueError):
    """Well-formed, but this engine lacks it: a reserved feature or a later version of the format."""


class NotReadyError(PyjepaError, RuntimeError):
    """Called before `configure` or `observe`."""


class BusyError(PyjepaError, RuntimeError):
    """Another thread is inside this agent."""


class RolloutError(PyjepaError, RuntimeError):
    """A rollout callback failed or returned non-finite costs."""


class NonFiniteEnergyError(PyjepaError, FloatingPointError):
    """An energy function returned an infinity or a NaN where a number was needed."""


class DivergedChainError(PyjepaError, RuntimeError):
    """A Markov chain left every bound again and again, restarts included."""


class MissingPackageError(PyjepaError, ImportError):
    """A package of another project is needed and not installed; the message says how to install it."""
