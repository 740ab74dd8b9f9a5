"""From a finished job to a version and back: registered, found, fetched, used without raverse, and refused."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from PIL import Image

from diffusion_core.errors import InvalidBundle
from tests.workflows.options.examples import EXAMPLES
from workflows.config.load import load_config
from workflows.config.schema import RunConfig
from workflows.errors import ModelNotFound, TrackingUnreachable
from workflows.evaluate.packaging import assemble_package
from workflows.model.model import ModelPackage
from workflows.package.files import PackageCard
from workflows.package.reference import find_version, resolve
from workflows.release.register import register_model
from workflows.runtime.artifact import Artifact
from workflows.runtime.progress import Progress
from workflows.tracking.store import open_client, tracking_uri

STAGES = ("data", "clip", "embed", "denoiser", "classifier")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return load_config("digits", [f"storage.root={tmp_path_factory.mktemp('root')}", "evaluate.num_steps=3"])


@pytest.fixture(scope="module")
def inputs(config: RunConfig, tiny_artifacts: dict[str, Artifact]) -> dict[str, Artifact]:
    """The artifacts of a job up to the evaluation."""
    folder = config.root_folder / "evaluate"
    folder.mkdir()
    assemble_package(config, tiny_artifacts, folder / "package")
    for name in ("samples.png", "curves.png", "metrics.json"):
        (folder / name).write_bytes(b"{}")
    metrics = {"accuracy": 0.25, "accuracy_at_scale": {"0": 0.1, "2": 0.3}}
    return tiny_artifacts | {"evaluate": Artifact("evaluate", "e" * 64, folder, metrics=metrics, seconds=2.0)}


@pytest.fixture(scope="module")
def first(config: RunConfig, inputs: dict[str, Artifact]) -> dict[str, str]:
    """The first registered version."""
    folder = config.root_folder / "register"
    folder.mkdir()
    return register_model(config, inputs, folder, Progress.silent())


def test_the_first_version_is_champion(config: RunConfig, first: dict[str, str]) -> None:
    assert first["version"] == "1"
    found = find_version(tracking_uri(config), "raverse-digits@champion")
    assert (found.name, found.version, found.run_id) == ("raverse-digits", "1", first["run_id"])
    stored = json.loads((config.root_folder / "register" / "registry.json").read_text())
    assert stored == first | {"tracking_uri": tracking_uri(config)}


def test_a_version_says_what_it_was_made_of(
    config: RunConfig, first: dict[str, str], inputs: dict[str, Artifact]
) -> None:
    tags = find_version(tracking_uri(config), "models:/raverse-digits/1").tags
    card = PackageCard.load(inputs["evaluate"].folder / "package")
    assert tags["package_hash"] == first["package_hash"] == card.hash
    assert tags["data_hash"] == card.data_hash
    assert (tags["denoiser_hash"], tags["classifier_hash"]) == (card.parts["denoiser"], card.parts["classifier"])
    assert tags["cache_key"] == inputs["embed"].key
    assert RunConfig.model_validate_json(tags["config"]) == config
    assert tags["git_commit"]


def test_the_run_holds_parameters_figures_curves_and_pictures(config: RunConfig, first: dict[str, str]) -> None:
    client = open_client(tracking_uri(config))
    run = client.get_run(first["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["evaluate.num_steps"] == "3"
    assert run.data.metrics["evaluate.accuracy_at_scale.2"] == 0.3
    assert run.data.metrics["denoiser.seconds"] == 1.0
    assert [p.value for p in client.get_metric_history(first["run_id"], "denoiser.loss") if p.step > 0] == [2.0, 1.5]
    assert [p.value for p in client.get_metric_history(first["run_id"], "clip.loss") if p.step > 0] == [2.0, 1.5]
    names = {
        file.path
        for folder in ("evaluate", "clip", "denoiser", "classifier")
        for file in client.list_artifacts(first["run_id"], folder)
    }
    assert names == {
        "evaluate/samples.png",
        "evaluate/curves.png",
        "evaluate/metrics.json",
        "clip/losses.png",
        "denoiser/losses.png",
        "classifier/losses.png",
    }


def test_the_resolved_folder_is_the_evaluated_package(config: RunConfig, first: dict[str, str]) -> None:
    found = resolve(tracking_uri(config), "raverse-digits@champion")
    package = ModelPackage.load(found.folder)
    assert package.hash == first["package_hash"]
    assert package.defaults.num_steps == 3


def test_a_version_has_a_card_with_figures_and_the_grid(config: RunConfig, first: dict[str, str]) -> None:
    client = open_client(tracking_uri(config))
    text = client.get_model_version("raverse-digits", "1").description
    assert "| judged as asked, of combinations that were trained on | 0.25 |" in text
    assert 'mlflow.pyfunc.load_model("models:/raverse-digits@champion")' in text
    assert first["package_hash"][:16] in text
    names = {file.path for file in client.list_artifacts(first["run_id"], "model_card")}
    assert names == {"model_card/README.md", "model_card/samples.png"}


def test_a_cache_fetches_once(config: RunConfig, first: dict[str, str], tmp_path: Path) -> None:
    folders = {resolve(tracking_uri(config), "raverse-digits/1", tmp_path / "cache").folder for _ in range(2)}
    assert folders == {tmp_path / "cache" / first["package_hash"]}
    assert ModelPackage.load(folders.pop()).hash == first["package_hash"]
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize(
    "reference", ["raverse-digits@challenger", "raverse-digits/99", "other@champion", "raverse-digits", "a/b@c"]
)
def test_what_is_not_there_is_named(config: RunConfig, first: dict[str, str], reference: str) -> None:
    with pytest.raises(ModelNotFound, match=reference.replace("/", ".")) as caught:
        resolve(tracking_uri(config), reference)
    assert "\n" not in str(caught.value)


def test_a_version_whose_files_are_gone(config: RunConfig, inputs: dict[str, Artifact], tmp_path: Path) -> None:
    (tmp_path / "register").mkdir()
    renamed = load_config(
        "digits", [f"storage.root={config.root_folder}", "evaluate.num_steps=3", "register.model_name=lost"]
    )
    register_model(renamed, inputs, tmp_path / "register", Progress.silent())
    shutil.rmtree(resolve(tracking_uri(config), "lost@champion").folder)
    with pytest.raises(ModelNotFound, match="has no package to fetch"):
        resolve(tracking_uri(config), "lost@champion")


def test_an_interrupted_registration_makes_no_second_version(
    config: RunConfig,
    inputs: dict[str, Artifact],
    first: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = load_config(
        "digits", [f"storage.root={config.root_folder}", "evaluate.num_steps=3", "register.model_name=torn"]
    )
    with monkeypatch.context() as patch:
        patch.setattr("workflows.release.register.promote", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            register_model(asked, inputs, tmp_path, Progress.silent())
    with pytest.raises(ModelNotFound):
        find_version(tracking_uri(config), "torn@champion")
    done = register_model(asked, inputs, tmp_path, Progress.silent())
    assert done["version"] == "1"
    assert find_version(tracking_uri(config), "torn@champion").version == "1"


def test_a_later_version_takes_the_alias(
    config: RunConfig, inputs: dict[str, Artifact], first: dict[str, str], tmp_path: Path
) -> None:
    later = register_model(config, inputs, tmp_path, Progress.silent())
    assert later["version"] == "2"
    assert find_version(tracking_uri(config), "raverse-digits@champion").version == "2"
    assert find_version(tracking_uri(config), "raverse-digits/1").run_id == first["run_id"]


def test_a_changed_package_is_not_registered(config: RunConfig, inputs: dict[str, Artifact], tmp_path: Path) -> None:
    changed = Path(shutil.copytree(inputs["evaluate"].folder, tmp_path / "evaluate"))
    weights = changed / "package" / "denoiser" / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(InvalidBundle, match="ema"):
        register_model(config, inputs | {"evaluate": Artifact("evaluate", "e", changed)}, tmp_path, Progress.silent())


def test_an_unreachable_store_keeps_the_package(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database" * 100)
    config = load_config("digits", [f"storage.root={tmp_path}"])
    with pytest.raises(TrackingUnreachable, match="not a database"):
        register_model(config, inputs, tmp_path, Progress.silent())
    assert ModelPackage.load(inputs["evaluate"].folder / "package").shape == (1, 8, 8)


PROGRAM = (
    f"""
