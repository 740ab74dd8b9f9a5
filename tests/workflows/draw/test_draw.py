"""`raverse sample` on the tiny package: every way to start, and every wrong combination."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from diffusion_core.strength import DEFAULT_STRENGTH
from tests.workflows.options.examples import EXAMPLES
from workflows.cli import app as cli
from workflows.draw.drawing import draw
from workflows.draw.files import read_picture, write_png
from workflows.draw.request import DrawRequest
from workflows.errors import InvalidRequest
from workflows.model.model import ModelPackage
from workflows.options.guidance import SETTINGS, Guidance
from workflows.serve.request.schema import EditRequest

PROMPT = "a handwritten seven"


@pytest.fixture(scope="module")
def package(tiny_package: Path) -> ModelPackage:
    return ModelPackage.load(tiny_package)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "given.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)).save(path)
    return path


def run(*arguments: str, folder: Path) -> Any:
    store = f"storage.root={folder / 'root'}"
    return CliRunner().invoke(cli.app, ["sample", PROMPT, *arguments, "--set", store])


def test_the_command_writes_png_and_gif(tiny_package: Path, tmp_path: Path) -> None:
    png, gif = tmp_path / "a" / "out.png", tmp_path / "out.gif"
    result = run("--model", str(tiny_package), "-n", "3", "--seed", "5", "--out", str(png), "--gif", str(gif),
                 "--negative", "a handwritten two", "--scale", "2.5", "--steps", "4", folder=tmp_path)  # fmt: skip
    assert result.exit_code == 0, result.output
    assert Image.open(png).size == (3 * 128, 128)
    animation: Any = Image.open(gif)
    assert (animation.size, animation.n_frames > 1) == ((3 * 128, 128), True)


def test_picture_i_is_the_picture_of_its_seed(package: ModelPackage) -> None:
    three = draw(package, DrawRequest(PROMPT, num=3, seed=5))
    assert three.seeds == (5, 6, 7)
    assert three.frames.shape == (4, 3, 1, 8, 8)
    assert torch.equal(three.images[2], draw(package, DrawRequest(PROMPT, seed=7)).images[0])
    assert not torch.equal(three.images[1], three.images[2])


@pytest.mark.parametrize(
    "change",
    [{"sampler": "ddpm"}, {"steps": 2}, {"eta": 1.0}, {"guidance": Guidance.of("direct")}, {"negative": "the two"},
     {"guidance": Guidance.of("classifier_free", guidance_scale=7.0)}, {"guidance": Guidance.of("none")},
     {"guidance": Guidance.of("clip", clip_scale=9.0)}],
)  # fmt: skip
def test_every_option_has_an_effect(package: ModelPackage, change: dict[str, Any]) -> None:
    plain = draw(package, DrawRequest(PROMPT, steps=4)).images
    changed = draw(package, DrawRequest(PROMPT, **({"steps": 4} | change))).images
    assert not torch.equal(plain, changed)


def test_a_mask_keeps_what_is_black(package: ModelPackage, picture: Path, tmp_path: Path) -> None:
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    request = DrawRequest(PROMPT, num=2, init=picture, mask=tmp_path / "mask.png")
    images, given = draw(package, request).images, np.asarray(Image.open(picture))
    assert (images[:, 0, :, :4].numpy() == given[:, :4]).all()
    assert not (images[:, 0, :, 4:].numpy() == given[:, 4:]).all()


def test_strength_says_how_much_of_the_picture_stays(package: ModelPackage, picture: Path) -> None:
    given = np.asarray(Image.open(picture)).astype(float)
    little, much = (
        draw(package, DrawRequest(PROMPT, init=picture, strength=s, steps=50)).images.numpy() for s in (0.02, 1.0)
    )
    assert np.abs(little[0, 0] - given).mean() < np.abs(much[0, 0] - given).mean()


def test_help_reference_and_drawing_know_one_default_of_strength(package: ModelPackage, picture: Path) -> None:
    """With ten steps, 0.7 and 0.6 make seven and six."""
    chosen = {"prompt": PROMPT, "init": picture, "steps": 10}
    by_default, given, other = (
        draw(package, DrawRequest(**chosen, **more)).images
        for more in ({}, {"strength": DEFAULT_STRENGTH}, {"strength": DEFAULT_STRENGTH - 0.1})
    )
    assert torch.equal(by_default, given)
    assert not torch.equal(by_default, other), "negative control"
    (option,) = [one for one in get_command(cli.app).commands["sample"].params if one.name == "strength"]  # type: ignore[attr-defined]
    assert option.help.endswith(f"default {DEFAULT_STRENGTH}.")
    assert f"else {DEFAULT_STRENGTH}." in str(EditRequest.model_fields["strength"].description)


def test_an_inverted_picture_is_drawn_again(package: ModelPackage, picture: Path) -> None:
    given = np.asarray(Image.open(picture)).astype(float)
    request = DrawRequest(PROMPT, invert=picture, guidance=Guidance.of("direct"), steps=50)
    again = draw(package, request).images[0, 0].numpy()
    other = draw(package, DrawRequest(PROMPT, guidance=Guidance.of("direct"), steps=50)).images[0, 0].numpy()
    assert np.abs(again - given).mean() < 0.2 * np.abs(other - given).mean()


def test_a_zoomed_file_is_read_as_it_was(package: ModelPackage, tmp_path: Path) -> None:
    image = draw(package, DrawRequest(PROMPT)).images
    write_png(tmp_path / "one.png", image)
    assert torch.equal(package.rows.from_x(read_picture(tmp_path / "one.png", (1, 8, 8))), image[0])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"num": 0}, "num"),
        ({"strength": 0.5}, "strength"),
        ({"mask": Path("m.png")}, "mask"),
        ({"invert_prompt": "x"}, "invert"),
        ({"invert": Path("a.png"), "init": Path("a.png")}, "invert"),
        ({"invert": Path("a.png"), "num": 2}, "num"),
        ({"invert": Path("a.png"), "sampler": "ddpm"}, "sampler"),
        ({"invert": Path("a.png"), "eta": 0.5}, "sampler"),
        ({"init": Path("a.png"), "mask": Path("m.png"), "strength": 0.5}, "strength"),
    ],
)
def test_what_does_not_fit_together_names_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        DrawRequest(PROMPT, **fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "nobody@champion"], "no model 'nobody@champion'"),
        (["--model", "."], "holds no package.json"),
        (["--sampler", "euler"], "unknown sampler 'euler'"),
        (["--guidance", "magic"], "unknown guidance 'magic'"),
        (["--init", "absent.png"], "cannot be read as a picture"),
        (["--out", "picture.nothing"], "cannot write picture.nothing"),
        (["--steps", "5000"], "wanted 1..100"),
        (["--strength", "0.5"], "give --init IMAGE"),
    ],
)
def test_bad_input_is_one_sentence(
    tiny_package: Path, empty_store: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "root").mkdir()
    shutil.copy(empty_store, tmp_path / "root")
    chosen = arguments if arguments[0] == "--model" else ["--model", str(tiny_package), *arguments]
    result = run(*chosen, folder=tmp_path)
    assert result.exit_code == 1
    assert said in result.output
    assert result.output.count("\n") == 1


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_setting_of_guidance_is_an_option(tiny_package: Path, tmp_path: Path, name: str) -> None:
    words = {setting: _words(value) for setting, value in EXAMPLES[name].items()}
    files = []
    for chosen in ({"guidance_scale"}, words.keys()):
        files.append(tmp_path / f"{len(chosen)}.png")
        options = [word for setting in chosen for word in (SETTINGS[setting].command_option, *words[setting])]
        done = run("--model", str(tiny_package), "--steps", "4", "--out", str(files[-1]), *options, folder=tmp_path)
        assert done.exit_code == 0, done.output
    assert files[0].read_bytes() != files[1].read_bytes()


def _words(value: Any) -> list[str]:
    if value is True:
        return []
    return [str(part) for part in value] if isinstance(value, list) else [str(value)]
