"""The configuration: names, defaults, overrides, and what is said about mistakes."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from workflows.config.load import builtin_configs, config_keys, load_config
from workflows.config.schema import RESERVED_NAMES, RunConfig
from workflows.errors import InvalidConfig
from workflows.options.guidance import KINDS

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", ["digits", "shapes"])
def test_builtin_configurations_load(name: str) -> None:
    assert load_config(name).name == name
    assert load_config(name).data.source == name


def test_the_builtin_configurations_are_these() -> None:
    assert builtin_configs() == ["digits", "pictures", "shapes", "vectors"]


def test_keys_are_the_golden_ones() -> None:
    assert "\n".join(config_keys()) + "\n" == (GOLDEN / "config_keys.txt").read_text()


def sections(model: type[BaseModel] = RunConfig) -> list[type[BaseModel]]:
    kinds = [field.annotation for field in model.model_fields.values()]
    inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return [model] + [deeper for kind in inner for deeper in sections(kind)]


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_value_is_described_and_every_section_strict(section: type[BaseModel]) -> None:
    assert section.model_config.get("extra") == "forbid"
    assert section.model_config.get("frozen") is True
    for name, field in section.model_fields.items():
        is_section = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        assert is_section or field.description, f"{section.__name__}.{name} has no description"


def test_overrides_are_yaml_and_reach_into_sections(tmp_path: Path) -> None:
    items = [
        "denoiser.train.steps=7",
        "evaluate.scales=[0, 3]",
        "storage.tracking_uri=null",
        "denoiser.train.compile=true",
    ]
    config = load_config("digits", items)
    assert config.denoiser.train.steps == 7
    assert config.denoiser.train.compile is True
    assert config.denoiser.train.batch_size == load_config("digits").denoiser.train.batch_size
    assert config.evaluate.scales == (0.0, 3.0)


def test_a_file_is_read_and_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\ndata: {source: shapes}\nregister: {model_name: mine}\n")
    monkeypatch.chdir(tmp_path)
    config = load_config("mine.yaml")
    assert config.run_folder == tmp_path / "runs" / "mine"
    monkeypatch.chdir("/")
    assert config.run_folder == tmp_path / "runs" / "mine"
    assert load_config("digits").root_folder == Path("/runs")


@pytest.mark.parametrize(
    ("items", "parts"),
    [
        (["denoiser.train.step=5"], ["denoiser.train.step:", "did you mean denoiser.train.steps?"]),
        (["sevre.port=5"], ["sevre", "did you mean serve?"]),
        (["denoiser.train.steps=0"], ["denoiser.train.steps", "greater than 0", "found 0"]),
        (["denoiser.train.steps=many"], ["denoiser.train.steps", "integer", "'many'"]),
        (["data.source=photos"], ["data.source", "'digits', 'shapes', 'auto'"]),
        (["serve.port=70000"], ["serve.port", "65535"]),
        (["denoiser.train.keep_checkpoints=1"], ["keep_checkpoints"]),
        (["name=../elsewhere"], ["name"]),
        (["name=artifacts"], ["kept for the job's own files"]),
        (["steps"], ["KEY=VALUE"]),
        (["=5"], ["KEY=VALUE"]),
        (["name.first=x"], ["'name' is a value, not a section"]),
        (["serve.port=[1"], ["serve.port", "not YAML"]),
        (["denoiser.train.steps=0", "sevre.port=1"], ["denoiser.train.steps", "sevre"]),
        (["register.gate.guidance=magic"], ["register.gate.guidance: unknown guidance 'magic': give one of none,"]),
        (["denoiser.schedule.shift=2"], ["denoiser.schedule: shift belongs to the flow schedule: found kind cosine"]),
        (
            ["denoiser.schedule.kind=flow", "denoiser.parameterization=eps"],
            ["parameterization eps is undefined where alpha_bar is 0", "set it to v, u or x0"],
        ),
        (
            ["denoiser.schedule.zero_terminal_snr=true", "denoiser.parameterization=eps"],
            ["parameterization eps is undefined where alpha_bar is 0"],
        ),
        (["data.path=/tmp"], ["data: data.path goes with your own data"]),
        (
            ["evaluate.guidance_interval=[1]"],
            ["evaluate.guidance_interval: found [1], wanted two numbers in [0, 1e+09]"],
        ),
        (["evaluate.guidance_interval=[2, 1]"], ["evaluate.guidance_interval: found [2.0, 1.0], wanted two numbers"]),
        (
            ["evaluate.apg_eta=101"],
            ["evaluate.apg_eta: found 101, wanted a number in [0, 100]: give that, or leave it"],
        ),
        (["evaluate.cfg_plus_plus=2"], ["evaluate.cfg_plus_plus: found 2, wanted true or false"]),
        (
            ["evaluate.cfg_plus_plus=true"],
            ["evaluate.guidance_scale: found 2, wanted a number in [0, 1] with cfg_plus"],
        ),
        (["evaluate.scales=[0, -1]"], ["evaluate.scales.1: found -1, wanted a number of at least 0"]),
        (["sweep.guidance_scales=[-1, .nan]"], ["guidance_scales.0: found -1", "guidance_scales.1: found nan, wanted"]),
        (["sweep.clip_scales=[-5]"], ["sweep.clip_scales.0: found -5, wanted a number of at least 0"]),
    ],
)
def test_mistakes_are_named(items: list[str], parts: list[str]) -> None:
    with pytest.raises(InvalidConfig) as caught:
        load_config("digits", items)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Value error" not in str(caught.value)
    assert "{" not in str(caught.value), "a whole section is not repeated"


PLUS_PLUS = ["evaluate.cfg_plus_plus=true", "evaluate.guidance_scale=0.5"]


@pytest.mark.parametrize("scales", ["[0, 1, 2]", "[0, 0.5, 1.5]"])
def test_a_compared_scale_that_a_setting_excludes_is_the_one_at_fault(scales: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        load_config("digits", [*PLUS_PLUS, f"evaluate.scales={scales}"])
    assert str(caught.value).startswith("configuration digits: evaluate.scales: found ")
    assert "wanted a number in [0, 1] with cfg_plus_plus" in str(caught.value)
    assert "guidance_scale" not in str(caught.value), "that one is in range"


def test_compared_scales_that_no_setting_excludes_load() -> None:
    found = load_config("digits", [*PLUS_PLUS, "evaluate.scales=[0, 0.5, 1]"]).evaluate
    assert (found.scales, found.cfg_plus_plus) == ((0.0, 0.5, 1.0), True)
    assert load_config("digits", ["evaluate.scales=[0, 1, 8]"]).evaluate.scales == (0.0, 1.0, 8.0)
    assert load_config("digits", ["sweep.clip_scales=[0, 9]"]).sweep.scales(KINDS["clip"]) == (0.0, 9.0)


@pytest.mark.parametrize(
    ("text", "part"),
    [("a: [1", "not YAML"), ("- a\n- b", "list"), ("", "NoneType"), ("name: x", "data")],
)
def test_broken_files_are_named(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InvalidConfig, match=r"mine\.yaml") as caught:
        load_config(str(tmp_path / "mine.yaml"))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_binary_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "photo.yaml").write_bytes(bytes(range(128, 256)))
    with pytest.raises(InvalidConfig, match=r"photo\.yaml cannot be read"):
        load_config(str(tmp_path / "photo.yaml"))


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="no configuration"):
        load_config(str(tmp_path))


@pytest.mark.parametrize("key", ["embed.store", "data.store", "data.path"])
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("s3:/bucket/path", "is no URL: wanted s3://, or ./s3:/bucket/path"),
        ("file:/folder", "is no URL: wanted file://"),
        ("file:///folder/a#b", "has a #, and what follows it would be ignored"),
    ],
)
def test_what_is_almost_a_url_is_refused(key: str, text: str, told: str) -> None:
    with pytest.raises(InvalidConfig, match=re.escape(told)):
        load_config("digits", [f"{key}={text}", "data.source=auto"])


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidConfig, match=r"embed\.store: a password in a URL") as told:
        load_config("digits", ["embed.store=s3://name:sesame@bucket/path"])
    assert "sesame" not in str(told.value)
    url = "abfss://container@account/path"
    assert load_config("digits", [f"embed.store={url}"]).embed.store == url


def test_it_is_frozen_and_survives_pickling() -> None:
    config = load_config("digits")
    with pytest.raises(ValidationError):
        config.serve.port = 1  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(config)) == config
    assert "digits" not in RESERVED_NAMES
