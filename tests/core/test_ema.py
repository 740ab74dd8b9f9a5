"""Moving averages against their closed forms, whole and sharded."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffusion_core.ema import EMA, ConstantDecay, Decay, PowerFunction, reconstruction
from diffusion_core.errors import InvalidShape


class Point(nn.Module):
    """A network of one vector and one buffer."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(3, dtype=dtype))
        self.register_buffer("fixed", torch.ones(2))


def path(num_updates: int) -> Tensor:
    return torch.randn(num_updates, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def follow(decay: Decay, places: Tensor) -> EMA:
    network = Point()
    ema = EMA(network, decay)
    for place in places:
        with torch.no_grad():
            network.place.copy_(place)
        ema.update(network)
    return ema


def test_constant_decay_is_a_geometric_sum() -> None:
    places, beta = path(40), 0.9
    weights = (1.0 - beta) * beta ** torch.arange(39, -1, -1, dtype=torch.float64)
    weights[0] = beta**39
    found = follow(ConstantDecay(beta, warm_up=False), places).averages["place"]
    assert torch.allclose(found, (weights[:, None] * places).sum(dim=0), atol=1e-12)


def test_warm_up_rises_to_the_decay() -> None:
    decay = ConstantDecay(0.99)
    betas = [decay.beta(update) for update in range(1, 2000)]
    assert betas == sorted(betas)
    assert (betas[0], betas[-1]) == (0.0, 0.99)
    assert betas[90] == 90 / 100


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.25])
def test_power_function_has_the_asked_width(sigma_rel: float) -> None:
    """The weight of update t is t^gamma, so the profile's relative deviation can be summed directly."""
    decay, count = PowerFunction(sigma_rel), 4000
    gamma = decay.gamma
    assert (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) == pytest.approx(sigma_rel**2, rel=1e-9)
    eye = torch.zeros(count, dtype=torch.float64)
    for update in range(1, count + 1):
        eye *= decay.beta(update)
        eye[update - 1] += 1.0 - decay.beta(update)
    time = torch.arange(1, count + 1, dtype=torch.float64) / count
    assert float(eye.sum()) == pytest.approx(1.0, abs=1e-12)
    mean = (eye * time).sum()
    assert math.sqrt((eye * (time - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=2e-3)
    # Weights in proportion to t^gamma, up to a relative 1 / t.
    assert float(eye[count // 2] / eye[-1]) == pytest.approx(float(time[count // 2]) ** gamma, rel=5e-3)


def test_any_width_is_reconstructed_from_snapshots_of_two() -> None:
    """Against averages of those widths that were tracked directly; the nearest snapshot alone is the control."""
    places, every = path(2000).cumsum(dim=0) / 45.0, 125
    stored: dict[tuple[int, float], Tensor] = {}
    for width in (0.05, 0.1):
        network, ema = Point(), EMA(Point(), PowerFunction(width))
        for update, place in enumerate(places, start=1):
            with torch.no_grad():
                network.place.copy_(place)
            ema.update(network)
            if update % every == 0:
                stored[update, width] = ema.averages["place"].clone()
    for end, width in ((2000, 0.03), (2000, 0.075), (2000, 0.15), (1500, 0.1)):
        kept = {key: value for key, value in stored.items() if key[0] <= end}
        factors = reconstruction(list(kept), end, width)
        assert sum(factors) == pytest.approx(1.0, abs=0.02)
        found = sum((factor * value for factor, value in zip(factors, kept.values(), strict=True)), torch.zeros(3))
        wanted = follow(PowerFunction(width), places[:end]).averages["place"]
        error = float((found - wanted).norm())
        nearest = min(float((value - wanted).norm()) for (update, _), value in kept.items() if update == end)
        assert error < 0.02, (end, width)
        assert error < 0.25 * nearest or nearest == 0.0, (end, width, nearest)
    with pytest.raises(InvalidShape, match="no snapshots"):
        reconstruction([], 10, 0.1)


def test_power_function_follows_its_betas() -> None:
    places, decay = path(30), PowerFunction(0.2)
    wanted = torch.zeros(3, dtype=torch.float64)
    for update, place in enumerate(places, start=1):
        beta = (1.0 - 1.0 / update) ** (decay.gamma + 1.0)
        wanted = beta * wanted + (1.0 - beta) * place
    assert torch.allclose(follow(decay, places).averages["place"], wanted, atol=1e-12)


def test_half_precision_weights_are_averaged_in_single() -> None:
    """Steps of 1/1000 of a bfloat16 vanish in bfloat16; the average must see them."""
    network = Point(torch.bfloat16)
    ema = EMA(network, ConstantDecay(0.999, warm_up=False))
    ema.update(network)
    with torch.no_grad():
        network.place.fill_(1.0)
    for _ in range(100):
        ema.update(network)
    average = ema.averages["place"]
    assert average.dtype == torch.float32
    assert float(average[0]) == pytest.approx(1.0 - 0.999**100, rel=1e-4)


def test_weights_hold_averages_and_present_buffers() -> None:
    network = Point()
    ema = EMA(network)
    ema.update(network)
    with torch.no_grad():
        network.place.fill_(5.0)
        network.fixed.fill_(7.0)
    weights = ema.weights(network)
    assert set(weights) == {"place", "fixed"}
    assert (float(weights["place"][0]), float(weights["fixed"][0])) == (0.0, 7.0)
    ema.copy_to(network)
    assert float(network.place.detach()[0]) == 0.0


def test_resuming_equals_going_on() -> None:
    places = path(20)
    straight = follow(ConstantDecay(0.9), places)
    first = follow(ConstantDecay(0.9), places[:8])
    network = Point()
    second = EMA(network, ConstantDecay(0.9))
    second.load_state_dict(first.state_dict())
    for place in places[8:]:
        with torch.no_grad():
            network.place.copy_(place)
        second.update(network)
    assert second.num_updates == 20
    assert torch.equal(second.averages["place"], straight.averages["place"])


def test_an_average_is_a_copy() -> None:
    network = Point()
    ema = EMA(network)
    with torch.no_grad():
        network.place.fill_(9.0)
    assert float(ema.averages["place"].abs().max()) == 0.0


def test_other_networks_and_wild_numbers_are_refused() -> None:
    ema = EMA(Point())
    with pytest.raises(InvalidShape, match=r"found place of shape None"):
        ema.update(nn.Linear(2, 2))
    with pytest.raises(InvalidShape, match=r"found place of shape \(4,\), this average has \(3,\)"):
        ema.load_state_dict({"num_updates": 1, "averages": {"place": torch.zeros(4)}})
    for wrong in (-0.1, 1.0):
        with pytest.raises(InvalidShape, match="wanted a number in"):
            ConstantDecay(wrong)
    for wrong in (0.0, 0.3):
        with pytest.raises(InvalidShape, match="wanted a number in"):
            PowerFunction(wrong)


SHARDED = """
import sys
import torch
from torch import nn
from torch.distributed import init_process_group, destroy_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from diffusion_core.ema import EMA, ConstantDecay

rank = int(sys.argv[1])
init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
torch.manual_seed(0)
whole, sharded = (nn.Linear(3, 5) for _ in range(2))
sharded.load_state_dict(whole.state_dict())
fully_shard(sharded, mesh=mesh)
averages = [EMA(network, ConstantDecay(0.8)) for network in (whole, sharded)]
for step in range(6):
    with torch.no_grad():
        for parameter, part in zip(whole.parameters(), sharded.parameters()):
            change = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
            parameter.add_(change)
            part.add_(torch.distributed.tensor.distribute_tensor(change, mesh, part.placements))
    with CommDebugMode() as traffic:
        averages[0].update(whole)
        averages[1].update(sharded)
    assert traffic.get_total_counts() == 0, "the average was gathered"
assert all(isinstance(value, DTensor) for value in averages[1].state_dict()["averages"].values())
restored = EMA(sharded, ConstantDecay(0.8))
restored.load_state_dict(averages[1].state_dict())
for name, value in averages[0].averages.items():
    torch.testing.assert_close(averages[1].averages[name].full_tensor(), value, rtol=0, atol=1e-7)
    assert torch.equal(restored.averages[name].to_local(), averages[1].averages[name].to_local())
restored.copy_to(sharded)
torch.testing.assert_close(sharded.weight.full_tensor(), averages[0].averages["weight"], rtol=0, atol=1e-7)
destroy_process_group()
"""


def test_sharded_weights_are_averaged_shard_by_shard(tmp_path: Path) -> None:
    meeting = tmp_path / "meeting"
    ranks = [
        subprocess.Popen([sys.executable, "-c", SHARDED, str(rank), str(meeting)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)
