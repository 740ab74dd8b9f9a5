"""Philox against its published vectors and a plain implementation; draws as pure functions of their key."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion_core import noise
from diffusion_core.errors import InvalidSeed, InvalidShape

VECTORS = json.loads((Path(__file__).parent / "data" / "philox4x32_10.json").read_text())["vectors"]
F32, F64 = torch.float32, torch.float64
MASK = 0xFFFFFFFF
words32 = st.integers(0, MASK)
words64 = st.integers(0, 2**64 - 1)


def plain_philox(key: list[int], counter: list[int]) -> list[int]:
    """Philox4x32-10 as the paper writes it, with Python's integers."""
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & MASK, (p0 >> 32) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return [c0, c1, c2, c3]


def philox_words(key: list[int], counter: list[int], num_blocks: int = 1) -> list[list[int]]:
    """The core's words of each block, in the order of the paper."""
    first, *index, stream = counter
    even, odd = noise.philox(torch.tensor(key)[:, None], torch.tensor(index)[:, None], stream, num_blocks, first)
    both = torch.stack([even[0, 0], odd[0, 0], even[1, 0], odd[1, 0]], dim=1) & MASK
    return both.tolist()


def plain_normals(seed: int, stream: int, index: int, size: int) -> list[float]:
    """The documented order of numbers: cosines of (0, 1) and (2, 3), then sines, a run of blocks each."""
    blocks = -(-size // 64) * 16
    runs: list[list[float]] = [[], [], [], []]
    for block in range(blocks):
        words = plain_philox([seed & MASK, seed >> 32], [block, index & MASK, index >> 32, stream])
        for pair in range(2):
            u = float(np.float32(np.float32(words[2 * pair] & 0x7FFFFFFF) * np.float32(2**-31) + np.float32(2**-32)))
            signed = words[2 * pair + 1] - (words[2 * pair + 1] >> 31 << 32)
            radius, angle = math.sqrt(-2 * math.log(u)), float(np.float32(signed)) * math.pi / 2**31
            runs[pair].append(radius * math.cos(angle))
            runs[pair + 2].append(radius * math.sin(angle))
    return [number for run in runs for number in run][:size]


@pytest.mark.parametrize("vector", VECTORS)
def test_published_known_answers(vector):
    key, counter = ([int(word, 16) for word in vector[name]] for name in ("key", "counter"))
    wanted = [int(word, 16) for word in vector["words"]]
    assert philox_words(key, counter)[0] == wanted
    assert plain_philox(key, counter) == wanted
    # Negative control: one bit of the key changes about half of the bits.
    flipped = philox_words([key[0] ^ 1, key[1]], counter)[0]
    assert 30 < sum((a ^ b).bit_count() for a, b in zip(flipped, wanted, strict=True)) < 98


@given(st.lists(words32, min_size=2, max_size=2), st.lists(words32, min_size=4, max_size=4))
def test_words_equal_a_plain_implementation(key, counter):
    counter[0] = min(counter[0], MASK - 2)
    wanted = [plain_philox(key, [counter[0] + block, *counter[1:]]) for block in range(3)]
    assert philox_words(key, counter, 3) == wanted


@given(words64, words32, words64, st.sampled_from([1, 4, 63, 64, 65, 130]))
def test_normals_equal_their_definition(seed, stream, index, size):
    wanted = torch.tensor(plain_normals(seed, stream, index, size), dtype=F64)
    torch.testing.assert_close(noise.normal(seed, stream, index, (size,), dtype=F64), wanted, rtol=0, atol=1e-14)
    torch.testing.assert_close(noise.normal(seed, stream, index, (size,)).double(), wanted, rtol=0, atol=2e-6)


@given(words64, words64)
def test_uniform_numbers_are_the_upper_24_bits(seed, index):
    blocks = [plain_philox([seed & MASK, seed >> 32], [b, index & MASK, index >> 32, 9]) for b in range(16)]
    wanted = [(block[word] >> 8) / 2**24 for word in (0, 2, 1, 3) for block in blocks]
    for dtype in (F32, F64):
        assert noise.uniform(seed, 9, index, (64,), dtype=dtype).tolist() == wanted


@given(
    st.lists(st.tuples(words64, words64), min_size=1, max_size=9),
    st.sampled_from([(1,), (5,), (3, 4, 5), (2, 65)]),
    st.sampled_from([F32, F64, torch.bfloat16]),
    st.sampled_from([noise.normal, noise.uniform]),
)
def test_a_row_does_not_depend_on_the_others_bit_for_bit(keys, shape, dtype, draw):
    seeds, indices = [seed for seed, _ in keys], [index for _, index in keys]
    together = draw(seeds, noise.STEP, indices, shape, dtype=dtype)
    assert together.shape == (len(keys), *shape) and together.dtype == dtype
    for row, (seed, index) in enumerate(keys):
        assert torch.equal(together[row], draw(seed, noise.STEP, index, shape, dtype=dtype))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_an_image_does_not_depend_on_batch_threads_or_scratch_memory(monkeypatch, threads, dtype):
    before = torch.get_num_threads()
    alone = [noise.normal(seed, noise.STEP, 3, (3, 32, 32), dtype=dtype) for seed in range(44)]
    torch.set_num_threads(threads)
    try:
        assert torch.equal(noise.normal(range(44), noise.STEP, 3, (3, 32, 32), dtype=dtype), torch.stack(alone))
        monkeypatch.setattr(noise, "_BLOCKS_AT_ONCE", 1)
        assert torch.equal(noise.normal(range(44), noise.STEP, 3, (3, 32, 32), dtype=dtype), torch.stack(alone))
    finally:
        torch.set_num_threads(before)


def test_types_agree_to_rounding():
    shape = (100_000,)
    single, double = (noise.normal(5, noise.STEP, 1, shape, dtype=dtype) for dtype in (F32, F64))
    torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-6)
    assert torch.equal(noise.normal(5, noise.STEP, 1, shape, dtype=torch.bfloat16), single.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [F32, F64])
