"""One scorer at a time: a table of situations and the scores expected in each."""

import pytest
from warm_start_scorer import WarmStartScorer

from llmd.sched import make_config
from llmd.testing import TestBed, TestRequest

REQUEST = TestRequest("any text", 100)


def test_warm_start_ramps_up():
    bed = TestBed()
    bed.registry.register("warm-start-scorer", WarmStartScorer)
    bed.endpoint("new").attribute("uptime_seconds", 15)
    bed.endpoint("old").attribute("uptime_seconds", 90000)
    bed.endpoint("unknown")
    assert bed.score("warm-start-scorer", {}, REQUEST) == {"new": 0.25, "old": 1.0}


def test_warm_start_refuses_a_bad_ramp():
    bed = TestBed()
    bed.registry.register("warm-start-scorer", WarmStartScorer)
    with pytest.raises(ValueError, match="rampSeconds is 0"):
        bed.configure(make_config([{"type": "warm-start-scorer", "parameters": {"rampSeconds": 0}}]))


@pytest.mark.parametrize(
    ("waiting", "expected"),  # (max - waiting) / (max - min); no score without a metric
    [
        ([0, 5, 10], {"0": 1.0, "1": 0.5, "2": 0.0}),
        ([7, 7], {"0": 1.0, "1": 1.0}),
        ([3], {"0": 1.0}),
        ([0, None, 4], {"0": 1.0, "2": 0.0}),
    ],
    ids=["spread", "equal", "alone", "one-never-scraped"],
)
def test_queue_scorer(waiting, expected):
    bed = TestBed()
    for name, requests in enumerate(waiting):
        endpoint = bed.endpoint(str(name))
        if requests is not None:
            endpoint.waiting(requests)
    assert bed.score("queue-scorer", {}, REQUEST) == expected