EXAMPLES = {EXAMPLES!r}
"""
    """
import io, sys
import mlflow, pandas
from PIL import Image
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/raverse-digits/1")
import workflows
assert "code" in workflows.__file__, workflows.__file__
table = pandas.DataFrame({"prompt": ["a handwritten seven", "the digit two"]})
asked = {"guidance_scale": 2.0, "sampler": "ddim", "seed": 7}
first, second = (model.predict(table, params=asked) for _ in range(2))
assert first.equals(second)
assert first["seed"].tolist() == [7, 8]
assert Image.open(io.BytesIO(first["image"][1])).size == (8, 8)
alone = model.predict(table[1:], params=asked | {"seed": 8})
assert alone["image"][0] == first["image"][1]
assert model.predict(table, params=asked | {"guidance_scale": 9.0})["image"][0] != first["image"][0]
for name, given in EXAMPLES.items():
    plain = model.predict(table[:1], params=asked | {"guidance_scale": given["guidance_scale"]})["image"][0]
    assert model.predict(table[:1], params=asked | given)["image"][0] != plain, name
labelled = table.assign(label=["seven", "two"])
by_label = model.predict(labelled, params={"guidance": "classifier", "num_inference_steps": 2})
assert len(by_label) == 2
assert first["tokens_cut"].tolist() == [0, 0]
long = pandas.DataFrame({"prompt": ["a handwritten seven " * 200]})
assert model.predict(long, params={"num_inference_steps": 1})["tokens_cut"][0] > 500
for columns, params in (
    (table, {"guidance": "magic"}),
    (table, {"sampler": "euler"}),
    (labelled.assign(label="ten"), {"guidance": "classifier"}),
    (table, {"seed": -1}),
    (table, {"eta": 2.0}),
    (table, {"num_inference_steps": 0}),
):
    try:
        model.predict(columns, params=params)
    except Exception as error:
        print(type(error).__name__, str(error).partition(":")[0])
