"""The scheduler from Python: pools, decisions, plugins written in Python, configurations."""

import gc
import threading
import weakref

import llmd
import numpy as np
import pytest
from llmd import index, sched


def pool_of(*waiting):
    pool = sched.EndpointPool()
    for i, requests in enumerate(waiting):
        handle = pool.add(f"w{i}", f"10.0.0.{i + 1}", 8000)
        pool.set_metrics(handle, waiting=requests, running=0, kv_usage=0.1, at=1.0)
    return pool


def scheduler_of(*plugins, registry=None, **arguments):
    return sched.Scheduler(sched.make_config(plugins), registry=registry, **arguments)


# --- Pools ---


def test_pool_keeps_what_was_set_and_unknown_is_not_zero():
    pool = sched.EndpointPool()
    handle = pool.add("a", "::1", 80, labels={"llm-d.ai/role": "decode"}, namespace="n", rank=2)
    endpoint = pool.find("n/a")
    assert endpoint.handle == handle and endpoint.host_port == "[::1]:80" and endpoint.rank == 2
    assert endpoint.labels == {"llm-d.ai/role": "decode"}
    assert endpoint.waiting is None and endpoint.updated is None and endpoint.adapters is None
    pool.set_metrics(handle, waiting=3, kv_usage=0.25, max_adapters=2, active_adapters=["x"], at=5.5)
    pool.set_attribute(handle, "uptime", 7.0, at=5.5)
    assert endpoint.waiting is None, "a view is of one moment"
    endpoint = pool.find(handle)
    assert (endpoint.waiting, endpoint.running, endpoint.kv_usage, endpoint.updated) == (3, None, 0.25, 5.5)
    assert endpoint.adapters == (2, ["x"], []) and endpoint.attributes == {"uptime": 7.0}
    assert pool.remove(handle) and not pool.remove(handle)
    assert len(pool) == 0 and pool.find(handle) is None


@pytest.mark.parametrize(
    "arguments, message", [(("", "h", 1), "name"), (("a", "", 1), "address"), (("a", "h", 0), "port is 0")]
)
def test_pool_refuses_bad_endpoints(arguments, message):
    with pytest.raises(ValueError, match=message):
        sched.EndpointPool().add(*arguments)


def test_pool_errors():
    pool = pool_of(1)
    with pytest.raises(llmd.AlreadyExistsError, match="default/w0"):
        pool.add("w0", "h", 1)
    gone = pool.add("gone", "h", 1)
    pool.remove(gone)
    with pytest.raises(llmd.NotFoundError, match=r"EndpointHandle\(1, 1\) is not in the pool"):
        pool.set_metrics(gone, waiting=1)
    with pytest.raises(ValueError, match="kv_usage is 1.5"):
        pool.set_metrics(pool.find("default/w0").handle, kv_usage=1.5)
    with pytest.raises(ValueError, match="at"):
        pool.set_metrics(pool.find("default/w0").handle, waiting=1, at=float("nan"))


# --- Decisions ---


def test_decision_and_explanation():
    scheduler = scheduler_of("queue-scorer", {"type": "running-requests-size-scorer"})
    pool = pool_of(4, 0, 2)
    decision = scheduler.schedule(sched.Request("m", [sched.Prompt(token_count=3)]), pool, now=2, seed=7)
    assert decision.target.name == "w1" and decision.address == "10.0.0.2:8000" and decision.primary == "default"
    assert decision.headers == {"x-gateway-destination-endpoint": "10.0.0.2:8000"}
    assert decision.profiles["default"].state == "done"
    profile = decision.explanation.profiles["default"]
    assert profile.scores_of("queue-scorer") == {"w0": 0.0, "w1": 1.0, "w2": 0.5}
    assert [name for name, _ in profile.scorers] == ["queue-scorer", "running-requests-size-scorer"]
    assert profile.raw.shape == (2, 3) and np.array_equal(profile.weighted.sum(axis=0), profile.totals)
    assert decision.scores["10.0.0.2:8000"] == profile.totals.max()
    assert "queue-scorer" in str(decision.explanation) and decision.explanation.seed == 7
    again = scheduler.schedule(sched.Request("m", [sched.Prompt(token_count=3)]), pool, now=2, seed=7)
    assert again.explanation == decision.explanation


