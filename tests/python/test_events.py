"""KV events: the engines' own payloads, round trips, frames, and the stream of a publisher."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmd
import llmd.events as le

U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)
TEXT = st.text(max_size=12)


def test_vectors(kv_events):
    seen = 0
    for case in kv_events["cases"]:
        payload = bytes.fromhex(case["payload_hex"])
        try:
            batch = le.decode(payload, zero_parent_is_root=False)
        except ValueError:
            assert not case["must_decode"], case["id"]
            continue
        if not case["must_decode"]:
            assert batch.skipped_events > 0, case["id"]
            continue
        frames = [bytes.fromhex(frame) for frame in case["frames_hex"]]
        message = le.parse_live_message(frames)
        assert (message.topic, message.seq) == (case["topic"], case["seq"])
        assert message.payload is frames[2]
        assert batch.timestamp == case["ts"] and batch.data_parallel_rank == case["data_parallel_rank"]
        assert len(batch.events) == len(case["events"])
        for event, expected in zip(batch.events, case["events"], strict=True):
            assert event.kind == expected["type"]
            if event.kind == "AllBlocksCleared":
                continue
            assert [str(key) for key in event.hashes] == expected["block_hashes_u64"], case["id"]
            assert event.tier == expected.get("tier", "gpu")
            if event.kind == "BlockStored":
                assert event.tokens.tolist() == expected["token_ids"], case["id"]
                parent = expected["parent_u64"]
                assert event.parent == (None if parent is None else int(parent))
            seen += 1
    assert seen > 10


EVENTS = st.one_of(
    st.builds(le.all_blocks_cleared),
    st.builds(
        lambda hashes, medium, group: le.block_removed(
            hashes, medium=medium, tier=medium.lower() or "gpu", group_idx=group
        ),
        st.lists(U64, max_size=4),
        st.sampled_from(["", "GPU", "CPU"]),
        st.none() | U32,
    ),
    st.builds(
        lambda hashes, parent, lora, lora_id, keys, data: le.block_stored(
            hashes,
            tokens=data[: len(hashes) * 2],
            block_size=2,
            parent=parent,
            lora_name=lora,
            lora_id=lora_id,
            extra_keys=tuple(keys[: len(hashes)]) if any(keys[: len(hashes)]) else (),
            medium="GPU",
            spec_kind="full_attention",
            group_idx=0,
        ),
        st.lists(U64, min_size=1, max_size=4),
        st.none() | st.integers(1, 2**64 - 1),
        TEXT,
        st.none() | st.integers(-(2**63), 2**63 - 1),
        st.lists(
            st.lists(TEXT | st.tuples(TEXT, st.integers(-9, 9)) | st.integers(0, 9), max_size=2).map(tuple),
            min_size=4,
            max_size=4,
        ),
        st.lists(U32, min_size=8, max_size=8),
    ),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(EVENTS, max_size=4), st.sampled_from(["map", "map_wide", "array12"]), st.none() | st.integers(0, 9))
def test_round_trip(events, schema, rank):
    batch = le.decode(le.encode(events, timestamp=2.5, schema=schema, data_parallel_rank=rank))
    assert (batch.timestamp, batch.data_parallel_rank, batch.skipped_events) == (2.5, rank, 0)
    assert list(batch.events) == events


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_hostile_payloads(payload):
    try:
        batch = le.decode(payload)
    except (ValueError, llmd.ResourceExhaustedError):
        return
    assert batch.skipped_events == 0 or batch.first_error


def test_byte_hashes_and_wire_text():
    digest = bytes(range(32))
    event = le.block_stored([int.from_bytes(digest[-8:], "big")], tokens=[1, 2], block_size=2)
    event.hash_bytes = (digest,)
    event.lora_name = "\udcff-not-utf8"
    event.extra_keys = ((b"\x00\xff", le.RawMsgpack(b"\xc3")),)
    (decoded,) = le.decode(le.encode([event], timestamp=0, schema="map")).events
    assert decoded.hash_bytes == (digest,)
    assert decoded.lora_name == event.lora_name
    assert decoded.extra_keys == event.extra_keys
    assert type(decoded.extra_keys[0][1]) is le.RawMsgpack
    assert decoded == event and decoded != le.all_blocks_cleared()
    assert "BlockStored, 1 blocks, 2 tokens" in repr(decoded)


def test_bad_arguments():
    with pytest.raises(TypeError, match="payload is of type NoneType"):
        le.decode(None)
    with pytest.raises(TypeError, match="payload is of type str"):
        le.decode("x")
    with pytest.raises(ValueError):
        le.decode(b"")
    with pytest.raises(llmd.ResourceExhaustedError, match="payload"):
        le.decode(bytes(100), max_payload_bytes=10)
    with pytest.raises(TypeError, match=r"events\[0\] is of type int, wanted llmd.events.Event"):
        le.encode([1], timestamp=0)
    with pytest.raises(ValueError, match="timestamp is nan"):
        le.encode([], timestamp=float("nan"))
    with pytest.raises(ValueError, match='schema is "array5", not one of array6'):
        le.encode([], timestamp=0, schema="array5")
    with pytest.raises(ValueError, match="data_parallel_rank is -1"):
        le.encode([], timestamp=0, data_parallel_rank=-1)
    event = le.block_stored([1], tokens=[1, 2], block_size=2)
    event.bigram_tokens = np.array([1], np.uint32)
    with pytest.raises(ValueError, match=r"events\[0\].bigram_tokens has 1 elements, tokens has 2"):
        le.encode([event], timestamp=0)
    event = le.block_stored([1], tokens=[1, 2], block_size=2)
    event.kind = "Stored"
    with pytest.raises(ValueError, match=r'events\[0\].kind is "Stored"'):
        le.encode([event], timestamp=0)
    event = le.block_stored([1], tokens=[1, 2], block_size=2, extra_keys=((1.5,),))
    with pytest.raises(TypeError, match=r"events\[0\].extra_keys\[0\]\[0\] is of type float"):
        le.encode([event], timestamp=0)


def test_frames():
    assert le.replay_request(5) == [b"", (5).to_bytes(8, "big")]
    message = le.parse_replay_message([b"", b"kv@a@m", le.encode_seq(3), bytearray(b"x")])
    assert message == (False, "kv@a@m", 3, b"x")
    assert le.parse_replay_message([b"", le.encode_seq(le.END_SEQ), b""]).end
    for frames in ([], [b"t", b"1234567", b""], [b"t", le.encode_seq(le.END_SEQ), b""]):
        with pytest.raises(ValueError):
            le.parse_live_message(frames)
    with pytest.raises(TypeError, match=r"frames\[1\] is of type int"):
        le.parse_live_message([b"t", 3, b""])
    assert le.parse_topic(le.make_topic("a:1", "org/m")) == ("a:1", "org/m")
    assert le.parse_topic("pod") == ("pod", "")
    assert le.is_pseudo_pod("SHARED_STORAGE") and not le.is_pseudo_pod("a:1")


def drive(stream, log, lost):
    """A publisher of `log` whose messages with numbers in `lost` do not arrive, and whose replays do."""
    applied = []
    now = 0.0

    def carry_out(actions):
        nonlocal applied
        for action in actions:
            if action.kind == "clear":
                applied = []
            elif action.kind == "apply":
                applied.append((action.seq, action.payload))
            elif action.kind == "request_replay":
                for seq in range(action.seq, sent):
                    carry_out(stream.on_replay_batch(now, action.request, seq, log[seq]))
                carry_out(stream.on_replay_end(now, action.request))

    sent = 0
    carry_out(stream.on_connected(now))
    for seq, payload in enumerate(log):
        now += 1.0
        sent = seq + 1
        if seq not in lost:
            carry_out(stream.on_live(now, seq, payload))
        while (deadline := stream.next_deadline) is not None and deadline <= now:
            carry_out(stream.tick(deadline))
    for _ in range(20):
        if stream.next_deadline is None:
            break
        now = max(now, stream.next_deadline)
        carry_out(stream.tick(now))
    return applied


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=5), min_size=1, max_size=12), st.sets(st.integers(0, 11)))
def test_stream_fills_holes(log, lost):
    lost -= {len(log) - 1}  # nothing tells of a loss at the end
    stream = le.PublisherStream()
    assert drive(stream, log, lost) == list(enumerate(log))
    assert stream.in_sync and stream.last_applied == len(log) - 1 and stream.held_bytes == 0
    assert stream.counters.events_lost_total == 0


def test_stream_arguments():
    with pytest.raises(ValueError, match='mode is "lax"'):
        le.PublisherStream(mode="lax")
    with pytest.raises(ValueError, match="cooldown is negative"):
        le.PublisherStream(cooldown=-1)
    stream = le.PublisherStream(replay=False)
    with pytest.raises(ValueError, match="now is inf"):
        stream.tick(float("inf"))
    with pytest.raises(TypeError, match="now is of type str"):
        stream.tick("0")
    with pytest.raises(TypeError, match="payload is of type NoneType"):
        stream.on_live(0, 0, None)
    assert "in_sync=True" in repr(stream)
