"""Every callable of `llmd.sched` and `gateway` that takes arguments: what each of them wants."""

import llmd.gateway as lg
import llmd.index as li
import llmd.sched as ls
from hostile import (
    BYTES, BYTES_OR_TEXT, FLAG, I64, KEYS, LIST, MAPPING, NUMBER, OBJECT, OPTIONAL_LIST, OPTIONAL_MAPPING,
    OPTIONAL_NUMBER, OPTIONAL_OBJECT, OPTIONAL_TEXT, OPTIONAL_TOKENS, TEXT, TEXTS, TOKENS, U16, U32, U64, case, integer,
    of, optional,
)  # fmt: skip

CONFIG = ls.make_config(["queue-scorer"])


def pool():
    made = ls.EndpointPool()
    return made, made.add("a", "10.0.0.1", 8000)


def of_pool(method):
    """A method of a pool of one endpoint, which is the argument unless another one is given."""

    def call(**arguments):
        made, handle = pool()
        return getattr(made, method)(**{"endpoint": handle, **arguments})

    return call


def schedule(**arguments):
    made, _ = pool()
    return ls.Scheduler(CONFIG).schedule(**{"request": ls.Request("m"), "pool": made, **arguments})


def flight():
    made, _ = pool()
    return ls.Scheduler(CONFIG).schedule(ls.Request("m"), made).dispatch()


RING = lg.RingHash(["a", "b"])