def test_candidates_and_a_pool_that_changes_after_the_decision():
    scheduler, pool = scheduler_of("queue-scorer"), pool_of(0, 1, 2)
    decision = scheduler.schedule(sched.Request(), pool, candidates=[2, 1])
    pool.remove(decision.target.handle)
    assert decision.target.name == "w1" and decision.destination == "10.0.0.2:8000"
    assert scheduler.schedule(sched.Request(), pool, candidates=pool.endpoints()[1:]).target.name == "w2"
    with pytest.raises(ValueError, match="candidates"):
        scheduler.schedule(sched.Request(), pool, candidates=[9])


def test_refusals_carry_their_decision():
    scheduler = scheduler_of("decode-filter", "queue-scorer")
    with pytest.raises(llmd.UnavailableError) as refused:
        scheduler.schedule(sched.Request(), sched.EndpointPool())
    decision = refused.value.decision
    assert (decision.code, decision.http_status, decision.dropped_reason) == (
        "UNAVAILABLE",
        503,
        "rejected-no-endpoints",
    )
    assert decision.headers == {"x-llm-d-request-dropped-reason": "rejected-no-endpoints"} and decision.targets == []
    pool = sched.EndpointPool()
    pool.add("p", "h", 1, labels={"llm-d.ai/role": "prefill"})
    decision = scheduler.schedule(sched.Request(), pool, check=False)
    assert not decision.ok and decision.code == "RESOURCE_EXHAUSTED"
    assert [(d.endpoint.name, d.filter) for d in decision.explanation.profiles["default"].drops] == [
        ("p", "decode-filter")
    ]
    with pytest.raises(llmd.FailedPreconditionError):
        decision.dispatch()


def test_dispatch_counts_load_until_the_flight_ends():
    scheduler = scheduler_of("active-request-scorer")
    pool = pool_of(0, 0)
    states = scheduler._core.states

    def load(decision):
        return states.in_flight("inflight-load-producer", decision.target.handle)[0]

    first = scheduler.schedule(sched.Request(), pool, seed=1)
    flight = first.dispatch()
    assert flight.open and load(first) == 1
    second = scheduler.schedule(sched.Request(), pool, seed=1)
    assert second.target != first.target, "the load counts at once"
    with second.dispatch():
        assert load(second) == 1
    assert load(second) == 0
    flight.on_response_headers(now=1)
    flight.on_response_body(first=True, now=2)
    assert load(first) == 1
    flight.on_response_body(last=True, prompt_tokens=1, completion_tokens=2, now=3)
    assert load(first) == 0 and not flight.open
    with pytest.raises(llmd.FailedPreconditionError, match="dispatched before"):
        first.dispatch()
    third = scheduler.schedule(sched.Request(), pool)
    third_flight = third.dispatch()
    assert load(third) == 1
    del third_flight
    gc.collect()
    assert load(third) == 0, "a flight that is forgotten undoes its load"


def test_more_decisions_than_workspaces():
    scheduler, pool = scheduler_of("queue-scorer"), pool_of(0, 1)
    decisions = [scheduler.schedule(sched.Request(), pool) for _ in range(100)]
    with pytest.raises(llmd.FailedPreconditionError, match="64 later ones"):
        decisions[0].dispatch()
    decisions[-1].dispatch().close()


def test_reload_keeps_memory():
    pool = pool_of(0, 0)
    old = scheduler_of("active-request-scorer")
    flight = old.schedule(sched.Request(), pool, seed=3).dispatch()
    new = scheduler_of("active-request-scorer", replaces=old)
    del old
    gc.collect()
    loads = [new._core.states.in_flight("inflight-load-producer", e.handle)[0] for e in pool]
    assert sorted(loads) == [0, 1]
    flight.close()


# --- Prefixes ---


def precise(**arguments):
    config = sched.make_config(
        [
            "precise-prefix-cache-producer",
            {
                "type": "prefix-cache-scorer",
                "parameters": {"prefixMatchInfoProducerName": "precise-prefix-cache-producer"},
            },
        ]
    )
    return sched.Scheduler(config, **arguments)


