"""The run of a job: kept over retries, closed with the truth, and refused in a sentence where there is no store."""

from __future__ import annotations

import json
import socket
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from workflows.config.load import load_config
from workflows.config.schema import RunConfig
from workflows.errors import TrackingUnreachable
from workflows.tracking.run import flatten, tracked_run
from workflows.tracking.store import artifact_location, check_tracking, open_client, tracking_uri


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """One SQLite store for the module: making one takes seconds."""
    return load_config("digits", [f"storage.root={tmp_path_factory.mktemp('store')}"])


def test_a_run_holds_what_was_logged(config: RunConfig, tmp_path: Path) -> None:
    losses = tmp_path / "losses.csv"
    losses.write_text("step,loss,rate\n1,2.0,0.1\n2,1.5,\n")
    with tracked_run(config, tmp_path / "run.json") as run:
        run.log_params({"data": {"source": "digits", "seed": 0}, "names": ["a", "b"]})
        run.log_metrics({"evaluate": {"accuracy": 0.5, "note": "text", "flag": True}, "seconds": 3})
        run.log_curves("denoiser", losses)
        run.log_file(losses, "denoiser")
    found = run.client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"data.source": "digits", "data.seed": "0", "names": "['a', 'b']"}
    assert found.data.metrics == {"evaluate.accuracy": 0.5, "seconds": 3.0, "denoiser.loss": 1.5, "denoiser.rate": 0.1}
    assert [p.step for p in run.client.get_metric_history(run.run_id, "denoiser.loss")] == [1, 2]
    stored = Path(found.info.artifact_uri.removeprefix("file://")) / "denoiser" / "losses.csv"
    assert stored.read_text() == losses.read_text()
    assert stored.is_relative_to(config.root_folder / "mlartifacts")


def test_more_points_than_one_call_takes(config: RunConfig, tmp_path: Path) -> None:
    curve = tmp_path / "c.csv"
    curve.write_text("step,x\n" + "".join(f"{step},{step}\n" for step in range(1100)))
    with tracked_run(config, tmp_path / "run.json") as run:
        run.log_curves("long", curve)
        run.log_params({f"p{place}": place for place in range(230)})
    assert len(run.client.get_metric_history(run.run_id, "long.x")) == 1100
    assert len(run.client.get_run(run.run_id).data.params) == 230


@pytest.mark.parametrize(("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_retry_goes_on_in_the_same_run(
    config: RunConfig, tmp_path: Path, error: type[BaseException], status: str
) -> None:
    file = tmp_path / "run.json"
    with pytest.raises(error), tracked_run(config, file) as first:
        raise error
    assert first.client.get_run(first.run_id).info.status == status
    with tracked_run(config, file) as second:
        assert second.client.get_run(second.run_id).info.status == "RUNNING"
    assert second.run_id == first.run_id
    with tracked_run(config, file) as third:
        pass
    assert third.run_id != first.run_id, "a finished run must not be opened again"


def test_a_run_of_another_store_is_not_continued(config: RunConfig, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"tracking_uri": "http://elsewhere:5000", "run_id": "0" * 32}))
    with tracked_run(config, file) as run:
        pass
    assert json.loads(file.read_text()) == {"tracking_uri": tracking_uri(config), "run_id": run.run_id}


def test_mlflow_default_store_is_given_back(config: RunConfig, tmp_path: Path) -> None:
    import mlflow

    before = mlflow.is_tracking_uri_set(), mlflow.get_tracking_uri()
    with tracked_run(config, tmp_path / "run.json"):
        assert mlflow.get_tracking_uri() == tracking_uri(config)
    assert (mlflow.is_tracking_uri_set(), mlflow.get_tracking_uri()) == before


def test_flatten_keeps_names_that_mlflow_takes() -> None:
    assert dict(flatten({"a": {"b c": 1, "d=e": {"f": 2}}, "g": 3})) == {"a.b c": 1, "a.d_e.f": 2, "g": 3}


def test_default_store_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config("digits", ["storage.tracking_uri=sqlite:///sub/x.db"])
    assert tracking_uri(config) == f"sqlite:///{tmp_path}/sub/x.db"
    assert artifact_location(config) == f"file://{tmp_path}/sub/mlartifacts"
    assert tracking_uri(load_config("digits")) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert artifact_location(load_config("digits", ["storage.tracking_uri=http://host:5000"])) is None


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database" * 100)
    with pytest.raises(TrackingUnreachable, match="not a database") as caught:
        check_tracking(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert "\n" not in str(caught.value)


def test_a_locked_database_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflows.tracking.store._SECONDS", 0.1)
    file = tmp_path / "mlflow.db"
    holder = sqlite3.connect(file)
    holder.execute("CREATE TABLE t (x)")
    check_tracking(f"sqlite:///{file}")
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(TrackingUnreachable, match="locked"):
        check_tracking(f"sqlite:///{file}")
    holder.close()


def test_a_store_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingUnreachable, match="cannot be used"):
        check_tracking(f"sqlite:///{tmp_path}/file/mlflow.db")


def test_a_dead_server_is_refused_before_mlflow_waits() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(TrackingUnreachable, match=f"no MLflow store answers at http://127.0.0.1:{port}"):
        open_client(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns"])
def test_a_folder_is_refused(uri: str) -> None:
    with pytest.raises(TrackingUnreachable, match="give sqlite"):
        check_tracking(uri)


def test_an_unknown_kind_of_store_is_refused_in_one_sentence() -> None:
    with pytest.raises(TrackingUnreachable) as caught:
        open_client("nothing://here")
    assert "\n" not in str(caught.value)


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(TrackingUnreachable, match="refused"):
            open_client(f"http://127.0.0.1:{silent.getsockname()[1]}")


class Troubled(BaseHTTPRequestHandler):
    """Says `503` so many times before it answers as MLflow does."""

    def do_GET(self) -> None:
        self.server.calls += 1  # type: ignore[attr-defined]
        well = self.server.calls > self.server.troubles  # type: ignore[attr-defined]
        body = b'{"experiments": []}' if well else b"busy"
        self.send_response(200 if well else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Keeps the tests' output to themselves."""


@pytest.mark.parametrize("troubles", [2, 100])
def test_a_troubled_server_is_asked_again_and_then_given_up(troubles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    with HTTPServer(("127.0.0.1", 0), Troubled) as server:
        server.calls, server.troubles = 0, troubles  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        if troubles == 2:
            open_client(uri)
            assert server.calls == 3  # type: ignore[attr-defined]
        else:
            with pytest.raises(TrackingUnreachable, match=rf"MLflow's store {uri} refused"):
                open_client(uri)
            assert server.calls == 4  # type: ignore[attr-defined]
        server.shutdown()