print([name for name in ("ray",) if name in sys.modules])
"""
)


def test_pyfunc_works_without_raverse_ray_and_pickle(config: RunConfig, first: dict[str, str], tmp_path: Path) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
    }
    # -I: neither the working directory nor an installed copy of the project is on the path before the model's own.
    done = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, tracking_uri(config)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "MlflowException guidance",
        "MlflowException sampler",
        "MlflowException label",
        "MlflowException seed",
        "MlflowException eta",
        "MlflowException num_inference_steps",
        "[]",
    ]


@pytest.mark.slow
def test_mlflow_serves_the_model(config: RunConfig, first: dict[str, str], tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    environment |= {
        "MLFLOW_TRACKING_URI": tracking_uri(config),
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/raverse-digits/1"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
            cwd=tmp_path,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            answer = _ask_when_ready(f"http://127.0.0.1:{port}", server, tmp_path / "log")
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=30)
    (row,) = answer["predictions"]
    assert row["seed"] == 7
    assert Image.open(io.BytesIO(base64.b64decode(row["image"]))).size == (8, 8)


def _ask_when_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> dict:
    body = {"dataframe_records": [{"prompt": "a handwritten seven"}], "params": {"seed": 7, "guidance_scale": 2.0}}
    for _ in range(240):
        assert server.poll() is None, log.read_text()
        try:
            if httpx.get(f"{url}/ping", timeout=5).is_success:
                break
        except httpx.TransportError:
            time.sleep(0.5)
    response = httpx.post(f"{url}/invocations", json=body, timeout=120)
    assert response.is_success, response.text + log.read_text()
    return response.json()


def test_the_signature_lists_every_parameter(config: RunConfig, first: dict[str, str]) -> None:
    import mlflow

    mlflow.set_tracking_uri(tracking_uri(config))
    try:
        info = mlflow.models.get_model_info("models:/raverse-digits/1")
    finally:
        mlflow.set_tracking_uri(None)
    assert info.saved_input_example_info is None, "MLflow runs a model on its example while it logs it"
    assert info.signature is not None
    assert [(c.name, c.required) for c in info.signature.inputs] == [
        ("prompt", True),
        ("negative_prompt", False),
        ("label", False),
    ]
    assert {spec.name: spec.default for spec in info.signature.params} == {
        "guidance": "classifier_free",
        "guidance_scale": 2.0,
        "classifier_scale": config.evaluate.classifier_scale,
        "clip_scale": config.evaluate.clip_scale,
        "guidance_interval": [0.0, 1e9],
        "guidance_rescale": 0.0,
        "apg_eta": 1.0,
        "apg_norm": 1e9,
        "cfg_plus_plus": False,
        "sampler": "ddim",
        "num_inference_steps": 3,
        "eta": 0.0,
        "seed": 0,
    }


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
