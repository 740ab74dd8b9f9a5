"""What every denoising network must do: rows alone equal rows beside others, hidden targets stay hidden."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from diffusion_core.condition import Condition
from diffusion_core.errors import InvalidCondition, InvalidShape
from diffusion_core.networks import MLP, DiT, DiTConfig, MLPConfig, UNet, UNetConfig

TOKEN, POOLED, CLASSES, ROWS = 5, 6, 4, 6
F64 = torch.float64
Make = Callable[..., nn.Module]


def dit(shape: tuple[int, ...], patch: int | tuple[int, ...]) -> Make:
    return lambda **parts: DiT(DiTConfig(shape, patch, width=24, depth=2, num_heads=3, **parts))


def unet(shape: tuple[int, ...], multipliers: tuple[int, ...]) -> Make:
    sizes = {"width": 8, "multipliers": multipliers, "num_heads": 2}
    return lambda **parts: UNet(UNetConfig(shape, **sizes, **parts))


NETWORKS = {
    "dit image": (dit((3, 8, 12), 4), (3, 8, 12)),
    "dit video": (dit((2, 4, 6, 8), (2, 3, 4)), (2, 4, 6, 8)),
    "dit sequence": (dit((3, 10), 2), (3, 10)),
    "unet image": (unet((3, 12, 8), (1, 2)), (3, 12, 8)),
    "unet wide first": (unet((1, 8, 8), (2, 3, 3)), (1, 8, 8)),
    "unet sequence": (unet((2, 16), (1, 1)), (2, 16)),
    "unet video": (unet((1, 4, 4, 8), (1, 2)), (1, 4, 4, 8)),
    "mlp": (lambda **parts: MLP(MLPConfig((7,), width=16, depth=2, **parts)), (7,)),
}
PARTS = {"token_dim": TOKEN, "pooled_dim": POOLED, "num_classes": CLASSES}


@pytest.fixture(params=NETWORKS)
def made(request: pytest.FixtureRequest) -> tuple[Make, tuple[int, ...]]:
    return NETWORKS[request.param]


def awake(network: nn.Module) -> nn.Module:
    """Weights that are nowhere zero: a network that starts at zero output would pass any comparison."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return network.double().eval()


