"""What a list of durations comes down to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def milliseconds(seconds: Sequence[float], percentile: float) -> float | None:
    """A percentile (0-100) of durations in seconds, in milliseconds rounded to the microsecond; None without any."""
    return round(float(np.percentile(seconds, percentile)) * 1e3, 3) if len(seconds) else None
