"""A scorer of one's own: endpoints that were started long ago are warm, new ones get traffic slowly.

The host sets the attribute "uptime_seconds" of each endpoint. Score = min(1, uptime / ramp); an endpoint without the
attribute gets no score.
"""

import numpy as np

from llmd import sched


class WarmStartScorer:
    def __init__(self, rampSeconds: float = 60.0) -> None:  # named as in the configuration
        if not rampSeconds > 0:
            raise ValueError(f"rampSeconds is {rampSeconds}, expected more than 0")
        self._ramp_seconds = rampSeconds

    def score(self, context: sched.Context, candidates: np.ndarray, scores: np.ndarray) -> None:
        scores[:] = np.minimum(1.0, context.attribute("uptime_seconds") / self._ramp_seconds)
