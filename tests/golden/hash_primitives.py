"""Serializations and hashes that engines key blocks with, by the definitions: the subset of pickle (compared with the
interpreter's own on every call), canonical CBOR, FNV-1a, XXH64, XXH3 and CPython's hash of tuples."""
import pickle
import struct

M32 = (1 << 32) - 1
M64 = (1 << 64) - 1
M128 = (1 << 128) - 1


# ---------------------------------------------------------------- pickle (proto 5)
class Pickle5:
    """The part of pickle protocol 5 that block hashing can reach.

    Supported: None, int, bytes, str, tuple (nested).  Objects are treated as
    distinct unless the very same Python object occurs twice (memo by identity),
    exactly like CPython.
    """

    TARGET = 64 * 1024

    def __init__(self):
        self.out = bytearray()
        self.frame = bytearray()
        self.in_frame = False
        self.memo = {}
        self.keep = []

    # framing ------------------------------------------------------------
    def w(self, b):
        if not self.in_frame:
            self.in_frame = True
            self.frame = bytearray()
        self.frame += b

    def commit(self):
        if not self.in_frame:
            return
        if len(self.frame) >= 4:
            self.out += b"\x95" + struct.pack("<Q", len(self.frame))
        self.out += self.frame
        self.in_frame = False

    def boundary(self):
        if self.in_frame and len(self.frame) >= self.TARGET:
            self.commit()

    def large(self, head, data):
        """Payload >= 64 KiB: close the frame, write head+data outside any frame."""
        self.commit()
        self.out += head + data

    # objects ------------------------------------------------------------
    def memoize(self, obj):
        self.memo[id(obj)] = len(self.memo)
        self.keep.append(obj)
        self.w(b"\x94")

    def get(self, obj):
        i = self.memo[id(obj)]
        self.w(b"h" + bytes([i]) if i < 256 else b"j" + struct.pack("<I", i))

    def save(self, o):
        self.boundary()  # CPython looks at the frame before each object, not after it
        self._save(o)

    def _save(self, o):
        if o is None:
            self.w(b"N")
        elif type(o) is int:
            if -(1 << 31) <= o < (1 << 31):
                if 0 <= o < 256:
                    self.w(b"K" + bytes([o]))
                elif 0 <= o < 65536:
                    self.w(b"M" + struct.pack("<H", o))
                else:
                    self.w(b"J" + struct.pack("<i", o))
            else:
                n = (o.bit_length() >> 3) + 1
                data = o.to_bytes(n, "little", signed=True)
                if o < 0 and n > 1 and data[-1] == 0xFF and data[-2] & 0x80:
                    data = data[:-1]
                if len(data) < 256:
                    self.w(b"\x8a" + bytes([len(data)]) + data)
                else:
                    self.w(b"\x8b" + struct.pack("<i", len(data)) + data)
        elif type(o) is bytes:
            if id(o) in self.memo:
                return self.get(o)
            n = len(o)
            head = (b"C" + bytes([n]) if n < 256 else b"B" + struct.pack("<I", n))
            self.large(head, o) if n >= self.TARGET else self.w(head + o)
            self.memoize(o)
        elif type(o) is str:
            if id(o) in self.memo:
                return self.get(o)
            e = o.encode("utf-8", "surrogatepass")
            n = len(e)
            head = (b"\x8c" + bytes([n]) if n < 256 else b"X" + struct.pack("<I", n))
            self.large(head, e) if n >= self.TARGET else self.w(head + e)
            self.memoize(o)
        elif type(o) is tuple:
            if not o:
                return self.w(b")")
            if id(o) in self.memo:
                return self.get(o)
            if len(o) <= 3:
                for x in o:
                    self.save(x)
                self.w({1: b"\x85", 2: b"\x86", 3: b"\x87"}[len(o)])
            else:
                self.w(b"(")
                for x in o:
                    self.save(x)
                self.w(b"t")
            self.memoize(o)
        else:
            raise TypeError(type(o))

    def dumps(self, o):
        self.out += b"\x80\x05"
        self.save(o)
        self.w(b".")
        self.commit()
        return bytes(self.out)


def pickle5(o):
    mine = Pickle5().dumps(o)
    assert mine == pickle.dumps(o, protocol=5), (mine, pickle.dumps(o, protocol=5))
    return mine