def test_exact_prefixes_decide():
    cache, pool, ingestor_of = index.PrefixIndex(), pool_of(0, 0, 0), {}
    for endpoint in pool:
        holder = cache.add_holder(endpoint.host_port)
        pool.bind_holder(holder, endpoint.handle)
        ingestor_of[endpoint.name] = holder
    scheduler = precise(exact=cache)
    tokens = np.arange(100, dtype=np.int64)
    request = scheduler.request(tokens, model="m")
    chain = request.prompts[0].chains[sched.EXACT]
    assert chain.block_size == 16 and len(chain.keys) == 6
    assert chain.namespace == index.request_namespace("m", block_size=16)
    cache.store(ingestor_of["w2"], chain.namespace, engine_keys=chain.keys[:4], content_keys=chain.keys[:4])
    decision = scheduler.schedule(request, pool)
    assert decision.target.name == "w2"
    assert decision.explanation.profiles["default"].scores_of("prefix-cache-scorer")["w2"] == pytest.approx(4 / 6)
    other = scheduler.request(tokens, model="other")
    scores = scheduler.schedule(other, pool).explanation.profiles["default"].scores_of("prefix-cache-scorer")
    assert set(scores.values()) == {0.0}


def test_holders_follow_the_index():
    cache, pool = index.PrefixIndex(), pool_of(0, 0)
    first = cache.add_holder("10.0.0.2:8000")
    cache.add_holder("10.9.9.9:1")  # of nobody here
    assert pool.bind_index(cache) == 1 == pool.bind_index(cache)
    scheduler = precise(exact=cache)
    request = scheduler.request(list(range(64)), model="m")
    chain = request.prompts[0].chains[sched.EXACT]

    def score(name):
        cache.store(
            cache.find_holder("10.0.0.2:8000"), chain.namespace, engine_keys=chain.keys, content_keys=chain.keys
        )
        return scheduler.schedule(request, pool).explanation.profiles["default"].scores_of("prefix-cache-scorer")[name]

    assert score("w1") == 1.0
    cache.retire(first)
    cache.add_holder("10.0.0.1:8000")  # takes the slot
    cache.add_holder("10.0.0.2:8000")
    assert pool.bind_index(cache) == 2
    assert score("w1") == 1.0 and score("w0") == 0.0
    pool.remove(pool.find("default/w1").handle)
    assert pool.bind_index(cache) == 1
    with pytest.raises(ValueError, match="source is 8"):
        pool.bind_index(cache, source=8)


def test_approximate_prefixes_learn_from_dispatches():
    guess, pool = index.ApproxIndex(), pool_of(0, 0, 0)
    for endpoint in pool:
        pool.bind_holder(guess.add_holder(endpoint.host_port), endpoint.handle, source=sched.APPROXIMATE)
    scheduler = scheduler_of("prefix-cache-scorer", approximate=guess)
    request = scheduler.request(list(range(1000)), model="m")
    first = scheduler.schedule(request, pool, now=1)
    first.dispatch().close()
    for seed in range(20):
        assert scheduler.schedule(request, pool, now=2, seed=seed).target == first.target


@pytest.mark.parametrize("tokens", [[-1], np.array([-1], dtype=np.int32), np.array([2**32], dtype=np.int64)])
def test_bad_tokens_name_the_argument(tokens):
    with pytest.raises(ValueError, match=r"tokens\[0\]"):
        precise(exact=index.PrefixIndex()).request(tokens)


def test_prefix_sources_are_checked():
    with pytest.raises(llmd.FailedPreconditionError, match="no index as prefix source 0; give `exact=`"):
        precise()
    with pytest.raises(TypeError, match="exact is of type object"):
        precise(exact=object())


# --- Plugins written in Python ---


class Longest:
    """Prefers a label's number."""

    def __init__(self, label="n"):
        self.label = label

    def score(self, context, candidates, scores):
        for i, position in enumerate(candidates):
            scores[i] = float(context.endpoint(int(position)).labels.get(self.label, "nan"))


def labelled(*numbers):
    pool = sched.EndpointPool()
    for i, number in enumerate(numbers):
        pool.add(f"w{i}", f"10.0.0.{i + 1}", 8000, labels={} if number is None else {"n": str(number)})
    return pool


