"""Hashes, rings and codecs in plain Python, written from the published formats and slow on purpose."""

import hashlib
import math
import pickle

import cbor2
import xxhash

MASK = 2**64 - 1


def le32(values):
    return b"".join(value.to_bytes(4, "little") for value in values)


def le64(*values):
    return b"".join(value.to_bytes(8, "little") for value in values)


def full_blocks(tokens, size):
    return [tuple(tokens[i : i + size]) for i in range(0, len(tokens) - size + 1, size)]


# --- vLLM ---

SERIALIZERS = {
    "sha256": lambda value: pickle.dumps(value, protocol=5),
    "xxhash": lambda value: pickle.dumps(value, protocol=5),
    "sha256_cbor": lambda value: cbor2.dumps(value, canonical=True),
    "xxhash_cbor": lambda value: cbor2.dumps(value, canonical=True),
}


def vllm_hash(algorithm, value):
    data = SERIALIZERS[algorithm](value)
    return (
        hashlib.sha256(data).digest()
        if algorithm.startswith("sha")
        else xxhash.xxh3_128_digest(data)
    )


def vllm_chain(algorithm, tokens, block_size, none_hash, extra_keys=()):
    parent, out = none_hash, []
    for i, block in enumerate(full_blocks(tokens, block_size)):
        parent = vllm_hash(
            algorithm, (parent, block, extra_keys[i] if i < len(extra_keys) else None)
        )
        out.append(parent)
    return out


def vllm_extra_keys(extras, block_size, count, style):
    """Per block: adapter, multimodal items, salt, digest of embeddings; None when there are none."""
    out = []
    for i in range(count):
        start, keys = i * block_size, []
        if style == "int-lora":
            keys += [extras.lora_int_id] if extras.lora_int_id else []
        elif extras.lora_name:
            tagged = ("lora", extras.lora_name, extras.lora_path)
            keys.append(tagged if style == "tagged" else extras.lora_name)
        for item in sorted(extras.multimodal, key=lambda item: item.offset):
            if item.offset < start + block_size and item.offset + item.length > start:
                place = item.offset - start
                bare = {
                    "offset": (item.identifier, place),
                    "tagged": ("mm", item.identifier, place),
                }
                keys.append(bare.get(style, item.identifier))
        if extras.cache_salt and start == 0:
            keys.append(
                ("cache_salt", extras.cache_salt) if style == "tagged" else extras.cache_salt
            )
        if i < len(extras.embeds_digests):
            digest = extras.embeds_digests[i]
            keys.append(("prompt_embeds", digest) if style == "tagged" else digest)
        out.append(tuple(keys) or None)
    return out


# --- Routers ---


