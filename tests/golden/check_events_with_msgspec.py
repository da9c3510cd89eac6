#!/usr/bin/env python3
"""Checks kv_events.json against the real thing: msgspec and the event classes of real vLLM releases.

    check_events_with_msgspec.py VERSION=KV_EVENTS_PY ...

Each argument names a release and the file vllm/distributed/kv_events.py taken out of its wheel
(pip download --no-deps vllm==VERSION; unzip). Needs the msgspec package. Only the classes are taken from the file: the
publisher below them needs the rest of vLLM.

For every golden case of the release's schema: build the release's own objects from the case's normalized form, encode
them with msgspec, compare bytes. For every case that the release's decoder can read: decode with msgspec's typed
decoder, encode again, compare bytes. Exits with 1 if anything differs.
"""
import json
import pathlib
import sys
import typing

import msgspec

# Which golden cases a release writes, by the fields that its BlockStored declares.
ARRAY_CASES = {
    5: ["v0.9.2/stored_removed", "empty_batch"],
    6: ["v0.11/stored", "v0.11/removed", "v0.11/bytes", "empty_batch"],
    7: ["v0.15/stored_lora", "offload/cpu_no_tokens", "empty_batch"],
    8: ["v0.18/extra_keys_bare", "empty_batch"],
    9: ["v0.20/array_full", "empty_batch"],
    11: ["v0.22/array_spec", "empty_batch"],
}
# Before the batch had a rank.
RANKLESS_CASES = {5: ["v0.9/stored", "v0.9/removed", "v0.9/cleared"]}
MAP_CASES = {
    11: ["v0.26/map_stored", "v0.26/map_mixed", "empty_batch"],
    12: ["v0.26/map_stored", "v0.26/map_mixed", "empty_batch"],
    13: ["v0.26/map_stored", "v0.26/map_mixed", "empty_batch"],
    14: ["v0.26/map_stored", "v0.26/map_mixed", "v0.30/map_locality", "empty_batch"],
    15: ["v0.33/map_wide", "empty_batch"],
}


def load_classes(path):
    source = pathlib.Path(path).read_text()
    begin = source.index("class EventBatch(")
    ends = [source.find(name) for name in ("class KVEventAggregator", "class EventPublisher(")]
    code = source[begin:min(end for end in ends if end > 0)]
    scope = {name: getattr(typing, name) for name in ("Any", "Optional", "Union")}
    scope.update(msgspec=msgspec, ExternalBlockHash=typing.Union[bytes, int])
    exec(compile(code, str(path), "exec"), scope)
    return scope


def raw(value):
    """A value of `decoded` as Python has it: big integers are strings there, bytes are {"bytes_hex"}."""
    if isinstance(value, dict):
        if set(value) == {"bytes_hex"}:
            return bytes.fromhex(value["bytes_hex"])
        return {key: raw(item) for key, item in value.items()}
    if isinstance(value, list):
        return [raw(item) for item in value]
    return value


def raw_hash(value):
    return int(value) if isinstance(value, str) else raw(value)


def build(scope, decoded):
    """The batch as objects of the release."""
    events = []
    for event in decoded[1]:
        if isinstance(event, list):
            cls = scope[event[0]]
            fields = dict(zip(cls.__struct_fields__, event[1:]))
        else:
            cls = scope[event["type"]]
            fields = {key: value for key, value in event.items() if key != "type"}
        fields = {key: raw(value) for key, value in fields.items()}
        if "block_hashes" in fields:
            fields["block_hashes"] = [raw_hash(h) for h in fields["block_hashes"]]
        if fields.get("parent_block_hash") is not None:
            fields["parent_block_hash"] = raw_hash(fields["parent_block_hash"])
        if fields.get("extra_keys"):
            fields["extra_keys"] = [None if keys is None else tuple(tuple(k) if isinstance(k, list) else k for k in keys)
                                    for keys in fields["extra_keys"]]
        events.append(cls(**fields))
    batch = scope["KVEventBatch"]
    if "data_parallel_rank" in batch.__struct_fields__:
        return batch(ts=decoded[0], events=events, data_parallel_rank=decoded[2] if len(decoded) > 2 else None)
    return batch(ts=decoded[0], events=events)


def main():
    vectors = json.loads((pathlib.Path(__file__).parent / "kv_events.json").read_text())
    cases = {case["id"]: case for case in vectors["cases"]}
    encoder = msgspec.msgpack.Encoder()
    failures = 0
    print(f"msgspec {msgspec.__version__}")
    for argument in sys.argv[1:]:
        version, path = argument.split("=", 1)
        scope = load_classes(path)
        stored = scope["BlockStored"]
        array = stored.__struct_config__.array_like
        with_rank = "data_parallel_rank" in scope["KVEventBatch"].__struct_fields__
        table = MAP_CASES if not array else ARRAY_CASES if with_rank else RANKLESS_CASES
        names = table.get(len(stored.__struct_fields__), [])
        decoder = msgspec.msgpack.Decoder(scope["KVEventBatch"])
        wrong = []
        for name in names:
            want = bytes.fromhex(cases[name]["payload_hex"])
            if encoder.encode(build(scope, cases[name]["decoded"])) != want:
                wrong.append(f"{name} (written)")
            if encoder.encode(decoder.decode(want)) != want:
                wrong.append(f"{name} (read)")
        failures += len(wrong) + (not names)
        print(f"vllm {version}: {'array' if array else 'map'} form, fields: stored {len(stored.__struct_fields__)}, "
              f"removed {len(scope['BlockRemoved'].__struct_fields__)}, {'with' if with_rank else 'no'} rank in batch; "
              f"{len(names)} cases: {', '.join(names)}; {'DIFFER: ' + ', '.join(wrong) if wrong else 'all equal'}")
    print("all equal" if failures == 0 else f"{failures} differences")
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