def registry_with(**factories):
    registry = sched.Registry()
    for name, factory in factories.items():
        registry.register(name.replace("_", "-"), factory)
    return registry


def test_scorer_beside_native_ones():
    registry = registry_with(longest=Longest)
    scheduler = scheduler_of("longest", "queue-scorer", registry=registry)
    pool = labelled(0.25, 0.75, None)
    decision = scheduler.schedule(sched.Request(), pool, seed=1)
    explained = decision.explanation.profiles["default"]
    assert explained.scores_of("longest") == {"w0": 0.25, "w1": 0.75}, "NaN is no opinion"
    cost = decision.explanation.costs["longest"]
    assert cost.calls == 1 and cost.errors == 0 and 0 < cost.seconds < 5 and 0 <= cost.gil_seconds <= cost.seconds
    assert "longest: 1 calls in Python" in str(decision.explanation)
    scheduler.schedule(sched.Request(), pool)
    assert scheduler.costs()["longest"].calls == 2 and "queue-scorer" not in scheduler.costs()


def test_scorer_may_return_its_scores_and_sees_arrays():
    seen = {}

    class Arrays:
        def score(self, context, candidates, scores):
            seen.update(
                candidates=candidates.tolist(),
                waiting=context.waiting,
                kv=context.kv_usage,
                missing=context.attribute("none"),
                now=context.now,
                size=context.pool_size,
                request=context.request,
                kept=scores,
            )
            return [0.5] * len(candidates)

    registry = registry_with(arrays=Arrays)
    request = sched.Request("m", headers={"X-A": "1"})
    decision = scheduler_of("arrays", registry=registry).schedule(request, pool_of(4, 0), now=9, candidates=[1])
    assert decision.explanation.profiles["default"].scores_of("arrays") == {"w1": 0.5}
    assert seen["candidates"] == [1] and seen["waiting"].tolist() == [0.0] and np.isnan(seen["missing"]).all()
    assert seen["now"] == 9 and seen["size"] == 2 and seen["request"] is request
    assert request.header("x-a") == "1"
    seen["kept"][:] = 1  # memory of its own: harmless


def test_filter_with_mask_and_with_reasons():
    class Mask:
        reason = "too small"

        def filter(self, context, candidates):
            return np.array([context.endpoint(int(p)).name != "w0" for p in candidates])

    class Reasons:
        def filter(self, context, candidates):
            return [None if context.endpoint(int(p)).name != "w1" else "is w1" for p in candidates]

    registry = registry_with(mask=Mask, reasons=Reasons)
    decision = scheduler_of("mask", "reasons", registry=registry).schedule(sched.Request(), pool_of(0, 0, 0))
    assert decision.target.name == "w2"
    drops = decision.explanation.profiles["default"].drops
    assert [(d.endpoint.name, d.filter, d.reason) for d in drops] == [
        ("w0", "mask", "too small"),
        ("w1", "reasons", "is w1"),
    ]


def test_picker_sees_scores_and_ties():
    class Worst:
        def pick(self, context, positions, scores, ties):
            assert len(set(ties.tolist())) == len(ties)
            return positions[np.argsort(scores)][:2]

    registry = registry_with(worst=Worst)
    decision = scheduler_of("queue-scorer", "worst", registry=registry).schedule(sched.Request(), pool_of(4, 0, 9))
    assert [e.name for e in decision.targets] == ["w2", "w0"]


def test_producer_feeds_a_native_scorer_and_another_plugin():
    class Matches:
        produces = "PrefixCacheMatchInfo"

        def produce(self, context, values):
            values["total_blocks"] = 10
            values["block_size"] = 16
            values["match_blocks"] = np.arange(len(values))
            values["cached_blocks"] = values["match_blocks"]

    class Reader:
        consumes = {"match": ("PrefixCacheMatchInfo", "matches"), "maybe": ("Number", "silent")}

        def score(self, context, candidates, scores):
            assert context.data("maybe") is None
            scores[:] = context.data("match")["match_blocks"][candidates] / 10
            with pytest.raises(KeyError, match="consumes"):
                context.data("other")

    class Silent:
        def produce(self, context, values):
            return False

    registry = registry_with(matches=Matches, reader=Reader, silent=Silent)
    scheduler = scheduler_of(
        "silent",
        "reader",
        "matches",
        {"type": "prefix-cache-scorer", "parameters": {"prefixMatchInfoProducerName": "matches"}},
        registry=registry,
    )
    decision = scheduler.schedule(sched.Request(), pool_of(0, 0, 0))
    explained = decision.explanation.profiles["default"]
    assert decision.target.name == "w2"
    assert (
        explained.scores_of("reader") == explained.scores_of("prefix-cache-scorer") == {"w0": 0, "w1": 0.1, "w2": 0.2}
    )


