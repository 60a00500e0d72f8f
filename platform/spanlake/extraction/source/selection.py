"""Selects rows of a file with one bit for each row, packed for a plan."""

import zlib

import numpy as np

Packed = bytes

_LENGTH_BYTES = 8


def pack(mask: np.ndarray) -> Packed:
    """Returns a mask (bool, one item for each row) in few bytes; no bytes if every row is selected."""
    if mask.all():
        return b""
    return len(mask).to_bytes(_LENGTH_BYTES, "little") + zlib.compress(np.packbits(mask).tobytes())


def unpack(packed: Packed) -> np.ndarray:
    """Returns the mask of packed bytes, which must not be empty."""
    bits = np.frombuffer(zlib.decompress(packed[_LENGTH_BYTES:]), np.uint8)
    return np.unpackbits(bits, count=packed_length(packed)).astype(bool)


def packed_length(packed: Packed) -> int:
    """Returns the number of rows of a packed mask."""
    return int.from_bytes(packed[:_LENGTH_BYTES], "little")
