"""The serve-check stage where it cannot start; `test_service.py` runs it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from ray import serve

from tests.workflows.serve.conftest import check_inputs
from workflows.config.schema import RunConfig, ServeConfig
from workflows.errors import AddressInUse, ModelNotFound
from workflows.options.guidance import KINDS
from workflows.runtime.artifact import Artifact
from workflows.runtime.progress import Progress
from workflows.serve.app import serve as serve_model
from workflows.serve.check import check_service, requests_for


def test_a_taken_port_is_told(
    ray_session: None, tiny_config: RunConfig, tiny_artifacts: dict[str, Artifact], tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = tiny_config.model_copy(update={"serve": ServeConfig(port=port)})
        with pytest.raises(AddressInUse, match=f"127.0.0.1:{port}.*serve.port=PORT"):
            check_service(config, check_inputs(config, tiny_artifacts["data"]), tmp_path, Progress.silent())
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
