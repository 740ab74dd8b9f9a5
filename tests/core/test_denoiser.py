"""NetworkDenoiser: what the network is asked, and how its answer is read."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffusion_core import noise
from diffusion_core.condition import Condition
from diffusion_core.denoiser import NetworkDenoiser, check_settings
from diffusion_core.errors import InvalidCondition, InvalidGuidance, InvalidLevels, InvalidPrediction, InvalidShape
from diffusion_core.guidance import ClassifierFreeGuidance
from diffusion_core.prediction import Prediction
from diffusion_core.schedule import NoiseSchedule

F64 = torch.float64
SCHEDULE = NoiseSchedule.cosine()


class Recorder(nn.Module):
    """An elementwise network that remembers what it was asked."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.calls: list[tuple[torch.Tensor, torch.Tensor, Condition | None]] = []
        self.outputs = outputs

    def forward(self, x: torch.Tensor, level: torch.Tensor, condition: Condition | None) -> torch.Tensor:
        self.calls.append((x, level, condition))
        label = 0.0 if condition is None or condition.label is None else condition.label.to(x)[:, None, None]
        first = torch.tanh(x) + level[:, None, None].to(x) / 1000 + label
        return first if self.outputs == 1 else torch.cat([first, torch.sin(x)], dim=1)


def rows(count: int, dtype: torch.dtype = F64) -> tuple[torch.Tensor, torch.Tensor, Condition]:
    x = noise.normal(range(count), 0, 0, (2, 3), dtype=dtype)
    return x, 1 + 37 * torch.arange(count), Condition.of(label=list(range(count)))


@pytest.mark.parametrize("kind", ["x0", "eps", "v"])
def test_the_output_is_read_as_what_was_trained(kind):
    x, level, condition = rows(4)
    network = Recorder()
    found = NetworkDenoiser(network, SCHEDULE, kind)(x, level, condition)
    wanted = Prediction.from_output(kind, x, network(x, level.double(), condition), SCHEDULE.at(level))
    assert torch.equal(found.x0, wanted.x0) and torch.equal(found.eps, wanted.eps)
    assert found.variance_fraction is None and torch.equal(found.alpha_bar, SCHEDULE.at(level))


def test_the_network_gets_the_original_level_as_a_real_number():
    for dtype, time_type in ((torch.float32, torch.float32), (F64, F64), (torch.bfloat16, torch.float32)):
        x, level, condition = rows(3, dtype)
        network = Recorder()
        NetworkDenoiser(network, SCHEDULE, "v")(x, level, condition)
        assert network.calls[0][1].dtype == time_type and network.calls[0][1].tolist() == level.tolist()


def test_a_learned_variance_is_the_second_half_of_the_channels():
    x, level, _ = rows(3)
    found = NetworkDenoiser(Recorder(2), SCHEDULE, "v", learned_variance=True)(x, level, None)
    plain = NetworkDenoiser(Recorder(), SCHEDULE, "v")(x, level, None)
    assert torch.equal(found.x0, plain.x0) and torch.equal(found.eps, plain.eps)
    torch.testing.assert_close(found.variance_fraction, (torch.sin(x) + 1) / 2)


@pytest.mark.parametrize(("count", "wanted"), [(1, [2]), (2, [2]), (3, [4]), (4, [4]), (5, [4, 2]), (11, [4, 4, 4])])
def test_buckets_bound_the_batch_sizes_and_change_no_row(count, wanted):
    x, level, condition = rows(count)
    network = Recorder()
    found = NetworkDenoiser(network, SCHEDULE, "v", buckets=[4, 2])(x, level, condition)
    assert [len(call[0]) for call in network.calls] == wanted
    assert all(call[2] is not None and call[2].num_rows == len(call[0]) for call in network.calls)
    plain = NetworkDenoiser(Recorder(), SCHEDULE, "v")(x, level, condition)
    assert torch.equal(found.x0, plain.x0) and torch.equal(found.eps, plain.eps)


def test_autocast_is_on_inside_the_network_only():
    seen = []

    class Asking(nn.Module):
        def forward(self, x: torch.Tensor, level: torch.Tensor, condition: Condition | None) -> torch.Tensor:
            seen.append(torch.is_autocast_enabled("cpu"))
            return x.to(torch.bfloat16)

    x, level, _ = rows(2, torch.float32)
    found = NetworkDenoiser(Asking(), SCHEDULE, "v", autocast=torch.bfloat16)(x, level, None)
    NetworkDenoiser(Asking(), SCHEDULE, "v")(x, level, None)
    assert seen == [True, False] and not torch.is_autocast_enabled("cpu")
    assert found.x0.dtype == torch.float32


def test_each_row_depends_on_itself_alone():
    x, level, condition = rows(5)
    denoiser = NetworkDenoiser(Recorder(), SCHEDULE, "eps")
    together = denoiser(x, level, condition)
    for row in range(5):
        one = slice(row, row + 1)
        alone = denoiser(x[one], level[one], condition.rows(one))
        assert torch.equal(alone.x0, together.x0[one]) and torch.equal(alone.eps, together.eps[one])


def test_no_rows_are_no_trouble():
    empty = NetworkDenoiser(Recorder(), SCHEDULE, "v")(torch.empty(0, 2, 3), torch.empty(0, dtype=torch.int64), None)
    assert empty.x0.shape == (0, 2, 3)


def test_eps_at_zero_terminal_snr_is_refused_when_it_is_built():
    zero = NoiseSchedule.linear().with_zero_terminal_snr()
    with pytest.raises(InvalidPrediction, match="predict v or x0"):
        NetworkDenoiser(Recorder(), zero, "eps")
    x, _, _ = rows(1)
    assert bool(torch.isfinite(NetworkDenoiser(Recorder(), zero, "v")(x, torch.tensor([1000]), None).x0).all())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("x", "level", "condition", "error", "message"),
    [
        (torch.zeros(2, 2, 3), torch.tensor([1]), None, InvalidShape, r"wanted one per row: \(2,\)"),
        (torch.zeros(2, 2, 3, dtype=torch.int64), torch.tensor([1, 2]), None, InvalidShape, "wanted real numbers"),
        (torch.zeros(2), torch.tensor([1, 2]), None, InvalidShape, "wanted real numbers"),
        (torch.zeros(2, 2, 3), torch.tensor([1, 2]), Condition.null(3), InvalidCondition, "has 3 rows for 2 rows"),
        (torch.zeros(2, 2, 3), torch.tensor([1, 1001]), None, InvalidLevels, "wanted 0..1000"),
        (torch.zeros(2, 2, 3), torch.tensor([1.0, 2.0]), None, InvalidLevels, "wanted integers"),
    ],
)
def test_rows_that_do_not_fit_are_refused(x, level, condition, error, message):
    with pytest.raises(error, match=message):
        NetworkDenoiser(Recorder(), SCHEDULE, "v")(x, level, condition)


def test_a_network_of_another_shape_is_refused():
    x, level, _ = rows(2)
    with pytest.raises(InvalidShape, match="they must agree"):
        NetworkDenoiser(Recorder(2), SCHEDULE, "v")(x, level, None)


def test_guidance_that_is_not_there_is_refused_by_row():
    plain = NetworkDenoiser(Recorder(), SCHEDULE, "v")
    asked = Condition.cat([Condition.null(1), Condition.null(2).with_settings(guidance_scale=2.0)])
    with pytest.raises(InvalidGuidance, match=r"rows \[1, 2\] ask for guidance_scale.*\(none\)"):
        check_settings(plain, asked)
    check_settings(ClassifierFreeGuidance(plain), asked)
    check_settings(plain, None)