def rows_of(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Condition]:
    """Six rows: two see everything, one is hidden, one has no text, one no label, one no pooled vector."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(ROWS, *shape, generator=generator, dtype=F64)
    mask = torch.rand(ROWS, 4, generator=generator) < 0.6
    mask[:, 0] = True
    mask[3] = False
    pooled = torch.randn(ROWS, POOLED, generator=generator, dtype=F64)
    pooled[5] = 0.0
    condition = Condition.of(
        torch.randn(ROWS, 4, TOKEN, generator=generator, dtype=F64), mask, pooled, [0, 3, 1, 2, -1, 3]
    )
    hidden = torch.tensor([False, False, True, False, False, False])
    return x, torch.tensor([1.0, 999.0, 500.0, 7.0, 1000.0, 20.0], dtype=F64), condition.hidden(hidden)


def largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


def test_starts_at_zero_and_keeps_the_shape(made: tuple[Make, tuple[int, ...]]) -> None:
    make, shape = made
    x, level, condition = rows_of(shape)
    output = make(**PARTS).double()(x, level, condition)
    assert output.shape == x.shape
    assert int(output.count_nonzero()) == 0
    assert awake(make(**PARTS))(x, level, condition).abs().min() > 0


def test_learned_variance_doubles_the_channels(made: tuple[Make, tuple[int, ...]]) -> None:
    make, shape = made
    x, level, condition = rows_of(shape)
    output = make(**PARTS, learned_variance=True).double()(x, level, condition)
    assert output.shape == (ROWS, 2 * shape[0], *shape[1:])


def test_each_row_alone_equals_the_row_beside_others(made: tuple[Make, tuple[int, ...]]) -> None:
    make, shape = made
    network = awake(make(**PARTS))
    x, level, condition = rows_of(shape)
    together = network(x, level, condition)
    for row in range(ROWS):
        one = slice(row, row + 1)
        alone = network(x[one], level[one], condition.rows(one))
        assert largest(together[one], alone) <= 1e-10
    changed = network(x.flip(0), level.flip(0), condition.rows(torch.arange(ROWS - 1, -1, -1))).flip(0)
    assert largest(together, changed) <= 1e-10


def test_a_longer_neighbour_changes_nothing(made: tuple[Make, tuple[int, ...]]) -> None:
    make, shape = made
    network = awake(make(**PARTS))
    x, level, condition = rows_of(shape)
    short = replace(condition, tokens=condition.tokens[:, :2], mask=None).rows(slice(0, 2))
    long = Condition.of(torch.randn(1, 9, TOKEN, dtype=F64))
    alone = network(x[:2], level[:2], short)
    beside = network(x[:3], level[:3], Condition.cat([short, long]))
    assert largest(beside[:2], alone) <= 1e-10
    # A row without pooled vector or label is the same beside rows that have them.
    assert largest(beside[2:], network(x[2:3], level[2:3], long)) <= 1e-10


def test_masked_positions_may_hold_anything(made: tuple[Make, tuple[int, ...]]) -> None:
    make, shape = made
    network = awake(make(**PARTS))
    x, level, condition = rows_of(shape)
    noisy = torch.where(condition.mask[..., None], condition.tokens, float("nan"))
    assert torch.equal(network(x, level, replace(condition, tokens=noisy)), network(x, level, condition))
    heard = network(x, level, replace(condition, tokens=condition.tokens + 1.0 * torch.arange(TOKEN)))
    apart = (heard - network(x, level, condition)).flatten(1).abs().amax(dim=1)
    # Rows 2 (hidden) and 3 (masked) do not hear their tokens; the others do.
    assert (apart > 1e-3).tolist() == [True, True, False, False, True, True]
    assert (apart[[2, 3]] == 0).all()


@pytest.mark.parametrize("part", ["pooled", "label"])
def test_only_present_rows_hear_a_part(made: tuple[Make, tuple[int, ...]], part: str) -> None:
    make, shape = made
    network = awake(make(**PARTS))
    x, level, condition = rows_of(shape)
    next_label = torch.where(condition.label < 0, -1, (condition.label + 1) % CLASSES)
    other = -condition.pooled if part == "pooled" else next_label
    apart = network(x, level, replace(condition, **{part: other})) - network(x, level, condition)
    deaf = {2, 5} if part == "pooled" else {2, 4}
    assert {row for row in range(ROWS) if int(apart[row].count_nonzero()) == 0} == deaf


def test_hidden_rows_equal_no_condition(made: tuple[Make, tuple[int, ...]]) -> None:
    make, shape = made
    network = awake(make(**PARTS))
    x, level, condition = rows_of(shape)
    nothing = network(x, level, None)
    assert largest(network(x, level, condition.hidden()), nothing) <= 1e-10
    assert largest(network(x, level, Condition.null(ROWS)), nothing) == 0.0
    assert largest(network(x, level, condition)[:2], nothing[:2]) > 1e-3


def test_without_parts_a_condition_is_ignored(made: tuple[Make, tuple[int, ...]]) -> None:
    make, shape = made
    network = awake(make())
    x, level, condition = rows_of(shape)
    assert torch.equal(network(x, level, condition), network(x, level, None))


def test_the_level_is_heard_row_by_row(made: tuple[Make, tuple[int, ...]]) -> None:
    make, shape = made
    network = awake(make())
    x, level, _ = rows_of(shape)
    shifted = level + torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 0.0], dtype=F64)
    apart = (network(x, shifted, None) - network(x, level, None)).flatten(1).abs().amax(dim=1)
    assert (apart > 0).tolist() == [False, True, False, False, False, False]


def test_gradients_reach_every_parameter(made: tuple[Make, tuple[int, ...]]) -> None:
    make, shape = made
    network = awake(make(**PARTS))
    x, level, condition = rows_of(shape)
    network(x, level, condition).square().sum().backward()
    silent = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert silent == []


def test_every_parameter_takes_part_whatever_the_batch(made: tuple[Make, tuple[int, ...]]) -> None:
    """Data-parallel training waits for the gradient of each parameter, also when no row is hidden, or all are."""
    make, shape = made
    network = awake(make(**PARTS))
    x, level, condition = rows_of(shape)
    for asked in (condition.rows(slice(0, 2)), condition.rows(slice(2, 4)).hidden()):
        network.zero_grad(set_to_none=True)
        network(x[:2], level[:2], asked).sum().backward()
        assert [name for name, value in network.named_parameters() if value.grad is None] == []


def test_wrong_sizes_are_refused(made: tuple[Make, tuple[int, ...]]) -> None:
    make, shape = made
    network = make(**PARTS)
    x, level = torch.zeros(2, *shape), torch.ones(2)
    with pytest.raises(InvalidShape, match="made for"):
        network(torch.zeros(2, shape[0] + 1, *shape[1:]), level, None)
    with pytest.raises(InvalidCondition, match="tokens of width 9, this network reads 5"):
        network(x, level, Condition.of(torch.zeros(2, 3, 9)))
    with pytest.raises(InvalidCondition, match="pooled of width 9"):
        network(x, level, Condition.of(pooled=torch.ones(2, 9)))
    with pytest.raises(InvalidCondition, match=f"row 1 has label {CLASSES}"):
        network(x, level, Condition.of(label=[0, CLASSES]))
    with pytest.raises(InvalidCondition, match="row 0 has label -2"):
        network(x, level, Condition.of(label=[-2, 0]))


def test_half_precision_weights_keep_levels_apart() -> None:
    """Level 999 is no bfloat16: sinusoids are taken in single precision, whatever the weights are."""
    network = awake(DiT(DiTConfig((1, 4, 4), 2, width=16, depth=1, num_heads=2))).bfloat16()
    x = torch.randn(1, 1, 4, 4, dtype=torch.bfloat16)
    assert not torch.equal(network(x, torch.tensor([999.0])), network(x, torch.tensor([1000.0])))
