"""The serve-check stage where it cannot start; `test_service.py` runs it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from ray import serve

from tests.workflows.serve.conftest import check_inputs
from workflows.config.schema import RunConfig, ServeConfig
from workflows.errors import AddressInUse, InvalidConfig, ModelNotFound
from workflows.options.guidance import KINDS
from workflows.runtime.artifact import Artifact
from workflows.runtime.progress import Progress
from workflows.serve.app import find_servable
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


def test_what_can_be_wrong_is_told_before_ray_is_started(tiny_config: RunConfig, tmp_path: Path) -> None:
    assert find_servable(tiny_config, "tiny@champion").version == "1"
    with pytest.raises(ModelNotFound, match="nobody@champion"):
        find_servable(tiny_config, "nobody@champion")

    def changed(**fields: object) -> RunConfig:
        return tiny_config.model_copy(update={"serve": tiny_config.serve.model_copy(update=fields)})

    with pytest.raises(InvalidConfig, match=r"0\.0\.0\.0 is reached by other machines"):
        find_servable(changed(host="0.0.0.0"), "tiny@champion")
    with pytest.raises(InvalidConfig, match="cannot read the API keys"):
        find_servable(changed(api_keys_file=str(tmp_path / "nothing")), "tiny@champion")
    (tmp_path / "keys").write_text("alice secret\n")
    with pytest.raises(InvalidConfig, match="API key 1 is no"):
        find_servable(changed(api_keys_file=str(tmp_path / "keys")), "tiny@champion")


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
