"""A subscriber and an index beside an engine, and a random load whose hits they must predict."""

import random
import threading
import time

import zmq
from llmd import hash as llmd_hash
from llmd.events import parse_replay_message, replay_request
from llmd.index import KvEventIngestor, PrefixIndex, request_namespace
from llmd.vllm.events import KvBatch, KvClear, KvEventSubscriber, apply_to

LIMIT = 60.0  # seconds


class Watcher:
    """What is known of an engine by its events alone."""

    def __init__(self, live, replay, *, block_size, removal):
        self.block_size = block_size
        self.index = PrefixIndex()
        self.ingestor = KvEventIngestor(self.index)
        self.publisher = self.ingestor.add_publisher("engine", model="m", gpu_removal=removal)
        self.stored, self.clears, self.applied = set(), 0, -1
        self.unknown_parents = 0
        self._changed = threading.Condition()
        self._context = zmq.Context()
        self._replay = replay
        self.subscriber = KvEventSubscriber(live, replay=replay)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        for item in self.subscriber:
            unknown_parent = apply_to(self.ingestor, self.publisher, item)
            with self._changed:
                self.unknown_parents += unknown_parent
                if isinstance(item, KvBatch):
                    self.applied = item.seq
                    for event in item.decode().events:
                        if event.kind == "BlockStored":
                            self.stored.update(int(h) for h in event.hashes)
                        self.clears += event.kind == "AllBlocksCleared"
                elif isinstance(item, KvClear) and self.applied >= 0:
                    raise AssertionError("events were lost")
                self._changed.notify_all()

    def predict(self, tokens, salt=""):
        """Tokens that the engine will take from its cache; the last one it always computes."""
        keys = llmd_hash.content_keys(tokens, block_size=self.block_size, cache_salt=salt)
        match = self.index.match(request_namespace("m", block_size=self.block_size), keys)
        depth = self.index.by_endpoint(match).get("engine", 0)
        return min(depth, (len(tokens) - 1) // self.block_size) * self.block_size

    def joined(self, make_events):
        """Until two batches came one after the other: the first may have been replayed.

        What is published while a subscription is made is lost until the next batch.
        """
        came = 0
        for number in range(60):
            make_events(number)
            latest = self._latest()
            with self._changed:
                heard = self._changed.wait_for(
                    lambda latest=latest: self.applied >= latest >= 0, 1.0
                )
            came = came + 1 if heard else 0
            if came == 2:
                return
        raise AssertionError("no batch came")

    def wait_for(self, seq):
        """Until batch `seq` is in the index."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: self.applied >= seq, LIMIT
            ), f"batch {seq} did not come"

    def catch_up(self):
        """Until all that the engine has published is in the index.

        Its publisher takes one batch from its queue between two replays: when both end at the same
        number, the queue was empty in between.
        """
        last, end = None, time.monotonic() + LIMIT
        while time.monotonic() < end:
            latest = self._latest()
            if latest == last:
                break
            last = latest
        self.wait_for(last)

    def _latest(self):
        with self._context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            dealer.connect(self._replay)
            dealer.send_multipart(replay_request(max(0, self.applied)))
            latest = -1
            while dealer.poll(int(LIMIT * 1000)):
                message = parse_replay_message(dealer.recv_multipart())
                if message.end:
                    return latest
                latest = message.seq
        raise AssertionError("no answer to a replay request")

    def close(self):
        self.subscriber.close()
        self._thread.join()
        self._context.destroy(linger=0)


class Load:
    """Random prompts of families that share prefixes; many are repeated, many end with a block."""

    def __init__(self, seed, block_size, vocabulary):
        self.rng, self.block_size, self.vocabulary = random.Random(seed), block_size, vocabulary
        self.families = [self._tokens(400) for _ in range(6)]
        self.seen = []

    def _tokens(self, count):
        return [self.rng.randrange(3, self.vocabulary) for _ in range(count)]

    def next(self):
        """(tokens, salt, tokens to generate)"""
        rng = self.rng
        if self.seen and rng.random() < 0.4:
            tokens, salt = rng.choice(self.seen[-6:])
        else:
            tokens = rng.choice(self.families)[: rng.randrange(1, 400)]
            if rng.random() < 0.5:
                tokens = tokens[: len(tokens) // self.block_size * self.block_size]
            if rng.random() < 0.3 or not tokens:
                tokens = tokens + self._tokens(rng.randrange(1, 80))
            salt = rng.choice(("", "", "", "tenant-a", "tenant-b"))
        self.seen.append((tokens, salt))
        return tokens, salt, rng.choice((1, 1, 1, 2, 34))

    def answered(self, tokens, salt, generated):
        """A later prompt may go on with an answer."""
        if self.rng.random() < 0.3 and len(tokens) + len(generated) < 440:
            self.seen.append((tokens + generated, salt))
