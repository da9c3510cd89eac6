"""Random requests of vLLM's own class, with all that goes into block hashes."""

import inspect
import random
from dataclasses import dataclass, field
from itertools import count

from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.v1.request import Request

_PARAMETERS = inspect.signature(Request.__init__).parameters
_NUMBERS = count()


@dataclass
class Spec:
    tokens: list
    lora: str = ""
    salt: str = ""
    items: list = field(default_factory=list)  # (identifier, offset, length)
    embeds: bool = False

    @property
    def plain(self):
        return not (self.lora or self.salt or self.items or self.embeds)


def random_spec(rng, block_size, *, plain=False):
    tokens = [
        rng.choice((rng.randrange(256), rng.randrange(65536), rng.randrange(200_000)))
        for _ in range(rng.randrange(1, 9 * block_size))
    ]
    spec = Spec(tokens)
    if plain:
        return spec
    spec.lora = rng.choice(("", "sql", "lora", "caf\u00e9"))
    spec.salt = rng.choice(("", "tenant", "mm"))
    offset = 0
    for _ in range(rng.randrange(5)):
        offset += rng.randrange(2 * block_size)
        length = rng.randrange(1, 2 * block_size)
        if offset + length > len(tokens):
            break
        # The same image twice, now and then: one string object, as in a request with one upload.
        again = spec.items and rng.random() < 0.3
        spec.items.append((spec.items[0][0] if again else rng.randbytes(32).hex(), offset, length))
        offset += length
    return spec


def make(spec, block_hasher):
    """A request as the engine's core makes it, its blocks hashed."""
    arguments = {
        "request_id": f"r{next(_NUMBERS)}",
        "prompt_token_ids": list(spec.tokens),
        "sampling_params": SamplingParams(max_tokens=1000),
        "pooling_params": None,
        "mm_features": [
            MultiModalFeatureSpec(None, "image", identifier, PlaceholderRange(offset, length))
            for identifier, offset, length in spec.items
        ],
        "lora_request": LoRARequest(spec.lora, 7, "/adapters/" + spec.lora) if spec.lora else None,
        "cache_salt": spec.salt or None,
        "block_hasher": block_hasher,
        "eos_token_id": None,
    }
    if spec.embeds:
        import torch

        arguments["prompt_embeds"] = torch.arange(
            len(spec.tokens) * 3, dtype=torch.float32
        ).reshape(-1, 3)
    return Request(**{name: value for name, value in arguments.items() if name in _PARAMETERS})


def takes_embeds():
    return "prompt_embeds" in _PARAMETERS


def hashes(spec, block_hasher, generated=()):
    """Block hashes of the prompt, then of the tokens that are generated one by one."""
    request = make(spec, block_hasher)
    for token in generated:
        request.append_output_token_ids(token)
    return list(request.block_hashes)


def random_cases(seed, number, block_size, *, plain=False):
    rng = random.Random(seed)
    out = []
    for _ in range(number):
        spec = random_spec(rng, block_size, plain=plain)
        out.append((spec, [rng.randrange(200_000) for _ in range(rng.randrange(3 * block_size))]))
    if not plain and takes_embeds():
        for _ in range(10):
            spec = random_spec(rng, block_size, plain=True)
            spec.embeds = True
            out.append((spec, []))
    return out
