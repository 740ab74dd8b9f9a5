"""The tables of guidance: each row reaches the wrappers and costs what the network does."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_core.condition import Condition
from diffusion_core.denoiser import NetworkDenoiser
from diffusion_core.guidance import ClassifierFreeGuidance
from diffusion_core.oracle import GaussianMixture, OracleDenoiser
from diffusion_core.schedule import NoiseSchedule
from tests.workflows.options.examples import EXAMPLES
from workflows import options
from workflows.errors import InvalidRequest
from workflows.model.model import ModelPackage
from workflows.options.guidance import (
    DEFAULT_SCALES,
    KINDS,
    SCALE_NAMES,
    SETTINGS,
    Guidance,
    extra_evaluations,
    offered_kinds,
)
from workflows.package.files import Defaults

PROMPT = "a handwritten seven"


@pytest.fixture(scope="module")
def package(tiny_package: Path) -> ModelPackage:
    return ModelPackage.load(tiny_package)


def test_every_setting_has_an_example() -> None:
    assert EXAMPLES.keys() == SETTINGS.keys() - set(SCALE_NAMES)


def test_every_setting_is_read_by_a_kind_and_by_a_wrapper(package: ModelPackage) -> None:
    assert {name for kind in KINDS.values() for name in kind.reads} == set(SETTINGS)
    core = {name for setting in SETTINGS.values() for name in setting.core_names}
    assert core <= set(package.denoiser.settings), "a name that no wrapper reads would have no effect"


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_setting_changes_the_picture_of_its_row_alone(package: ModelPackage, name: str) -> None:
    scale = EXAMPLES[name]["guidance_scale"]
    rows = [
        package.condition([PROMPT], "classifier_free", guidance_scale=scale),
        package.condition([PROMPT], "classifier_free", **EXAMPLES[name]),
        package.condition(["a handwritten two"], "clip", clip_scale=2.0),
    ]
    plain, changed, _ = (package.sample(row, seeds=[7])[0] for row in rows)
    assert not torch.equal(plain, changed)
    together = package.sample(Condition.cat(rows), seeds=[7, 7, 7])
    torch.testing.assert_close(together[0], plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[1], changed, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_neutral_value_of_a_setting_changes_nothing(package: ModelPackage, name: str) -> None:
    plain = package.condition([PROMPT], "classifier_free", guidance_scale=0.5)
    neutral = package.condition([PROMPT], "classifier_free", guidance_scale=0.5, **{name: SETTINGS[name].neutral})
    assert torch.equal(package.sample(plain, seeds=[7]), package.sample(neutral, seeds=[7]))


@pytest.mark.parametrize(
    ("interval", "guided"),
    [((0.5, 1e9), True), ((0.0, 1e9), True), ((0.5, 1e8), False), ((0.0, 0.5), False)],
)
def test_an_end_that_is_left_open_holds_the_noisiest_level(interval: tuple[float, float], guided: bool) -> None:
    """At zero terminal SNR its sigma is infinite."""
    schedule = NoiseSchedule.cosine(100).with_zero_terminal_snr()
    mixture = GaussianMixture(
        weights=torch.tensor([0.5, 0.5]),
        means=torch.tensor([[-1.0, 0.0], [1.0, 0.5]]),
        deviations=torch.tensor([0.1, 0.2]),
        classes=torch.tensor([0, 1]),
    )
    denoiser = ClassifierFreeGuidance(OracleDenoiser(mixture, schedule))
    plain = Guidance.of("classifier_free", guidance_scale=3.0)
    limited = plain.with_settings(guidance_interval=interval)
    x_t, level = torch.ones(1, 2), torch.tensor([100])
    found, all_levels, nowhere = (
        denoiser(x_t, level, Condition.of(label=[1]).with_settings(**guidance.core_settings())).x0
        for guidance in (limited, plain, plain.at(1.0))
    )
    assert not torch.equal(all_levels, nowhere)
    assert torch.equal(found, all_levels if guided else nowhere)


class Counting:
    """A denoiser that counts the rows it is asked for."""

    def __init__(self, denoiser: NetworkDenoiser) -> None:
        self.denoiser, self.schedule, self.settings, self.rows = denoiser, denoiser.schedule, denoiser.settings, 0

    def __call__(self, x_t: Any, level: Any, condition: Any) -> Any:
        self.rows += len(x_t)
        return self.denoiser(x_t, level, condition)


@pytest.mark.parametrize(
    ("scale", "plus_plus"),
    [(0.0, False), (0.5, False), (1.0, False), (2.0, False), (0.0, True), (0.5, True), (1.0, True)],
)
def test_the_cost_is_the_number_of_rows_that_the_network_sees(
    package: ModelPackage, scale: float, plus_plus: bool
) -> None:
    network: Any = package.denoiser
    while not isinstance(network, NetworkDenoiser):
        network = network.denoiser
    counting = Counting(network)
    condition = package.condition([PROMPT], "classifier_free", guidance_scale=scale, cfg_plus_plus=plus_plus)
    ClassifierFreeGuidance(counting)(torch.zeros(1, *package.shape), torch.tensor([50]), condition)
    cost = extra_evaluations(lambda name, default: float(condition.setting(name, default)[0]))
    assert counting.rows == 1 + cost


@pytest.mark.parametrize(
    ("guidance", "settings", "cost"),
    [
        ("none", {}, 0.0),
        ("direct", {}, 0.0),
        ("classifier", {"classifier_scale": 3.0}, 1.0),
        ("classifier", {"classifier_scale": 0.0}, 0.0),
        ("clip", {"clip_scale": 3.0}, 2.0),
        ("classifier_free+clip", {"guidance_scale": 2.0, "clip_scale": 3.0}, 3.0),
    ],
)
def test_what_a_gradient_costs(guidance: str, settings: dict[str, float], cost: float) -> None:
    numbers = Guidance.of(guidance, **settings).core_settings()
    assert extra_evaluations(numbers.get) == cost


@pytest.mark.parametrize(
    ("guidance", "settings", "param"),
    [
        ("magic", {}, "guidance"),
        ("direct", {"guidance_scale": 2.0}, "guidance_scale"),
        ("clip", {"guidance_rescale": 0.5}, "guidance_rescale"),
        ("classifier_free", {"guidance_rescale": 1.5}, "guidance_rescale"),
        ("classifier_free", {"guidance_scale": float("nan")}, "guidance_scale"),
        ("classifier_free", {"guidance_interval": [1.0]}, "guidance_interval"),
        ("classifier_free", {"guidance_interval": [2.0, 1.0]}, "guidance_interval"),
        ("classifier_free", {"guidance_interval": 1.0}, "guidance_interval"),
        ("classifier_free", {"guidance_interval": [1.0, 1.0]}, "guidance_interval"),
        ("classifier_free", {"guidance_interval": (True, 2)}, "guidance_interval"),
        ("classifier_free", {"guidance_scale": True}, "guidance_scale"),
        ("classifier_free", {"cfg_plus_plus": 0.5}, "cfg_plus_plus"),
        ("classifier_free", {"bogus": 1.0}, "bogus"),
        ("classifier_free", {"apg_norm": "long"}, "apg_norm"),
        ("classifier_free", {"cfg_plus_plus": True, "guidance_scale": 2.0}, "guidance_scale"),
    ],
)
def test_what_cannot_be_read_names_the_field(guidance: str, settings: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Guidance.of(guidance, **settings)
    assert caught.value.param == param


def test_what_is_next_to_it_can_be_read() -> None:
    values = {"guidance_interval": [1, 1.1], "guidance_scale": 1, "cfg_plus_plus": True, "apg_norm": 1e9}
    assert Guidance.of("classifier_free", **values).settings == {
        "guidance_interval": (1.0, 1.1), "guidance_scale": 1.0, "cfg_plus_plus": 1.0, "apg_norm": 1e9
    }  # fmt: skip
    assert Guidance.of("classifier_free", cfg_plus_plus=0).settings == {"cfg_plus_plus": 0.0}


@pytest.mark.parametrize(
    ("guidance", "settings", "message"),
    [
        (
            "clip",
            {"apg_eta": 0.0},
            "apg_eta: it has no effect with guidance 'clip': leave it out, or take guidance classifier_free",
        ),
        ("classifier_free", {"bogus": 1}, f"bogus: unknown setting: give one of {', '.join(SETTINGS)}"),
        (
            "classifier_free",
            {"guidance_rescale": 2},
            "guidance_rescale: found 2, wanted a number in [0, 1]: give that, or leave it out",
        ),
        (
            "classifier_free",
            {"cfg_plus_plus": True, "guidance_scale": 2},
            (
                "guidance_scale: found 2, wanted a number in [0, 1] with cfg_plus_plus: "
                "give such a scale, or switch cfg_plus_plus off"
            ),
        ),
    ],
)
def test_a_message_says_what_was_found_what_was_wanted_and_what_to_do(
    guidance: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Guidance.of(guidance, **settings)
    assert str(caught.value) == message
    assert f"{caught.value.param}: {caught.value.reason}" == message


def test_a_setting_that_nobody_knows_is_not_left_out_in_silence() -> None:
    assert Guidance.of("direct").with_settings(guidance_rescale=0.5).settings == {}, "one of another kind is"
    with pytest.raises(InvalidRequest, match="bogus: unknown setting"):
        Guidance.of("direct").with_settings(bogus=1.0)


def test_a_default_scale_that_a_setting_excludes_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"found 2, wanted a number in \[0, 1\] with cfg_plus_plus"):
        Guidance.of("classifier_free", cfg_plus_plus=True).over({"guidance_scale": 2.0})


def test_defaults_fill_what_is_open_and_only_what_is_read() -> None:
    defaults = {"guidance_scale": 5.0, "clip_scale": 7.0, "guidance_rescale": 0.3}
    filled = Guidance.of("classifier_free", guidance_rescale=0.6).over(defaults)
    assert filled.settings == {"guidance_scale": 5.0, "guidance_rescale": 0.6}
    assert Guidance.of("classifier").over(defaults).settings == {"classifier_scale": DEFAULT_SCALES["classifier_scale"]}
    assert Guidance.of("direct").over(defaults).settings == {}


def test_a_neutral_value_overrides_a_default() -> None:
    guidance = Guidance.of("classifier_free", guidance_rescale=0.0).over({"guidance_rescale": 0.7})
    assert "guidance_rescale" not in guidance.core_settings()


def test_a_value_travels_between_processes() -> None:
    guidance = Guidance.of("classifier_free+clip", guidance_interval=[0.1, 2], clip_scale=3)
    assert pickle.loads(pickle.dumps(guidance)) == guidance
    assert len({guidance, Guidance.of("clip+classifier_free", clip_scale=3.0, guidance_interval=(0.1, 2.0))}) == 1


def test_kinds_follow_from_the_parts_of_a_model() -> None:
    assert offered_kinds([]) == ("none",)
    assert offered_kinds(["condition"]) == ("none", "direct", "classifier_free")
    assert offered_kinds(["condition", "classifier", "image_tower"]) == tuple(KINDS)


def test_defaults_on_disk_are_numbers_side_by_side() -> None:
    defaults = Defaults(50, {"guidance_scale": 2.0, "classifier_scale": 3.0, "clip_scale": 3.0})
    assert defaults == Defaults()
    values = {"num_steps": 50, "guidance_scale": 2.0, "classifier_scale": 3.0, "clip_scale": 3.0}
    assert defaults.describe() == values
    assert Defaults.of(values) == defaults


def test_the_tables_load_neither_torch_nor_ray() -> None:
    folder = Path(options.__file__).parent
    imports = ", ".join(f"workflows.options.{file.stem}" for file in folder.glob("*.py"))
    code = f"import sys, {imports}; print({{'torch', 'ray'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