# ---------------------------------------------------------------- canonical CBOR
def cbor_head(major, n):
    m = major << 5
    if n < 24:
        return bytes([m | n])
    if n < 1 << 8:
        return bytes([m | 24, n])
    if n < 1 << 16:
        return bytes([m | 25]) + struct.pack(">H", n)
    if n < 1 << 32:
        return bytes([m | 26]) + struct.pack(">I", n)
    return bytes([m | 27]) + struct.pack(">Q", n)


def cbor(o):
    if o is None:
        return b"\xf6"
    if o is True or o is False:
        return b"\xf5" if o else b"\xf4"
    if isinstance(o, int):
        if o >= 0:
            if o >= 1 << 64:
                p = o.to_bytes((o.bit_length() + 7) // 8, "big")
                return b"\xc2" + cbor(p)
            return cbor_head(0, o)
        n = -1 - o
        if n >= 1 << 64:
            return b"\xc3" + cbor(n.to_bytes((n.bit_length() + 7) // 8, "big"))
        return cbor_head(1, n)
    if isinstance(o, bytes):
        return cbor_head(2, len(o)) + o
    if isinstance(o, str):
        e = o.encode("utf-8")
        return cbor_head(3, len(e)) + e
    if isinstance(o, (list, tuple)):
        return cbor_head(4, len(o)) + b"".join(cbor(x) for x in o)
    if isinstance(o, dict):  # canonical: shorter encoded key first, then bytewise
        items = sorted(((cbor(k), cbor(v)) for k, v in o.items()),
                       key=lambda kv: (len(kv[0]), kv[0]))
        return cbor_head(5, len(items)) + b"".join(k + v for k, v in items)
    raise TypeError(type(o))


# ---------------------------------------------------------------- FNV / xxHash
def fnv1a64(b):
    h = 0xCBF29CE484222325
    for c in b:
        h = ((h ^ c) * 0x100000001B3) & M64
    return h


P32 = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
P64 = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9,
       0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
PMX1, PMX2 = 0x165667919E3779F9, 0x9FB21C651E98DF25


def rotl64(x, r):
    return ((x << r) | (x >> (64 - r))) & M64


def r32(b, i):
    return int.from_bytes(b[i:i + 4], "little")


def r64(b, i):
    return int.from_bytes(b[i:i + 8], "little")


def xxh64_avalanche(h):
    h ^= h >> 33
    h = (h * P64[1]) & M64
    h ^= h >> 29
    h = (h * P64[2]) & M64
    return h ^ (h >> 32)


def xxh64(b, seed=0):
    def rnd(acc, x):
        return (rotl64((acc + x * P64[1]) & M64, 31) * P64[0]) & M64

    n, i = len(b), 0
    if n >= 32:
        v = [(seed + P64[0] + P64[1]) & M64, (seed + P64[1]) & M64, seed & M64,
             (seed - P64[0]) & M64]
        while i + 32 <= n:
            for k in range(4):
                v[k] = rnd(v[k], r64(b, i + 8 * k))
            i += 32
        h = sum(rotl64(v[k], s) for k, s in enumerate((1, 7, 12, 18))) & M64
        for k in range(4):
            h = ((h ^ rnd(0, v[k])) * P64[0] + P64[3]) & M64
    else:
        h = (seed + P64[4]) & M64
    h = (h + n) & M64
    while i + 8 <= n:
        h = (rotl64(h ^ rnd(0, r64(b, i)), 27) * P64[0] + P64[3]) & M64
        i += 8
    if i + 4 <= n:
        h = (rotl64(h ^ (r32(b, i) * P64[0] & M64), 23) * P64[1] + P64[2]) & M64
        i += 4
    while i < n:
        h = (rotl64(h ^ (b[i] * P64[4] & M64), 11) * P64[0]) & M64
        i += 1
    return xxh64_avalanche(h)


KSECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e")


def mulfold(a, b):
    p = a * b
    return (p & M64) ^ (p >> 64)


def xxh3_aval(h):
    h ^= h >> 37
    h = (h * PMX1) & M64
    return h ^ (h >> 32)


def swap32(x):
    return int.from_bytes(x.to_bytes(4, "little"), "big")


def swap64(x):
    return int.from_bytes(x.to_bytes(8, "little"), "big")


def rotl32(x, r):
    return ((x << r) | (x >> (32 - r))) & M32


def mix16(b, i, s, o, seed):
    return mulfold(r64(b, i) ^ ((r64(s, o) + seed) & M64),
                   r64(b, i + 8) ^ ((r64(s, o + 8) - seed) & M64))


def long_acc(b, s):
    acc = [P32[2], P64[0], P64[1], P64[2], P64[3], P32[1], P64[4], P32[0]]

    def stripe(pos, so):
        for k in range(8):
            d = r64(b, pos + 8 * k)
            key = d ^ r64(s, so + 8 * k)
            acc[k ^ 1] = (acc[k ^ 1] + d) & M64
            acc[k] = (acc[k] + (key & M32) * (key >> 32)) & M64

    n = len(b)
    per_block = (len(s) - 64) // 8
    block = 64 * per_block
    nblk = (n - 1) // block
    for q in range(nblk):
        for k in range(per_block):
            stripe(q * block + 64 * k, 8 * k)
        for k in range(8):
            a = acc[k]
            a ^= a >> 47
            a ^= r64(s, len(s) - 64 + 8 * k)
            acc[k] = (a * P32[0]) & M64
    rest = (n - 1 - block * nblk) // 64
    for k in range(rest):
        stripe(nblk * block + 64 * k, 8 * k)
    stripe(n - 64, len(s) - 64 - 7)
    return acc


def merge(acc, s, o, start):
    r = start
    for k in range(4):
        r += mulfold(acc[2 * k] ^ r64(s, o + 16 * k),
                     acc[2 * k + 1] ^ r64(s, o + 16 * k + 8))
    return xxh3_aval(r & M64)


def seeded_secret(seed):
    if seed == 0:
        return KSECRET
    out = b""
    for i in range(len(KSECRET) // 16):
        out += struct.pack("<QQ", (r64(KSECRET, 16 * i) + seed) & M64,
                           (r64(KSECRET, 16 * i + 8) - seed) & M64)
    return out


def xxh3_64(b, seed=0):
    n, s = len(b), KSECRET
    if n == 0:
        return xxh64_avalanche(seed ^ r64(s, 56) ^ r64(s, 64))
    if n <= 3:
        c = (b[0] << 16) | (b[n >> 1] << 24) | b[n - 1] | (n << 8)
        return xxh64_avalanche(c ^ (((r32(s, 0) ^ r32(s, 4)) + seed) & M64))
    if n <= 8:
        seed ^= swap32(seed & M32) << 32
        k = r32(b, n - 4) + (r32(b, 0) << 32)
        h = k ^ (((r64(s, 8) ^ r64(s, 16)) - seed) & M64)
        h ^= rotl64(h, 49) ^ rotl64(h, 24)
        h = (h * PMX2) & M64
        h ^= ((h >> 35) + n) & M64
        h = (h * PMX2) & M64
        return h ^ (h >> 28)
    if n <= 16:
        lo = r64(b, 0) ^ (((r64(s, 24) ^ r64(s, 32)) + seed) & M64)
        hi = r64(b, n - 8) ^ (((r64(s, 40) ^ r64(s, 48)) - seed) & M64)
        return xxh3_aval((n + swap64(lo) + hi + mulfold(lo, hi)) & M64)
    if n <= 128:
        acc = (n * P64[0]) & M64
        for i in reversed(range((n - 1) // 32 + 1)):
            acc += mix16(b, 16 * i, s, 32 * i, seed)
            acc += mix16(b, n - 16 * (i + 1), s, 32 * i + 16, seed)
        return xxh3_aval(acc & M64)
    if n <= 240:
        acc = (n * P64[0]) & M64
        for i in range(8):
            acc += mix16(b, 16 * i, s, 16 * i, seed)
        acc = xxh3_aval(acc & M64)
        for i in range(8, n // 16):
            acc += mix16(b, 16 * i, s, 16 * (i - 8) + 3, seed)
        acc += mix16(b, n - 16, s, 136 - 17, seed)
        return xxh3_aval(acc & M64)
    s = seeded_secret(seed)
    return merge(long_acc(b, s), s, 11, (n * P64[0]) & M64)


def xxh3_128(b, seed=0):
    """Returns the 16 digest bytes in canonical order (high half first, big endian)."""
    n, s = len(b), KSECRET

    def out(lo, hi):
        return struct.pack(">QQ", hi & M64, lo & M64)

    if n == 0:
        return out(xxh64_avalanche(seed ^ r64(s, 64) ^ r64(s, 72)),
                   xxh64_avalanche(seed ^ r64(s, 80) ^ r64(s, 88)))
    if n <= 3:
        cl = (b[0] << 16) | (b[n >> 1] << 24) | b[n - 1] | (n << 8)
        ch = rotl32(swap32(cl), 13)
        return out(xxh64_avalanche(cl ^ (((r32(s, 0) ^ r32(s, 4)) + seed) & M64)),
                   xxh64_avalanche(ch ^ (((r32(s, 8) ^ r32(s, 12)) - seed) & M64)))
    if n <= 8:
        seed ^= swap32(seed & M32) << 32
        k = r32(b, 0) + (r32(b, n - 4) << 32)
        k ^= ((r64(s, 16) ^ r64(s, 24)) + seed) & M64
        m = k * ((P64[0] + (n << 2)) & M64)
        lo, hi = m & M64, (m >> 64) & M64
        hi = (hi + (lo << 1)) & M64
        lo ^= hi >> 3
        lo ^= lo >> 35
        lo = (lo * PMX2) & M64
        lo ^= lo >> 28
        return out(lo, xxh3_aval(hi))
    if n <= 16:
        fl = ((r64(s, 32) ^ r64(s, 40)) - seed) & M64
        fh = ((r64(s, 48) ^ r64(s, 56)) + seed) & M64
        lo, hi = r64(b, 0), r64(b, n - 8)
        m = (lo ^ hi ^ fl) * P64[0]
        ml, mh = m & M64, m >> 64
        ml = (ml + ((n - 1) << 54)) & M64
        hi ^= fh
        mh = (mh + hi + (hi & M32) * (P32[1] - 1)) & M64
        ml ^= swap64(mh)
        h = ml * P64[1]
        hl, hh = h & M64, ((h >> 64) + mh * P64[1]) & M64
        return out(xxh3_aval(hl), xxh3_aval(hh))

    def mix32(acc, i, j, o):
        acc[0] = (acc[0] + mix16(b, i, s, o, seed)) & M64
        acc[0] ^= (r64(b, j) + r64(b, j + 8)) & M64
        acc[1] = (acc[1] + mix16(b, j, s, o + 16, seed)) & M64
        acc[1] ^= (r64(b, i) + r64(b, i + 8)) & M64

    def fin(acc):
        lo = (acc[0] + acc[1]) & M64
        hi = (acc[0] * P64[0] + acc[1] * P64[3] + ((n - seed) & M64) * P64[1]) & M64
        return out(xxh3_aval(lo), (0 - xxh3_aval(hi)) & M64)

    if n <= 128:
        acc = [(n * P64[0]) & M64, 0]
        for i in reversed(range((n - 1) // 32 + 1)):
            mix32(acc, 16 * i, n - 16 * (i + 1), 32 * i)
        return fin(acc)
    if n <= 240:
        acc = [(n * P64[0]) & M64, 0]
        for i in range(4):
            mix32(acc, 32 * i, 32 * i + 16, 32 * i)
        acc = [xxh3_aval(acc[0]), xxh3_aval(acc[1])]
        for i in range(4, n // 32):
            mix32(acc, 32 * i, 32 * i + 16, 3 + 32 * (i - 4))
        seed = (0 - seed) & M64
        mix32(acc, n - 16, n - 32, 136 - 17 - 16)
        seed = (0 - seed) & M64
        return fin(acc)
    s = seeded_secret(seed)
    a = long_acc(b, s)
    return out(merge(a, s, 11, (n * P64[0]) & M64),
               merge(a, s, len(s) - 64 - 11, ~(n * P64[1]) & M64))


# ---------------------------------------------------------------- CPython hash()
def py_int_hash(x):
    m = (1 << 61) - 1
    h = abs(x) % m
    h = -h if x < 0 else h
    return -2 if h == -1 else h


NONE_HASH_312 = 0xFCA86420  # hash(None) from CPython 3.12 on


def py_tuple_hash(lanes):
    acc = P64[4]
    for lane in lanes:
        acc = (acc + (lane & M64) * P64[1]) & M64
        acc = (rotl64(acc, 31) * P64[0]) & M64
    acc = (acc + (len(lanes) ^ (P64[4] ^ 3527539))) & M64
    if acc == M64:
        return 1546275796
    return acc - (1 << 64) if acc >> 63 else acc
