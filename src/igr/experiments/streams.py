"""Random numbers that depend on a seed and a purpose alone."""

from __future__ import annotations

import hashlib

import torch


def stream(seed: int, *labels: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A random generator that depends on the seed and the labels alone.

    What run r draws must not depend on which other runs share its stack, nor on where training was interrupted: so
    every (seed, purpose, epoch) has a stream of its own, and no generator's state is ever carried along.
    """
    text = "/".join(map(str, (seed, *labels)))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    # CPU generators use the low 32 bits alone; the digest is uniform there too.
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)