def test_the_rarest_words_give_finite_numbers(dtype):
    """Words of all zeros are the largest radius, of all ones the smallest: never log 0."""
    words = torch.tensor([0, 1, 0x7FFFFFFF, 0x80000000, MASK])
    even, odd = torch.meshgrid(words, words, indexing="ij")
    out = torch.empty(4, 1, 25, dtype=dtype)
    noise._box_muller(even.reshape(1, 1, 25).repeat(2, 1, 1), odd.reshape(1, 1, 25).repeat(2, 1, 1), out)
    assert bool(torch.isfinite(out).all())
    assert math.isclose(float(out.abs().max()), math.sqrt(2 * 32 * math.log(2)), rel_tol=1e-6)


def test_distribution():
    draws = noise.normal(range(10), noise.INITIAL, 0, (20_000,), dtype=F64)
    assert scipy.stats.kstest(draws.flatten().numpy(), "norm").pvalue > 1e-3
    assert scipy.stats.kstest(noise.uniform(range(10), 0, 0, (20_000,)).flatten().numpy(), "uniform").pvalue > 1e-3
    # Negative control: the same test sees a variance that is off by 2%.
    assert scipy.stats.kstest(draws.flatten().numpy() * 1.02, "norm").pvalue < 1e-3
    for power, wanted in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        moment = draws**power
        assert abs(float(moment.mean()) - wanted) < 4 * float(moment.std()) / math.sqrt(moment.numel())


@pytest.mark.parametrize(
    "other",
    [(8, noise.STEP, 3), (7 + 2**32, noise.STEP, 3), (7, noise.INITIAL, 3), (7, noise.STEP, 4), (7, 1, 3 + 2**32)],
)
def test_seed_stream_and_index_all_count(other):
    one, two = noise.normal(7, noise.STEP, 3, (10_000,)), noise.normal(*other, (10_000,))
    assert abs(float(torch.corrcoef(torch.stack([one, two]))[0, 1])) < 0.05


def test_cosines_and_sines_of_a_pair_are_uncorrelated():
    runs = noise.normal(3, noise.STEP, 0, (4 * 50_000 // 64 * 64,), dtype=F64).view(4, -1)
    for values in (runs, runs.square()):
        off_diagonal = torch.corrcoef(values) - torch.eye(4, dtype=F64)
        assert float(off_diagonal.abs().max()) < 0.025


def test_streams_are_distinct():
    streams = [value for name, value in vars(noise).items() if name.isupper() and not name.startswith("_")]
    assert len(streams) == len(set(streams)) >= 5


@pytest.mark.parametrize(
    ("seed", "index", "wanted"),
    [
        (1, 2, ()),
        ([1], 2, (1,)),
        (1, [2, 3], (2,)),
        (range(3), torch.arange(3), (3,)),
        (torch.tensor(4), torch.tensor([1, 2]), (2,)),
        ([], 0, (0,)),
        ([], [], (0,)),
    ],
)
@pytest.mark.parametrize("shape", [(), (2,), (3, 2), (0, 2)])
def test_single_numbers_give_one_row_lists_give_many(seed, index, wanted, shape):
    drawn = noise.normal(seed, 0, index, shape)
    assert drawn.shape == (*wanted, *shape) and drawn.is_contiguous()


@pytest.mark.usefixtures("unchecked")
def test_numpy_numbers_are_numbers():
    wanted = noise.normal([4, 2**64 - 1], 0, 0, (8,))
    assert torch.equal(noise.normal(np.int64(4), 0, 0, (8,)), wanted[0])
    assert torch.equal(noise.normal(list(np.array([4, 2**64 - 1], dtype=np.uint64)), 0, 0, (8,)), wanted)


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1])
def test_every_64_bit_seed_is_its_own(seed):
    assert torch.equal(noise.normal([seed], 0, 0, (8,))[0], noise.normal(seed, 0, 0, (8,)))
    assert not torch.equal(noise.normal(seed, 0, 0, (8,)), noise.normal(seed ^ (1 << 63), 0, 0, (8,)))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("bad", [-1, 2**64, 1.0, True, "7", None, np.float32(1), np.arange(2), torch.tensor([1.0])])
def test_what_is_no_64_bit_number_is_refused(bad):
    for arguments in ((bad, 0, 0), (0, 0, bad)):
        with pytest.raises(InvalidSeed, match=r"wanted a whole number in 0 \.\. 2\^64 - 1"):
            noise.normal(*arguments, (2,))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("bad", [-1, 2**32, 0.0, True])
def test_a_stream_is_a_32_bit_number(bad):
    with pytest.raises(InvalidSeed, match="found stream"):
        noise.normal(0, bad, 0, (2,))


def test_a_bad_seed_among_good_ones_is_named():
    with pytest.raises(InvalidSeed, match=r"found seed -2 \(int\) of row 1"):
        noise.normal([1, -2, 3], 0, 0, (2,))
    with pytest.raises(InvalidShape, match="2 seeds and 3 indices"):
        noise.normal([1, 2], 0, [1, 2, 3], (2,))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("draw", [noise.normal, noise.uniform])
def test_a_gpu_draws_the_same(draw):
    for dtype, tolerance in ((F32, 2e-6), (F64, 1e-13)):
        here = draw(range(8), noise.STEP, 5, (3, 64, 64), dtype=dtype)
        there = draw(range(8), noise.STEP, 5, (3, 64, 64), "cuda", dtype).cpu()
        torch.testing.assert_close(here, there, rtol=0, atol=0 if draw is noise.uniform else tolerance)
