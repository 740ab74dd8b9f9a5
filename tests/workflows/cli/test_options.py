"""Options that are made from the tables of guidance."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import typer
from typer.testing import CliRunner

from workflows.cli.options import naming_options, with_guidance
from workflows.errors import InvalidRequest
from workflows.options.guidance import Guidance


def read(*words: str) -> Guidance:
    """The guidance that a verb gets."""
    found: list[Guidance] = []
    app = typer.Typer()

    @app.command()
    @with_guidance
    def verb(*, guidance: Callable[[], Guidance]) -> None:
        found.append(guidance())

    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return found[0]


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["--cfg-plus-plus", "--scale", "0.5"], {"guidance_scale": 0.5, "cfg_plus_plus": 1.0}),
        (["--no-cfg-plus-plus"], {"cfg_plus_plus": 0.0}),
        ([], {}),
        (["--guidance-interval", "0.5", "5"], {"guidance_interval": (0.5, 5.0)}),
        (["--guidance", "clip", "--clip-scale", "3"], {"clip_scale": 3.0}),
    ],
)
def test_every_form_of_a_setting_is_read_and_one_that_is_not_given_is_open(
    words: list[str], settings: dict[str, object]
) -> None:
    assert read(*words).settings == settings


def test_a_flag_of_the_model_can_be_switched_off() -> None:
    own = {"guidance_scale": 0.5, "cfg_plus_plus": True}
    assert read("--no-cfg-plus-plus", "--scale", "3").over(own).core_settings() == {"guidance_scale": 3.0}
    assert read("--scale", "0.5").over(own).core_settings() == {"guidance_scale": 0.5, "cfg_plus_plus": 1.0}


@pytest.mark.parametrize(
    ("message", "param", "told"),
    [
        ("guidance_scale: found 2: give such", "guidance_scale", "--scale: found 2: give such"),
        ("apg_eta: no effect", "apg_eta", "--apg-eta: no effect"),
        ("prompt: missing", "prompt", "prompt: missing"),
    ],
)
def test_a_message_about_a_setting_names_its_option(message: str, param: str, told: str) -> None:
    with pytest.raises(InvalidRequest) as caught, naming_options():
        raise InvalidRequest(message, param)
    assert (str(caught.value), caught.value.param) == (told, param)
