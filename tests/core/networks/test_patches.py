"""Cutting data into patches and joining it again."""

from __future__ import annotations

import pytest
import torch

from diffusion_core.errors import InvalidShape
from diffusion_core.networks.attention import Attention
from diffusion_core.networks.embedding import sinusoidal
from diffusion_core.networks.patches import ConvolutionStem, PatchEmbedding, PatchGrid


@pytest.mark.parametrize(
    ("shape", "patch"), [((3, 8, 12), 4), ((2, 4, 6, 8), (2, 3, 1)), ((5, 9), 3), ((1, 2, 2, 2, 2), (1, 2, 1, 2))]
)
def test_join_undoes_split(shape: tuple[int, ...], patch: int | tuple[int, ...]) -> None:
    grid, x = PatchGrid(shape, patch), torch.randn(2, *shape)
    assert torch.equal(grid.join(grid.split(x)), x)


def test_a_patch_is_a_square_of_the_image() -> None:
    x = torch.arange(2 * 4 * 6).reshape(1, 2, 4, 6).float()
    patches = PatchGrid((2, 4, 6), 2).split(x)
    assert patches.shape == (1, 6, 8)
    # Patch 4 is the second row's second: rows 2-3, columns 2-3, channel by channel.
    assert torch.equal(patches[0, 4], x[0, :, 2:4, 2:4].flatten())


def test_join_takes_any_number_of_channels() -> None:
    grid, wide = PatchGrid((3, 4, 4), 2), torch.randn(2, 6, 4, 4)
    assert torch.equal(grid.join(PatchGrid((6, 4, 4), 2).split(wide)), wide)


@pytest.mark.parametrize(("shape", "patch"), [((3, 8, 9), 4), ((3, 8, 8), (4,)), ((3, 8, 8), 0), ((3,), 1)])
def test_patches_that_do_not_fit_are_refused(shape: tuple[int, ...], patch: int | tuple[int, ...]) -> None:
    with pytest.raises(InvalidShape, match="one divisor for each axis"):
        PatchGrid(shape, patch)


def test_positions_differ_from_the_start() -> None:
    """Transposed places too: their positions are no sums of the same table."""
    embedding = PatchEmbedding(PatchGrid((1, 4, 4), 1), 16)
    places = embedding(torch.zeros(1, 1, 4, 4))[0]
    distance = torch.cdist(places, places) + torch.eye(16)
    assert float(distance.detach().min()) > 0.1


def test_a_stem_sees_the_same_wherever_it_lies() -> None:
    """A blob away from the edges, moved by a patch, moves the vectors by one place; moved by less, it does not."""
    stem, picture = ConvolutionStem(PatchGrid((2, 32, 32), 4), 8).double(), torch.zeros(1, 2, 32, 32).double()
    picture[:, :, 12:18, 12:17] = torch.randn(1, 2, 6, 5).double()
    for table in stem.positions:
        table.data.zero_()
    seen, moved, halfway = (stem(picture.roll(by, 2)).unflatten(1, (8, 8)) for by in (0, 4, 2))
    inside = (slice(None), slice(2, -1), slice(1, -1))  # the edges are padded with zeros wherever the blob lies
    assert torch.allclose(moved[inside], seen.roll(1, 1)[inside], atol=1e-12)
    assert float((halfway - seen.roll(1, 1))[inside].abs().max().detach()) > 1e-2


@pytest.mark.parametrize(("shape", "patch"), [((3, 8), 2), ((3, 8, 8), 8), ((1, 4, 8, 4), 4)])
def test_a_stem_gives_a_vector_for_each_patch(shape: tuple[int, ...], patch: int) -> None:
    grid, x = PatchGrid(shape, patch), torch.randn(2, *shape)
    assert ConvolutionStem(grid, 16)(x).shape == PatchEmbedding(grid, 16)(x).shape


@pytest.mark.parametrize(
    ("shape", "patch", "width", "match"),
    [
        ((3, 6, 6), 3, 16, "patches of 2, 4, 8"),
        ((3, 8, 8), (2, 4), 16, "patches of 2, 4, 8"),
        ((3, 8, 8), 1, 16, "patches of 2, 4, 8"),
        ((3, 8, 8), 8, 6, "width 6 cannot be halved 2 times"),
    ],
)
def test_a_stem_that_does_not_fit_is_refused(
    shape: tuple[int, ...], patch: int | tuple[int, ...], width: int, match: str
) -> None:
    with pytest.raises(InvalidShape, match=match):
        ConvolutionStem(PatchGrid(shape, patch), width)


def test_sinusoids_follow_their_formula() -> None:
    table = sinusoidal(torch.tensor([0.0, 3.0], dtype=torch.float64), 5)
    angle = torch.tensor([3.0, 3.0 / 100.0], dtype=torch.float64)
    wanted = torch.cat([angle.cos(), angle.sin(), torch.zeros(1, dtype=torch.float64)])
    assert torch.equal(table[0], torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    assert torch.allclose(table[1], wanted, atol=1e-15)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(InvalidShape, match="width 10 with 4 heads"):
        Attention(10, 4, text_width=None)


def test_attention_is_one_softmax_over_elements_and_text() -> None:
    torch.manual_seed(0)
    attention = Attention(6, 1, text_width=4).double()
    x, text = torch.randn(1, 3, 6, dtype=torch.float64), torch.randn(1, 2, 4, dtype=torch.float64)
    mask = torch.tensor([[True, False]])
    q, k, v = attention.qkv(x)[0].chunk(3, dim=1)
    text_k, text_v = attention.text_kv(text)[0, :1].chunk(2, dim=1)
    weights = (q @ torch.cat([k, text_k]).T / 6**0.5).softmax(dim=1)
    wanted = attention.out(weights @ torch.cat([v, text_v]))
    assert torch.allclose(attention(x, text, mask)[0], wanted, atol=1e-12)