# fmt: off
CASES = [
    case("EndpointPool.add", of(ls.EndpointPool, "add"), name=("a", TEXT), address=("h", TEXT),
         port=(1, integer(1, 65535)), namespace=("n", TEXT), labels=({"a": "b"}, MAPPING),
         node_address=("", TEXT), rank=(0, U32)),
    case("EndpointPool.remove", of(ls.EndpointPool, "remove"),
         endpoint=(ls.EndpointHandle(0, 1), OBJECT)),
    case("set_metrics", of_pool("set_metrics"), endpoint=(ls.EndpointHandle(0, 1), OBJECT),
         waiting=(1, optional(integer(0, 2**63-1))), running=(1, optional(integer(0, 2**63-1))),
         kv_usage=(0.5, OPTIONAL_NUMBER), max_adapters=(1, optional(I64)),
         active_adapters=((), TEXTS), waiting_adapters=((), TEXTS),
         cache_block_size=(1, optional(U32)), cache_num_blocks=(1, optional(U64)),
         at=(0.0, OPTIONAL_NUMBER)),
    case("set_attribute", of_pool("set_attribute"), endpoint=(ls.EndpointHandle(0, 1), OBJECT),
         name=("a", TEXT), value=(1.0, NUMBER), at=(0.0, OPTIONAL_NUMBER)),
    case("bind_holder", of_pool("bind_holder"), holder=((0, 1), OBJECT),
         endpoint=(ls.EndpointHandle(0, 1), OBJECT), source=(0, integer(0, 7)), tier=("gpu", TEXT)),
    case("unbind_holder", of(ls.EndpointPool, "unbind_holder"), holder=((0, 1), OBJECT),
         source=(0, integer(0, 7))),
    case("bind_index", of(ls.EndpointPool, "bind_index"), index=(li.PrefixIndex(), OBJECT),
         source=(0, integer(0, 7))),
    case("EndpointHandle", ls.EndpointHandle, slot=(0, U32), generation=(1, U32)),
    case("Prompt", ls.Prompt, tokens=([1], OPTIONAL_TOKENS), token_count=(0, U64),
         chains=((), LIST), items=((), LIST)),
    case("KeyChain",
         lambda **fields: ls.Prompt(chains=[ls.KeyChain(**fields)]),
         namespace=(li.NamespaceId(1, 1), OBJECT), block_size=(1, integer(1, 2**32-1)),
         keys=([1], KEYS)),
    case("sched.Request", ls.Request, model=("m", TEXT), prompts=((), LIST), id=("", TEXT),
         headers=((), LIST), priority=(0, integer(-2**31, 2**31-1)), fairness_id=("f", TEXT),
         size_bytes=(0, U64), max_output_tokens=(1, optional(U32))),
    case("Scheduler", ls.Scheduler, config=(CONFIG, TEXT),
         source=("s", TEXT), allow_experimental=(True, FLAG), exact=(None, OPTIONAL_OBJECT),
         approximate=(None, OPTIONAL_OBJECT), replaces=(None, OPTIONAL_OBJECT),
         registry=(None, OPTIONAL_OBJECT)),
    case("parse_config", ls.parse_config, text=(CONFIG, TEXT),
         source=("s", TEXT), allow_experimental=(True, FLAG)),
    case("schedule", schedule, request=(ls.Request("m"), OBJECT), pool=(pool()[0], OBJECT),
         candidates=([0], OPTIONAL_LIST), now=(0.0, OPTIONAL_NUMBER), seed=(1, optional(U64))),
    case("Scheduler.request", of(lambda: ls.Scheduler(CONFIG), "request"),
         tokens=([1], TOKENS), model=("m", TEXT), lora=("", TEXT), cache_salt=("", TEXT),
         items=((), LIST), engine_block_size=(0, U32)),
    case("fairness_id", of(lambda: ls.Scheduler(CONFIG), "fairness_id"),
         request=(ls.Request("m"), OBJECT)),
    case("on_response_body", of(flight, "on_response_body"), first=(True, FLAG), last=(True, FLAG),
         prompt_tokens=(1, optional(integer(0, 2**53))),
         completion_tokens=(1, optional(integer(0, 2**53))), now=(0.0, OPTIONAL_NUMBER)),
    case("register", of(ls.Registry, "register"), type_name=("t", TEXT),
         factory=(dict, OPTIONAL_OBJECT), experimental=(False, FLAG)),
    case("api_of_path", lg.api_of_path, path=("/", TEXT)),
    case("parse_request", lg.parse_request, path=("/v1/completions", TEXT),
         body=(b'{"model": "m", "prompt": ""}', BYTES), max_depth=(9, U64),
         max_body_bytes=(99, U64)),
    case("replace_model", lg.replace_model, body=(b'{"model": "m", "prompt": ""}', BYTES),
         request=(lg.parse_request("/v1/completions", b'{"model": "m", "prompt": ""}'), OBJECT),
         model=("n", TEXT)),
    case("UsageReader", lg.UsageReader, event_stream=(True, FLAG)),
    case("UsageReader.append", of(lambda: lg.UsageReader(event_stream=True), "append"),
         piece=(b"", BYTES)),
    case("SessionIdReader", lg.SessionIdReader,
         sources=((lg.SessionSource("header", "a"),), OPTIONAL_LIST),
         max_bytes=(9, integer(1, 2**64-1))),
    case("SessionIdReader.read", of(lg.SessionIdReader, "read"), headers=((), LIST)),
    case("find_cookie", lg.find_cookie, cookie_header=("a=1", TEXT), name=("a", TEXT)),
    case("envoy_address_key", lg.envoy_address_key, address=("a", TEXT), port=(1, U16)),
    case("xxhash64", lg.xxhash64, text=(b"", BYTES_OR_TEXT), seed=(0, U64)),
    case("murmurhash2", lg.murmurhash2, text=(b"", BYTES_OR_TEXT)),
    case("combine_hashes", lg.combine_hashes, hashes=([1], LIST)),
    case("hash_hosts_of", lg.hash_hosts_of, pool=(pool()[0], OBJECT)),
    case("RingHash", lg.RingHash, hosts=(["a"], LIST), min_ring_size=(1, integer(1, 8388608)),
         max_ring_size=(1024, integer(1, 8388608)), function=("xxhash", TEXT),
         locality_weights=((), LIST)),
    case("Maglev", lg.Maglev, hosts=(["a"], LIST), table_size=(11, U64),
         locality_weights=((), LIST)),
    case("pick", RING.pick, hash=(1, U64), attempt=(0, U32)),
    case("pick_many", RING.pick_many, hashes=([1], KEYS)),
    case("bounded", RING.bounded, balance_factor=(100, U32)),
    case("BoundedLoad.pick", of(lambda: RING.bounded(100), "pick"), host=(0, optional(U32)),
         hash=(1, U64), active=([0, 0], LIST), total=(0, optional(U64))),
    case("EngineMetricsReader", lg.EngineMetricsReader, engine=("vllm", TEXT),
         parameters=(None, OPTIONAL_MAPPING), first_rank_alone=(False, FLAG)),
    case("EngineMetricsReader", lg.EngineMetricsReader, labels=({}, OPTIONAL_MAPPING)),
    case("EngineMetricsReader.read", of(lg.EngineMetricsReader, "read"), page=(b"", BYTES_OR_TEXT),
         now=(0.0, OPTIONAL_NUMBER)),
    case("update", of(lg.EngineMetricsReader, "update"), page=(b"", BYTES_OR_TEXT),
         pool=(pool()[0], OBJECT), endpoint=(ls.EndpointHandle(0, 1), OBJECT),
         now=(0.0, OPTIONAL_NUMBER)),
    case("EndpointsFile", lg.EndpointsFile, text=("endpoints: []", BYTES_OR_TEXT),
         refuse_bad_entries=(False, FLAG), max_bytes=(99, U64)),
    case("EndpointsFile.apply", of(lambda: lg.EndpointsFile("endpoints: []"), "apply"),
         pool=(pool()[0], OBJECT)),
    case("ExtProcStream", lg.ExtProcStream, options=(None, OPTIONAL_OBJECT), seed=(0, U64)),
    case("receive", of(lg.ExtProcStream, "receive"), message=(b"", BYTES), now=(0.0, OPTIONAL_NUMBER)),
    case("decide", of(lg.ExtProcStream, "decide"), destinations=(["a:1"], TEXTS), set_headers=((), LIST),
         remove_headers=((), TEXTS), metadata=((), LIST), scores=(None, OPTIONAL_MAPPING),
         model=(None, OPTIONAL_TEXT), now=(0.0, OPTIONAL_NUMBER)),
    case("decide_with", of(lg.ExtProcStream, "decide_with"), decision=(None, OBJECT)),
    case("refuse", of(lg.ExtProcStream, "refuse"), http_status=(429, integer(-2**31, 2**31-1)),
         message=("m", TEXT), reason=("", TEXT), headers=((), LIST)),
    case("evict", of(lg.ExtProcStream, "evict"), reason=("", TEXT)),
    case("fail", of(lg.ExtProcStream, "fail"), message=("", TEXT)),
    case("close", of(lg.ExtProcStream, "close"), cancelled=(False, FLAG)),
    case("edit_response_headers", of(lg.ExtProcStream, "edit_response_headers"), set=((), LIST),
         remove=((), TEXTS)),
    case("add_response_metadata", of(lg.ExtProcStream, "add_response_metadata"), metadata=((), LIST)),
]
