"""`raverse import`, `sample` and `export` as a user gives them; no Ray is started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.workflows.diffusers_io.conftest import Pair
from workflows.cli.app import app

MakePair = Callable[[str], Pair]


def raverse(root: Path, *arguments: str) -> None:
    result = CliRunner().invoke(app, [*arguments, "--set", f"storage.root={root}"])
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_a_checkpoint_goes_in_draws_and_comes_out(
    pair: MakePair, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one, root = pair("sd leading-offset"), tmp_path / "runs"
    for _ in range(2):  # once is enough
        raverse(root, "import", str(one.folder), "--name", "sd")
        assert "sd@champion is version 1, a StableDiffusionPipeline" in capfd.readouterr().out
    picture, again = tmp_path / "one.png", tmp_path / "two.png"
    raverse(root, "sample", "a dog", "--model", "sd@champion", "--steps", "3", "--out", str(picture), "--zoom", "1")
    start = ("--init", str(picture), "--strength", "0.5")
    raverse(root, "sample", "a cat", "--model", "sd/1", "--steps", "4", *start, "--out", str(again), "--zoom", "1")
    pixels = [np.asarray(Image.open(path)) for path in (picture, again)]
    assert pixels[0].shape == pixels[1].shape == (16, 16, 3)
    assert not np.array_equal(pixels[0], pixels[1])
    raverse(root, "export", "sd@champion", str(tmp_path / "out"), "--format", "diffusers")
    for file in one.folder.rglob("*.safetensors"):
        assert load_file(file).keys() == load_file(tmp_path / "out" / file.relative_to(one.folder)).keys()
        assert file.read_bytes() == (tmp_path / "out" / file.relative_to(one.folder)).read_bytes()


def test_a_checkpoint_that_cannot_be_used_is_one_sentence(pair: MakePair, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(
        app, ["import", str(tmp_path / "empty"), "--name", "sd", "--set", f"storage.root={tmp_path / 'runs'}"]
    )
    assert result.exit_code == 1
    assert not list((tmp_path / "runs").glob(".import-*")), "nothing is left"
    assert not (tmp_path / "runs" / "mlflow.db").exists(), "nothing is registered"