def fnv1a64(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & MASK
    return value


def llmd_root(algorithm, seed, model):
    if algorithm == "xxh64":
        return llmd_block(algorithm, xxhash.xxh64_intdigest(seed.encode()), (), [model])
    root = fnv1a64(seed.encode())
    if algorithm == "cbor-fnv-no-model":
        return root
    return fnv1a64(cbor2.dumps([root, None, model], canonical=True))


def llmd_block(algorithm, parent, tokens, extra):
    if algorithm == "xxh64":
        data = le64(parent) + le32(tokens)
        for text in extra:
            data += le64(len(text.encode())) + text.encode()
        return xxhash.xxh64_intdigest(data)
    maps = [{"Hash": text} for text in extra] or None
    if algorithm == "cbor-fnv-no-model":  # which knew no extra keys
        maps = None
    return fnv1a64(cbor2.dumps([parent, list(tokens), maps], canonical=True))


def gaie_keys(text, model, salt, size, most):
    parent, out = xxhash.xxh64_intdigest((model + salt).encode()), []
    for i in range(0, len(text) - size + 1, size):
        parent = xxhash.xxh64_intdigest(text[i : i + size] + le64(parent))
        out.append(parent)
    return out[:most]


def approx_keys(tokens, model, salt, size, max_tokens, max_blocks):
    size = max(size, 64)
    parent, out = xxhash.xxh64_intdigest((model + salt).encode()), []
    for i in range(0, len(tokens), size):
        block = xxhash.xxh64_intdigest(le32(tokens[i : i + size]))
        parent = xxhash.xxh64_intdigest(le64(block, parent))
        out.append(parent)
    if max_tokens:
        return out[: max_tokens // size]
    return out[:max_blocks] if max_blocks else out


def estimated_tokens(parts):
    data = b""
    for part in parts:
        if isinstance(part, str):
            data += part.encode()
        else:
            data += bytes(-len(data) % 4) + le32(
                [xxhash.xxh64_intdigest(part[0].encode()) % 2**32] * part[1]
            )
    data += bytes(-len(data) % 4)
    return [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]


# --- Other engines ---


def dynamo_seed(lora, namespace):
    seed = 1337
    if lora:
        seed += xxhash.xxh3_64_intdigest(lora.encode(), 0)
    if namespace:
        seed += xxhash.xxh3_64_intdigest(namespace.encode(), 1)
    return seed & MASK


def dynamo_local(tokens, size, seed, eagle=False):
    window = size + 1 if eagle else size
    starts = range(0, len(tokens) - window + 1, size)
    return [xxhash.xxh3_64_intdigest(le32(tokens[i : i + window]), seed) for i in starts]


def dynamo_sequence(local, parent, seed):
    out = []
    for key in local:
        parent = key if parent is None else xxhash.xxh3_64_intdigest(le64(parent, key), seed)
        out.append(parent)
    return out


def sglang_pages(tokens, size, parent, bigram):
    units = (
        list(zip(tokens, tokens[1:], strict=False)) if bigram else [(token,) for token in tokens]
    )
    out = []
    for page in full_blocks(units, size):
        parent = hashlib.sha256(
            (parent or b"") + le32(token for unit in page for token in unit)
        ).digest()
        out.append(parent)
    return out


def trtllm_v1(tokens, size, parent, lora, salt):
    def mix32(value, state):
        for _ in range(2):
            value = ((value >> 16) ^ value) * 0x45D9F3B % 2**32
        value = (((value >> 16) ^ value) + 0x9E3779B9) % 2**32
        return state ^ (value + (state << 6) + (state >> 2) & MASK)

    def mix64(value, state):
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK
        value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK
        value ^= value >> 31
        return state ^ (value + 0x9E3779B9 + (state << 6) + (state >> 2) & MASK)

    out = []
    for i in range(0, len(tokens), size):
        block = tokens[i : i + size]
        state = len(block) ^ (parent * 0xBF58476D1CE4E5B9 & MASK)
        if parent == 0 and salt is not None:
            state = mix64(salt, state)
        for token in block:
            state = mix32(token, state)
        if lora is not None:
            state = mix64(lora, state)
        parent = state
        out.append(parent)
    return out


# --- Envoy's consistent hashing ---


def murmur(data, seed=0xC70F6907):
    mul = 0xC6A4A7935BD1E995
    value = seed ^ (len(data) * mul & MASK)
    whole = len(data) // 8 * 8
    for i in range(0, whole, 8):
        k = int.from_bytes(data[i : i + 8], "little") * mul & MASK
        k = (k ^ k >> 47) * mul & MASK
        value = (value ^ k) * mul & MASK
    if whole < len(data):
        value = (value ^ int.from_bytes(data[whole:], "little")) * mul & MASK
    value = (value ^ value >> 47) * mul & MASK
    return value ^ value >> 47


def ring(hosts, smallest, largest, function):
    """[(hash, host)] of hosts (key, weight)."""
    total = sum(weight for _, weight in hosts)
    least = min(weight for _, weight in hosts) / total
    scale = min(math.ceil(least * smallest) / least, float(largest))
    entries, current, target = [], 0.0, 0.0
    for host, (key, weight) in enumerate(hosts):
        target += scale * (weight / total)
        i = 0
        while current < target:
            entries.append((function(f"{key}_{i}".encode()), host))
            i += 1
            current += 1
    return sorted(entries, key=lambda entry: entry[0])


def ring_pick(entries, key, attempt=0):
    low, high = 0, len(entries)
    while True:
        middle = (low + high) // 2
        if middle == len(entries):
            found = 0
            break
        value = entries[middle][0]
        before = entries[middle - 1][0] if middle else 0
        if before < key <= value:
            found = middle
            break
        if value < key:
            low = middle + 1
        else:
            high = middle - 1
        if low > high:
            found = 0
            break
    return entries[(found + attempt) % len(entries)][1]


def maglev(hosts, size):
    """Host of each slot, for hosts (key, weight)."""
    total = sum(weight for _, weight in hosts)
    most = max(weight for _, weight in hosts) / total
    order = sorted(range(len(hosts)), key=lambda host: hosts[host][0].encode())
    state = {}
    for host in order:
        key = hosts[host][0].encode()
        state[host] = [
            xxhash.xxh64_intdigest(key) % size,
            xxhash.xxh64_intdigest(key, 1) % (size - 1) + 1,
            0,
            0.0,
        ]
    table, filled, iteration = [None] * size, 0, 0
    while filled < size:
        iteration += 1
        for host in order:
            if filled == size:
                break
            offset, skip, _, target = state[host]
            if iteration * (hosts[host][1] / total) < target:
                continue
            state[host][3] += most
            while table[(offset + skip * state[host][2]) % size] is not None:
                state[host][2] += 1
            table[(offset + skip * state[host][2]) % size] = host
            state[host][2] += 1
            filled += 1
    return table


# --- KV events ---

# Fields after the tag, in the order of the array form; a schema writes the first so many of them.
STORED = ("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name",
          "extra_keys", "group_idx", "kv_cache_spec_kind", "kv_cache_spec_sliding_window")  # fmt: skip
REMOVED = ("block_hashes", "medium", "group_idx")
STORED_FIELDS = {"array6": 5, "array7": 6, "array8": 7, "array9": 8, "array10": 9, "array12": 11}
REMOVED_FIELDS = {"array6": 1, "array7": 2, "array8": 2, "array9": 2, "array10": 3, "array12": 3}
NO_DEFAULT = {
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
}
