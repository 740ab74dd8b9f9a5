"""`raverse data check`: what it finds, what it writes, and how it exits."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.workflows.data import samples_own as samples
from workflows.cli import app as cli
from workflows.config.load import load_config


def check(path: Path | str, out: Path, *options: str) -> tuple[Result, dict]:
    result = CliRunner().invoke(cli.app, ["data", "check", str(path), "--out", str(out), *options])
    report = out / "report.json"
    return result, json.loads(report.read_text()) if report.is_file() else {}


@pytest.mark.parametrize("name", samples.WRITERS)
def test_each_format_is_reported(name: str, tmp_path: Path) -> None:
    result, report = check(samples.WRITERS[name](tmp_path / "my data", 30), tmp_path / "out", "--image-size", "16")
    assert result.exit_code == 0, result.output
    assert (report["format"], report["records"], report["usable"], report["complete"]) == (name, 30, 30, True)
    assert report["labels"] == {"red": 10, "green": 10, "blue": 10}
    assert report["modes"] == {"RGB": 30}
    assert report["width"] == {"min": 20, "median": 20, "max": 20}
    assert report["aspect_ratio"]["median"] == 1.25
    assert report["smaller_than_wanted"] == 0
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("data:image/png;base64,") == 24
    words = shlex.split(report["next"])
    settings = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    config = load_config(words[words.index("--config") + 1], settings)
    assert (config.data.source, config.data.path) == (name, str(tmp_path / "my data"))
    assert config.name == "my-data"
    assert words[:2] == ["raverse", "run"]
    assert shlex.join(words[-2:]) in result.output.replace("\n", " ")
    told = [line.split(":")[0] for line in report["training"]]
    assert told == ["clip", "denoiser", "classifier", "evaluate"]
    for line in report["training"]:
        assert line in result.output
        assert line[:24] in page
    assert "27 rows, about" in report["training"][1] or name == "vectors", "a tenth of 30 is held out"


def test_troubles_are_counted(tmp_path: Path) -> None:
    source = samples.write_sidecar(tmp_path / "data", 30)
    (source / "0001.cls").write_text(samples.label(2))
    (source / "0000.png").write_bytes(b"")
    (source / "0001.png").write_bytes(samples.picture(2))
    (source / "0003.txt").write_text("word " * 100)
    (source / "0004.txt").write_text("<script>alert(1)</script>")
    (source / "0005.txt").write_text("")
    result, report = check(source, tmp_path / "out")
    assert result.exit_code == 1, "2 of 29 are more than 5%"
    assert (report["records"], report["joined"]) == (29, 1), "of two equal pictures one has the captions of both"
    assert report["unusable"] == {"the image is empty: N bytes": 1, "no caption": 1}
    assert {"name": "0000.png", "reason": "the image is empty: 0 bytes"} in report["unusable_examples"]
    assert "0000.png: the image is empty" in result.output
    assert report["captions"]["over_context_length"] == 1
    assert report["captions"]["total"] == report["captions"]["distinct"] + report["captions"]["duplicates"]
    assert "<script>" not in (tmp_path / "out/report.html").read_text()
    result, report = check(source, tmp_path / "out", "--max-bad-fraction", "0.1")
    assert result.exit_code == 0
    assert report["ok"] is True


def test_a_sample_is_spread_and_says_so(tmp_path: Path) -> None:
    source = tmp_path / "data"
    for number in range(8):
        samples.write_parquet(source / str(number), 40)
    _, report = check(source, tmp_path / "out", "--sample", "100")
    assert (report["records"] + report["joined"], report["complete"], report["pieces"]) == (80, False, 8)
    assert report["pieces_read"] == 8
    _, again = check(source, tmp_path / "out", "--sample", "100")
    assert {**again, "training": 0} == {**report, "training": 0}, "measured seconds apart"
    _, report = check(source, tmp_path / "out", "--all")
    assert (report["records"] + report["joined"], report["complete"]) == (320, True)


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    result, _ = check(tmp_path / "nowhere", tmp_path / "out")
    assert result.exit_code == 1
    assert "raverse: nothing at" in result.output
    result, _ = check(tmp_path, tmp_path / "out", "--source", "csv")
    assert result.exit_code == 2
    result, _ = check(samples.write_sidecar(tmp_path / "data", 3), tmp_path / "out", "--source", "parquet")
    assert result.exit_code == 1
    assert "no .parquet" in result.output


def test_the_stage_still_runs_without_a_command_below_it() -> None:
    assert CliRunner().invoke(cli.app, ["data"]).exit_code == 2
    result = CliRunner().invoke(cli.app, ["data", "--config", "nowhere.yaml"])
    assert result.exit_code == 1
    assert "no configuration" in result.output
