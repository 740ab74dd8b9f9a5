r"""Randomness as a pure function: Philox4x32-10, keyed by (seed, stream, index).

    key = (seed low, seed high),      counter = (block, index low, index high, stream)

Ten rounds turn each counter into four words of 32 bits; Box-Muller turns pairs of words into pairs of normal
numbers. Nothing is remembered between calls, so a draw is the same on any device, beside any other rows,
after a retry or a resume. A row of n numbers takes m >= n / 4 blocks, m a multiple of 16; its numbers are the first
n of four runs of m, one entry per block: words 0, 2, 1, 3, or the cosines and then the sines of (0, 1) and (2, 3).

References:
    Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (2011); known answers from Random123.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from functools import cache
from numbers import Integral
from typing import Any, Final, TypeAlias

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from diffusion_core.errors import InvalidSeed, InvalidShape

Integers: TypeAlias = int | Sequence[int] | Tensor
"""One number for all rows, or one per row."""

INITIAL: Final = 0
"""Stream of the noise that a row starts from."""
STEP: Final = 1
"""Stream of the noise of a sampler's step; the index is the step."""
TRAIN_LEVEL: Final = 2
"""Stream of a training sample's level; the index is the sample's number."""
TRAIN_NOISE: Final = 3
"""Stream of a training sample's noise."""
TRAIN_DROP: Final = 4
"""Stream of a training sample's condition dropout."""
LIKELIHOOD: Final = 5
"""Stream of the noise of likelihood terms; the index is the level."""
ORACLE: Final = 6
"""Stream of the oracle's own samples."""

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF
# Bounds the scratch memory of a draw to some 3 MB (100 MB on an accelerator), whatever the number of rows.
_BLOCKS_AT_ONCE = 1 << 15
# Rows of whole vector registers: a number never depends on where in the batch its row lies.
_BLOCKS_MULTIPLE = 16

_Words: TypeAlias = Int64[Tensor, "pair b blocks"]


def normal(
    seed: Integers,
    stream: int,
    index: Integers,
    shape: Sequence[int],
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "..."]:
    """Standard normal numbers: `sqrt(-2 log u) (cos, sin)(theta)` of pairs of Philox words (Box-Muller).

    The numbers of a float64 draw, rounded, are those of a float32 draw to rounding, on any device.

    Args:
        seed: in `0 .. 2^64 - 1`, one for all rows or one per row.
        stream: what the noise is for, in `0 .. 2^32 - 1`: the constants of this module.
        index: in `0 .. 2^64 - 1`: which draw of the stream; one for all rows or one per row.
        shape: of one row.
        device: of the result.
        dtype: of the result; computed in at least float32.

    Returns:
        `shape` if seed and index are single numbers, else `(b, *shape)`.

    Raises:
        InvalidSeed: a seed, stream or index that is no integer of that range.
        InvalidShape: seeds and indices of different numbers.
    """
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    return _drawn(_box_muller, seed, stream, index, shape, device, kind).to(dtype)


def uniform(
    seed: Integers,
    stream: int,
    index: Integers,
    shape: Sequence[int],
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "..."]:
    """Uniform numbers in [0, 1), multiples of 2^-24: exact in float32, so equal on every device.

    Arguments, result and errors are those of `normal`. A type below float32 may round up to 1.
    """
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    return _drawn(_uniform, seed, stream, index, shape, device, kind).to(dtype)


def philox(
    key: Int64[Tensor, "pair b"], index: Int64[Tensor, "pair b"], stream: int, num_blocks: int, first_block: int = 0
) -> tuple[_Words, _Words]:
    """Philox4x32-10 of the counters `(block, index low, index high, stream)` of each row.

    Args:
        key: two words per row, `(2, b)`, each in `0 .. 2^32 - 1`.
        index: likewise.
        stream: a word.
        num_blocks: blocks per row.
        first_block: their first; the last must be a word too.

    Returns:
        Words 0 and 2, and words 1 and 3, each `(2, b, num_blocks)`, in the low 32 bits.
    """
    # Words 0 and 2 are multiplied; words 1 and 3 are the low halves of the products before. A round swaps the two
    # pairs, so instead of moving them, every second round reads and writes them in the other order.
    order, bumps, multipliers, (word, half_word) = _constants(key.device)
    keys = ((key[order] + bumps) & word)[..., None].unbind()
    shape = (2, key.shape[1], num_blocks)
    multiplied = torch.empty(shape, dtype=torch.int64, device=key.device)
    products = torch.empty(2, *shape, dtype=torch.int64, device=key.device)
    multiplied[0] = torch.arange(first_block, first_block + num_blocks, device=key.device)
    multiplied[1] = index[1, :, None]
    products[1, 0] = index[0, :, None]
    products[1, 1] = stream
    (first, second), (after, before) = multiplied.unbind(), [(pair, *pair.unbind()) for pair in products.unbind()]
    for round_key, multiplier in zip(keys, multipliers, strict=True):
        torch.mul(multiplied, multiplier, out=after[0])
        torch.bitwise_right_shift(after[0], half_word, out=multiplied)
        first.bitwise_xor_(before[2])
        second.bitwise_xor_(before[1])
        multiplied.bitwise_xor_(round_key).bitwise_and_(word)
        after, before = before, after
    return multiplied, before[0]


