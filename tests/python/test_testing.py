"""The test bed itself."""

import pytest
from llmd import sched
from llmd.testing import (
    TestBed,
    TestRequest,
    drops,
    picks,
    picks_for,
    picks_in_order,
    refuses,
    scores,
    sends_header,
    totals,
)

PRECISE = sched.make_config(
    [
        "precise-prefix-cache-producer",
        {
            "type": "prefix-cache-scorer",
            "parameters": {"prefixMatchInfoProducerName": "precise-prefix-cache-producer"},
        },
        "queue-scorer",
        "decode-filter",
    ],
    {"default": {"decode-filter": None, "prefix-cache-scorer": 3, "queue-scorer": 1}},
)


def bed_of_two():
    bed = TestBed()
    bed.endpoint("a").waiting(4).kv_usage(0.5).holds("chat", 512)
    bed.endpoint("b").waiting(0).kv_usage(0.1)
    return bed


def test_prefixes_queues_and_matchers():
    bed = bed_of_two()
    bed.configure(PRECISE)
    outcome = bed.decide(TestRequest("chat", 1024))
    assert outcome == picks("a") and outcome == picks_in_order(["a"]) and outcome == picks_for("default", "a")
    assert outcome == scores("prefix-cache-scorer", {"a": 0.5, "b": 0.0})
    assert outcome == scores("queue-scorer", {"a": 0.0, "b": 1.0}) and outcome == totals({"a": 1.5, "b": 1.0})
    assert outcome != picks("b") and outcome != totals({"a": 1.5}) and outcome != refuses("UNAVAILABLE")
    assert bed.decide(TestRequest("other", 1024)) == picks("b")
    assert "queue-scorer" in repr(outcome) and repr(picks("b")) == "<an outcome that picks b>"


def test_filters_and_refusals():
    bed = TestBed()
    bed.endpoint("p").role("prefill").waiting(0)
    bed.configure(PRECISE)
    outcome = bed.decide(TestRequest("x", 10))
    assert outcome == refuses("RESOURCE_EXHAUSTED", "rejected-saturated") and outcome == drops("p", "decode-filter")
    assert outcome.targets == []
    assert bed.filter("prefill-filter", None, TestRequest("x", 10)) == ["p"]
    assert bed.filter("decode-filter", None, TestRequest("x", 10)) == []


def test_load_stays_until_finish_and_time_advances():
    bed = TestBed()
    bed.configure(sched.make_config(["active-request-scorer"]))
    bed.endpoint("a").waiting(0)
    bed.endpoint("b").waiting(0).in_flight(1)
    assert bed.decide(TestRequest("x", 10)) == picks("a")
    bed.endpoint("b")
    assert set(bed.score("active-request-scorer", None, TestRequest("x", 10))) == {"a", "b"}
    bed.finish()
    assert bed.ask(TestRequest("x", 10)) == picks("a")
    before = bed.now
    bed.advance(2.5)
    assert bed.now == before + 2.5
    assert bed.decide_among(["b"], TestRequest("x", 10)) == picks("b")


def test_approximate_source_learns():
    bed = TestBed()
    for name in "abc":
        bed.endpoint(name).waiting(0).kv_usage(0.0)
    bed.configure(sched.make_config(["prefix-cache-scorer"]))
    first = bed.decide(TestRequest("chat", 1000), seed=5)
    for seed in range(10):
        assert bed.ask(TestRequest("chat", 1000), seed=seed) == picks(first.targets[0])


def test_headers_of_disaggregated_serving():
    bed = TestBed()
    bed.endpoint("p").role("prefill").address("10.0.0.1", 9000).waiting(0)
    bed.endpoint("d").role("decode").address("10.0.0.2").waiting(0)
    bed.configure(
        sched.make_config(
            [
                "prefill-filter",
                "decode-filter",
                "max-score-picker",
                "approx-prefix-cache-producer",
                {"type": "prefix-based-pd-decider", "parameters": {"nonCachedTokens": 1000}},
                {
                    "type": "disagg-profile-handler",
                    "parameters": {"deciders": {"prefill": "prefix-based-pd-decider"}},
                },
                "disagg-headers-handler",
            ],
            {"prefill": ["prefill-filter"], "decode": ["decode-filter"]},
        )
    )
    outcome = bed.decide(TestRequest("chat", 4000))
    assert outcome == picks("d") and outcome == picks_for("prefill", "p")
    assert outcome == sends_header("x-prefiller-host-port", "10.0.0.1:9000")


def test_plugins_of_the_test():
    class Alphabet:
        def score(self, context, candidates, scores):
            scores[:] = [1 / ord(context.endpoint(int(p)).name) for p in candidates]

    bed = bed_of_two()
    bed.registry.register("alphabet", Alphabet)
    assert bed.score("alphabet", {}, TestRequest("x", 1)) == pytest.approx({"a": 1 / 97, "b": 1 / 98})


def test_mistakes_are_errors():
    bed = bed_of_two()
    with pytest.raises(KeyError, match="no endpoint is named 'c'"):
        bed.decide_among(["c"], TestRequest("x", 1))
    with pytest.raises(ValueError, match="before all else"):
        bed.endpoint("a").label("x", "y")
    with pytest.raises(ValueError, match="not registered"):
        bed.score("no-such-scorer", None, TestRequest("x", 1))
    with pytest.raises(KeyError, match="no scorer"):
        bed.decide(TestRequest("x", 1)).scores_of("none")
    with pytest.raises(ValueError, match="before prompt"):
        TestRequest().item("image", "h")
    bed.remove("a")
    assert bed.decide(TestRequest("chat", 512)) == picks("b")
    with pytest.raises(KeyError):
        bed.remove("a")
