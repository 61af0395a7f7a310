"""Named seeds. Every random draw has a seed derived from its purpose, so no draw depends on the draws before it."""

import hashlib

import numpy as np


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from a name and numbers, for instance derive_seed("rollout", 42, step, prompt, sample, turn)."""
    text = ":".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def uniforms(seed: int, count: int) -> np.ndarray:
    """`count` float32 numbers, uniform in [0, 1). The same on every platform."""
    return (np.random.Philox(key=seed).random_raw(count) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def permutation(seed: int, count: int) -> np.ndarray:
    """A random permutation of range(count). The same on every platform and numpy version."""
    return np.argsort(np.random.Philox(key=seed).random_raw(count), kind="stable")