def _drawn(
    transform: Callable[[_Words, _Words, Tensor], None],
    seed: Integers,
    stream: int,
    index: Integers,
    shape: Sequence[int],
    device: torch.device | str | None,
    dtype: torch.dtype,
) -> Tensor:
    """Philox words of every row, through `transform`, a few rows at a time."""
    seeds, indices, size = _checked(seed, "seed"), _checked(index, "index"), math.prod(shape)
    num_rows = _num_rows(seed, seeds, index, indices)
    key, place = _halves(seeds, indices, num_rows, device)
    (word,) = _checked(stream, "stream", 32)
    blocks = -(-size // (4 * _BLOCKS_MULTIPLE)) * _BLOCKS_MULTIPLE
    out = torch.empty(num_rows, 4, blocks, dtype=dtype, device=key.device)
    rows = max((_BLOCKS_AT_ONCE if key.device.type == "cpu" else _BLOCKS_AT_ONCE << 5) // max(blocks, 1), 1)
    for start in range(0, num_rows, rows):
        part = slice(start, start + rows)
        transform(*philox(key[:, part], place[:, part], word, blocks), out[part].transpose(0, 1))
    drawn = out.view(num_rows, 4 * blocks)[:, :size].reshape(num_rows, *shape).contiguous()
    return drawn if _is_many(seed) or _is_many(index) else drawn[0]


def _box_muller(even: _Words, odd: _Words, out: Tensor) -> None:
    # The radius takes 31 bits, rounded once on the way to float32 whatever `out` is; u is in [2^-32, 1].
    u = even.bitwise_and_(_WORD >> 1).to(torch.float32).mul_(2.0**-31).add_(2.0**-32)
    radius = u.to(out.dtype).log_().mul_(-2.0).sqrt_()
    angle = odd.to(torch.int32).to(torch.float32).to(out.dtype).mul_(math.pi / 2.0**31)
    torch.mul(radius, angle.cos(), out=out[:2])
    torch.mul(radius, angle.sin_(), out=out[2:])


def _uniform(even: _Words, odd: _Words, out: Tensor) -> None:
    for words, place in ((even, out[:2]), (odd.bitwise_and_(_WORD), out[2:])):
        place.copy_(words.bitwise_right_shift_(8)).mul_(2.0**-24)


@cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """For each round, the order in which it writes the pairs, the key's increments and the multipliers; scalars."""
    order = [[1, 0] if number % 2 == 0 else [0, 1] for number in range(_ROUNDS)]
    bumps = [[[number * _WEYL[half]] for half in halves] for number, halves in enumerate(order)]
    forward = torch.tensor(_MULTIPLIERS, device=device)[:, None, None]
    scalars = torch.tensor([_WORD, 32], device=device).unbind()
    multipliers = (forward, forward.flip(0)) * (_ROUNDS // 2)
    return torch.tensor(order, device=device), torch.tensor(bumps, device=device), multipliers, scalars


def _halves(
    seeds: array[int], indices: array[int], num_rows: int, device: torch.device | str | None
) -> tuple[Int64[Tensor, "pair b"], Int64[Tensor, "pair b"]]:
    """The low and high words of each row's seed and of its index."""
    if num_rows == 0:
        empty = torch.empty(2, 0, dtype=torch.int64, device=device)
        return empty, empty
    rows = seeds * (num_rows // len(seeds)) + indices * (num_rows // len(indices))
    words = torch.frombuffer(rows, dtype=torch.uint32).view(2, num_rows, 2).to(device, torch.int64)
    key, index = words.transpose(1, 2)
    return key, index


def _num_rows(seed: Integers, seeds: array[int], index: Integers, indices: array[int]) -> int:
    if _is_many(seed) and _is_many(index) and len(seeds) != len(indices):
        raise InvalidShape(f"found {len(seeds)} seeds and {len(indices)} indices: give one of each per row")
    return len(seeds) if _is_many(seed) else len(indices)


def _is_many(value: Integers) -> bool:
    return value.dim() > 0 if isinstance(value, Tensor) else isinstance(value, Sequence)


def _checked(value: Integers, name: str, bits: int = 64) -> array[int]:
    """Whole numbers that fit; numpy's do, truth values and floats do not."""
    plain = value.tolist() if isinstance(value, Tensor) else value
    numbers = plain if isinstance(plain, Sequence) else [plain]
    try:
        packed = array("Q", numbers)
        good = bool not in set(map(type, numbers)) and max(packed, default=0) >> bits == 0
    except (TypeError, OverflowError):
        good = False
    if not good:
        row, culprit = next((i, one) for i, one in enumerate(numbers) if not _fits(one, bits))
        kind, place = type(culprit).__name__, f" of row {row}" if len(numbers) > 1 else ""
        raise InvalidSeed(f"found {name} {culprit!r} ({kind}){place}, wanted a whole number in 0 .. 2^{bits} - 1")
    return packed


def _fits(value: Any, bits: int) -> bool:
    return issubclass(type(value), Integral) and not isinstance(value, bool) and 0 <= int(value) < 1 << bits