def test_exceptions_become_the_error_of_the_decision():
    class Broken:
        def score(self, context, candidates, scores):
            raise LookupError("no such thing")

    registry = registry_with(broken=Broken)
    scheduler = sched.Scheduler(
        sched.make_config([{"type": "broken", "name": "mine"}, "queue-scorer"]), registry=registry
    )
    with pytest.raises(sched.PluginError, match='plugin "mine": LookupError: no such thing') as failed:
        scheduler.schedule(sched.Request(), pool_of(0))
    assert failed.value.plugin == "mine" and isinstance(failed.value.__cause__, LookupError)
    assert failed.value.__cause__.__traceback__ is not None
    decision = scheduler.schedule(sched.Request(), pool_of(0), check=False)
    assert decision.code == "INTERNAL" and decision.http_status == 500
    assert scheduler.costs()["mine"].errors == 2
    with pytest.raises(llmd.FailedPreconditionError):
        decision.dispatch()


class Interrupts:
    def score(self, context, candidates, scores):
        raise KeyboardInterrupt


class TooFew:
    def score(self, context, candidates, scores):
        return [1.0]


class NoSequence:
    def filter(self, context, candidates):
        return "keep"


class TooMany:
    def filter(self, context, candidates):
        return [True] * 99


class Nobody:
    def pick(self, context, positions, scores, ties):
        return []


class Twice:
    def pick(self, context, positions, scores, ties):
        return [positions[0], positions[0]]


class WrongSize:
    def produce(self, context, values):
        return np.zeros(1)


@pytest.mark.parametrize(
    "factory, message",
    [
        (TooFew, "score gave 1 numbers, wanted 2"),
        (NoSequence, "filter gave no sequence"),
        (TooMany, "more elements than 2"),
        (Nobody, "pick gave 0 positions"),
        (Twice, "no candidate or given twice"),
        (WrongSize, "produce gave 1 values"),
    ],
)
def test_bad_results_of_plugins(factory, message):
    scheduler = scheduler_of("bad", "queue-scorer", registry=registry_with(bad=factory))
    with pytest.raises(sched.PluginError, match=message):
        scheduler.schedule(sched.Request(), pool_of(0, 1))


def test_interrupts_are_not_swallowed():
    scheduler = scheduler_of("interrupts", registry=registry_with(interrupts=Interrupts))
    with pytest.raises(KeyboardInterrupt):
        scheduler.schedule(sched.Request(), pool_of(0))


def test_context_is_void_after_the_call():
    kept = []

    class Keeps:
        def score(self, context, candidates, scores):
            kept.append(context)

    scheduler_of("keeps", registry=registry_with(keeps=Keeps)).schedule(sched.Request(), pool_of(0))
    for use in ("now", "request", "waiting", "candidates"):
        with pytest.raises(RuntimeError, match="after the call"):
            getattr(kept[0], use)


def test_plugins_that_cannot_be_made():
    registry = registry_with(
        longest=Longest, nothing=object, reads=type("R", (), {"consumes": {"a": ("Nope", "x")}, "score": print})
    )
    with pytest.raises(ValueError, match=r'line 1: plugins\[0\].*plugin "longest": TypeError.*unknown'):
        scheduler_of({"type": "longest", "parameters": {"unknown": 1}}, registry=registry)
    with pytest.raises(ValueError, match="none of the methods"):
        scheduler_of("nothing", registry=registry)
    with pytest.raises(ValueError, match='data type "Nope", wanted PrefixCacheMatchInfo'):
        scheduler_of("reads", registry=registry)
    with pytest.raises(llmd.AlreadyExistsError):
        registry.register("queue-scorer", Longest)
    with pytest.raises(TypeError, match="callable"):
        registry.register("x", 3)
    scheduler = sched.Registry()
    scheduler.register("alpha", Longest, experimental=True)
    with pytest.raises(ValueError, match="experimental"):
        scheduler_of("alpha", registry=scheduler)
    scheduler_of("alpha", registry=scheduler, allow_experimental=True)


