"""A whole configuration file: who is picked, and why."""

import pathlib

import pytest
from warm_start_scorer import WarmStartScorer

from llmd.testing import TestBed, TestRequest, drops, picks, refuses, totals


@pytest.fixture
def bed():
    bed = TestBed()
    bed.registry.register("warm-start-scorer", WarmStartScorer)
    bed.configure(pathlib.Path(__file__).with_name("config.yaml").read_text())
    bed.endpoint("busy").role("decode").waiting(10).attribute("uptime_seconds", 3600)
    bed.endpoint("idle").role("decode").waiting(0).attribute("uptime_seconds", 3600)
    bed.endpoint("prefill").role("prefill").waiting(0).attribute("uptime_seconds", 3600)
    return bed


def test_a_new_conversation_goes_where_nobody_waits(bed):
    outcome = bed.decide(TestRequest("hello", 320))
    assert outcome == picks("idle")
    # idle: 3 * 0 + 2 * 1 + 1 * 1; busy: 3 * 0 + 2 * 0 + 1 * 1
    assert outcome == totals({"idle": 3.0, "busy": 1.0})


def test_a_long_prefix_is_worth_a_queue(bed):
    bed.endpoint("busy").holds("conversation", 288)  # 18 of 20 blocks
    outcome = bed.decide(TestRequest("conversation", 320))
    assert outcome == picks("busy")
    # busy: 3 * 0.9 + 2 * 0 + 1; idle: 3 * 0 + 2 * 1 + 1
    assert outcome == totals({"busy": 3.7, "idle": 3.0})


def test_a_short_one_is_not(bed):
    bed.endpoint("busy").holds("conversation", 160)
    assert bed.decide(TestRequest("conversation", 320)) == picks("idle")


def test_prefillers_do_not_decode(bed):
    assert bed.decide(TestRequest("hello", 320)) == drops("prefill", "decode-filter")
    bed.remove("busy")
    bed.remove("idle")
    assert bed.decide(TestRequest("hello", 320)) == refuses("RESOURCE_EXHAUSTED", "rejected-saturated")
