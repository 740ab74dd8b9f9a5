"""The serve-check stage on the registry that the register stage leaves."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import httpx
import pytest
from PIL import Image
from ray import serve

from workflows.config.schema import RunConfig, ServeConfig
from workflows.errors import AddressInUse, ModelNotFound
from workflows.options.guidance import KINDS
from workflows.runtime.artifact import Artifact
from workflows.runtime.progress import Progress
from workflows.serve.app import serve as serve_model
from workflows.serve.check import check_service, requests_for


def registered(config: RunConfig, data: Artifact) -> dict[str, Artifact]:
    metrics = {"model": config.register_.model_name, "version": "1", "alias": config.register_.alias}
    return {"data": data, "register": Artifact("register", "0" * 64, config.root_folder, metrics=metrics)}


@pytest.fixture(scope="module")
def checked(
    ray_session: None,
    tiny_config: RunConfig,
    tiny_artifacts: dict[str, Artifact],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, object]]:
    folder, inputs = tmp_path_factory.mktemp("check"), registered(tiny_config, tiny_artifacts["data"])
    return folder, check_service(tiny_config, inputs, folder, Progress.silent())


def test_every_kind_of_guidance_answers_with_every_sampler(checked: tuple[Path, dict[str, object]]) -> None:
    folder, metrics = checked
    answers = json.loads((folder / "service.json").read_text())["answers"]
    assert len(answers) == metrics["requests"] == 12
    asked = {(a["request"]["guidance"], "label" in a["request"], a["request"]["sampler"]) for a in answers}
    kinds = {(g, False) for g in ("none", "direct", "classifier_free", "classifier", "clip")} | {("classifier", True)}
    assert asked == {(*kind, sampler) for kind in kinds for sampler in ("ddpm", "ddim")}
    assert {(answer["status"], answer["version"], answer["seed"]) for answer in answers} == {(200, "1", 7)}


def test_every_picture_is_there(checked: tuple[Path, dict[str, object]]) -> None:
    folder, _ = checked
    answers = json.loads((folder / "service.json").read_text())["answers"]
    sizes = {Image.open(folder / answer["picture"]).size for answer in answers}
    assert sizes == {(8, 8)}
    assert len({(folder / answer["picture"]).read_bytes() for answer in answers}) == 12


def test_nothing_is_left_running(checked: tuple[Path, dict[str, object]], tiny_config: RunConfig) -> None:
    assert not serve.status().proxies
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{tiny_config.serve.port}/healthz")


def test_a_taken_port_is_told(
    ray_session: None, tiny_config: RunConfig, tiny_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = tiny_config.model_copy(update={"serve": ServeConfig(port=port)})
        with pytest.raises(AddressInUse, match=f"127.0.0.1:{port}.*serve.port=PORT"):
            check_service(config, registered(config, tiny_artifacts["data"]), tmp_path, Progress.silent())
    assert not serve.status().proxies


def test_a_model_that_is_not_there_starts_nothing(ray_session: None, tiny_config: RunConfig) -> None:
    with pytest.raises(ModelNotFound, match="nobody@champion"):
        serve_model(tiny_config, "nobody@champion", Progress.silent())
    assert not serve.status().proxies


def test_requests_are_made_of_what_the_model_offers() -> None:
    card = {"example_prompts": ["a", "b"], "classes": ["x", "y"], "max_steps": 30, "guidance": [*KINDS]}
    made = requests_for(card)
    assert len(made) == 12
    assert made["clip-ddim"] == {
        "prompt": "b",
        "guidance": "clip",
        "sampler": "ddim",
        "num_inference_steps": 20,
        "seed": 7,
    }
    assert made["classifier-by-class-ddpm"]["label"] == "y"
    assert made["classifier-by-class-ddpm"]["num_inference_steps"] == 30