def test_a_plugin_may_use_the_pool_and_decide_by_itself():
    pool = pool_of(0, 0)
    inner = scheduler_of("queue-scorer")

    class Nested:
        def score(self, context, candidates, scores):
            pool.set_metrics(pool.endpoints()[0].handle, waiting=99)
            scores[:] = 0
            scores[candidates == inner.schedule(sched.Request(), pool).target.position] = 1

    scheduler = scheduler_of("nested", registry=registry_with(nested=Nested))
    assert scheduler.schedule(sched.Request(), pool).target.name == "w1"


def test_schedulers_and_plugins_are_freed():
    class Plain:
        def score(self, context, candidates, scores):
            scores[:] = 1

    made = []

    def factory():
        plugin = Plain()
        made.append(weakref.ref(plugin))
        return plugin

    registry = registry_with(plain=factory)
    scheduler = scheduler_of("plain", registry=registry)
    decision = scheduler.schedule(sched.Request(), pool_of(0))
    del scheduler
    gc.collect()
    assert made[0]() is not None, "a decision keeps its scheduler"
    del decision
    gc.collect()
    assert made[0]() is None


def test_threads_decide_with_native_and_python_plugins():
    class Constant:
        def score(self, context, candidates, scores):
            scores[:] = 0.5

    cache, pool = index.PrefixIndex(), pool_of(*range(10))
    scheduler = sched.Scheduler(
        sched.make_config(["constant", "queue-scorer", "active-request-scorer"]),
        registry=registry_with(constant=Constant),
        exact=cache,
    )
    failures = []

    def run(seed):
        try:
            for i in range(100):
                decision = scheduler.schedule(sched.Request(id=str(i)), pool, seed=seed * 1000 + i)
                with decision.dispatch():
                    assert decision.explanation.costs["constant"].calls == 1
                pool.set_metrics(decision.target.handle, waiting=i % 5)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert scheduler.costs()["constant"].calls == 800
    assert all(scheduler._core.states.in_flight("inflight-load-producer", e.handle) == (0, 0) for e in pool)


# --- Configurations ---


def test_parse_and_print():
    text = sched.make_config(
        [{"type": "queue-scorer", "name": "q"}, {"type": "weighted-random-picker"}], {"default": {"q": 2.5}}
    )
    config = sched.parse_config(text)
    assert config.plugins == (("q", "queue-scorer", None), ("weighted-random-picker", "weighted-random-picker", None))
    assert config.profiles == {"default": (("q", 2.5),)}
    assert sched.parse_config(str(config)).plugins == config.plugins
    scheduler = sched.Scheduler(config)
    assert "single-profile-handler" in scheduler.config == sched.print_config(scheduler)
    assert sched.parse_config(sched.print_config(scheduler), allow_experimental=True)


def test_errors_name_file_and_line(tmp_path):
    path = tmp_path / "epp.yaml"
    path.write_text(
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n- type: queue-scorer\n- type: no-such\n"
    )
    with pytest.raises(ValueError, match=r"epp.yaml: line 5: plugins\[1\].*no-such"):
        sched.Scheduler.from_file(path)
    with pytest.raises(ValueError, match="here: line 1"):
        sched.parse_config("nonsense: 1", source="here")
    path.write_text(sched.make_config(["queue-scorer"]))
    assert sched.Scheduler.from_file(path).profiles == ["default"]


def test_defaults_and_fairness():
    scheduler = sched.Scheduler(approximate=index.ApproxIndex())
    assert "prefix-cache-scorer" in scheduler.config
    assert scheduler.fairness_id(sched.Request(headers={"x-llm-d-inference-fairness-id": "me"})) == "me"
    assert scheduler.fairness_id(sched.Request()) == "default-flow"
