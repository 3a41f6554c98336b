"""Writes ring.json: golden vectors from an implementation independent of the crate's.

    pip install xxhash && python3 ring.py > ring.json
"""

import hashlib
import json
import struct
import uuid
from bisect import bisect_left
from fractions import Fraction

import xxhash

SEED = 0x6C6F6E6773686F72
TOKENS = 8192


def point(data):
    return xxhash.xxh3_64_intdigest(data, SEED)


def tokens(member):
    return sorted(point(member.bytes + struct.pack("<I", i)) for i in range(TOKENS))


def owners(key, weights, tokens_of, count):
    at = point(key)

    def scaled(member):
        ring = tokens_of[member]
        following = ring[bisect_left(ring, at) % TOKENS]
        return Fraction((following - at) % 2**64, weights[member]), member.bytes

    return sorted(weights, key=scaled)[:count]


def cluster(name, weights):
    weights = {uuid.UUID(bytes=hashlib.sha256(f"{name} {i}".encode()).digest()[:16]): w for i, w in enumerate(weights)}
    tokens_of = {member: tokens(member) for member in weights}
    keys = [hashlib.sha256(f"{name} key {i}".encode()).digest()[:16] for i in range(24)] + [b"s3://bucket/model"]
    return {
        "members": [{"id": str(member), "weight": weight} for member, weight in weights.items()],
        "owners": [
            {"key": key.hex(), "owners": [str(m) for m in owners(key, weights, tokens_of, min(3, len(weights)))]}
            for key in keys
        ],
    }


def main():
    texts = [b"", b"\0", b"longshore", bytes(range(16)), bytes(range(256))]
    print(
        json.dumps(
            {
                "seed": f"{SEED:016x}",
                "tokens_per_member": TOKENS,
                "points": [{"bytes": text.hex(), "point": f"{point(text):016x}"} for text in texts],
                "clusters": [
                    cluster("one", [5]),
                    cluster("equal", [100, 100, 100]),
                    cluster("unequal", [1, 16, 250, 64000]),
                    cluster("sixteen", [512] * 12 + [2048] * 4),
                ],
            },
            indent=1,
        )
    )


main()
