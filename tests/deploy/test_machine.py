"""What the doctor says of one machine, each finding with its opposite."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from workflows.cli import app as cli
from workflows.config.load import load_config
from workflows.deploy.doctor.cluster import NodeReport, judge
from workflows.deploy.doctor.findings import findings_text, note, ok, problem, refuse_problems
from workflows.deploy.doctor.machine import check_authentication, check_bindings, check_disk, check_gpus, listening
from workflows.deploy.doctor.stores import check_bucket, check_skew, check_storage, check_tracking_server
from workflows.deploy.doctor.versions import check_pairing, check_versions, installed, requirements
from workflows.deploy.secrets import fresh_secrets, secrets_file
from workflows.errors import InvalidConfig, PreflightFailed, Unauthorized
from workflows.serve.http.keys import KeyRing, load_keys

KEYS = "name " + "0" * 64


def levels(findings: Any) -> list[str]:
    return [one.level for one in findings]


def test_what_is_installed_here_fits_and_another_version_does_not() -> None:
    found = installed()
    assert {"ray", "torch", "mlflow"} <= found.keys()
    assert levels(check_versions(found)) == ["ok"]
    (wrong,) = check_versions(found | {"ray": "1.0"})
    assert (wrong.check, wrong.level) == ("ray", "problem")
    assert wrong.found.startswith("1.0, wanted ")
    assert "pip install" in wrong.remedy
    missing = check_versions({name: version for name, version in found.items() if name != "mlflow"})
    assert [one.found.partition(",")[0] for one in missing] == ["not installed"]


def test_extras_are_not_asked_for() -> None:
    names = {one.name for one in requirements()}
    assert "torch" in names
    assert "pytest" not in names


@pytest.mark.parametrize(
    ("torch", "vision", "level"),
    [
        ("2.0.1", "0.15.2", "ok"),
        ("2.14.1", "0.29.1", "ok"),
        ("2.14.1+cu130", "0.29.1+cu130", "ok"),
        ("2.14.1", "0.28.0", "problem"),
        ("2.14.1+cu130", "0.29.1+cpu", "problem"),
    ],
)
def test_torch_and_torchvision_come_from_one_release(torch: str, vision: str, level: str) -> None:
    assert check_pairing({"torch": torch, "torchvision": vision}).level == level


def test_torch_without_torchvision_is_a_problem() -> None:
    assert check_pairing({"torch": "2.14.1"}).level == "problem"


def test_gpus_that_are_not_there_are_missed() -> None:
    assert check_gpus(99).level == "problem"


def test_a_port_that_other_machines_reach_is_noted() -> None:
    config = load_config("digits", ["serve.port=8123"])
    assert levels(check_bindings([("127.0.0.1", 8265), ("::1", 5000), ("0.0.0.0", 9)], config)) == ["ok"]
    assert levels(check_bindings([("0.0.0.0", 8265), ("::", 8123)], config)) == ["note", "note"]


def test_listening_sees_a_real_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert server.getsockname() in listening()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t"}, "ok"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/nowhere"}, "problem"),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "t"}, "note"),
        ({"RAY_AUTH_TOKEN_PATH": "/nowhere"}, "note"),
    ],
)
def test_the_token_of_ray_is_looked_for(environment: dict[str, str], expected: str) -> None:
    assert levels(check_authentication(load_config("digits"), environment))[0] == expected


@pytest.mark.parametrize(
    ("host", "environment", "expected"),
    [("127.0.0.1", {}, "ok"), ("0.0.0.0", {}, "problem"), ("0.0.0.0", {"RAVERSE_API_KEYS": KEYS}, "ok")],
)
def test_a_service_for_others_needs_keys(host: str, environment: dict[str, str], expected: str) -> None:
    config = load_config("digits", [f"serve.host={host}"])
    assert levels(check_authentication(config, environment | {"RAY_AUTH_TOKEN": "t"}))[1] == expected


def test_the_disk_of_a_folder_that_is_yet_to_be_made_is_measured(tmp_path: Path) -> None:
    (found, *_) = check_disk({"storage": tmp_path / "a" / "b"})
    assert "GiB free" in found.found


def test_storage_is_written_and_a_file_in_its_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    good, bad = (load_config("digits", [f"storage.root={tmp_path}/{name}"]) for name in ("folder", "file"))
    assert levels(check_storage(good)) == ["ok"]
    assert levels(check_storage(bad)) == ["problem"]


def test_data_that_is_not_there_is_told(tmp_path: Path) -> None:
    options = ["data.source=auto", f"storage.root={tmp_path}/out"]
    (tmp_path / "photos").mkdir()
    assert levels(check_storage(load_config("digits", [*options, f"data.path={tmp_path}/photos"]))) == ["ok", "ok"]
    assert levels(check_storage(load_config("digits", [*options, f"data.path={tmp_path}/x"]))) == ["ok", "problem"]
    assert levels(check_storage(load_config("digits", [*options, "data.path=no://x"]))) == ["ok", "problem"]


def test_a_bucket_is_written_and_left_as_it_was(tmp_path: Path) -> None:
    assert check_bucket(f"file://{tmp_path}").level == "ok"
    assert not list(tmp_path.iterdir())
    assert check_bucket("memory://bucket").level == "ok", "fsspec's"
    (tmp_path / "file").write_text("no folder")
    assert check_bucket(f"file://{tmp_path}/file").level == "problem"


@pytest.mark.parametrize(("seconds", "level"), [(0.4, "ok"), (-1.9, "ok"), (2.1, "problem"), (-90.0, "problem")])
def test_clocks_may_differ_by_two_seconds(seconds: float, level: str) -> None:
    assert check_skew("there", seconds).level == level


class Answers(http.server.BaseHTTPRequestHandler):
    """A server that answers with the status of its path, at a time of its own."""

    seconds_off = 0.0

    def do_GET(self) -> None:
        self.send_response(int(self.path.split("/")[1]))
        self.end_headers()

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string((timestamp or time.time()) + self.seconds_off)


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize(
    ("status", "expected"), [(200, ["ok", "ok"]), (401, ["problem", "ok"]), (500, ["problem", "ok"])]
)
def test_the_tracking_server_is_asked(server: str, status: int, expected: list[str]) -> None:
    assert levels(check_tracking_server(f"{server}/{status}")) == expected


def test_the_tracking_servers_clock_is_compared(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Answers, "seconds_off", 60.0)
    assert levels(check_tracking_server(f"{server}/200")) == ["ok", "problem"]


def test_no_tracking_server_is_told_at_once() -> None:
    assert levels(check_tracking_server("http://127.0.0.1:1")) == ["problem"]


def node(host: str = "one", **changes: Any) -> NodeReport:
    fields = {"python": "3.11.2", "versions": {"ray": "2.60.0"}, "clock": 100.0, "sees_file": True, "trouble": ""}
    return NodeReport(host=host, **(fields | changes))


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({}, None),
        ({"versions": {"ray": "2.59.0"}}, "node versions"),
        ({"python": "3.12.1"}, "node python"),
        ({"sees_file": False}, "shared storage"),
        ({"trouble": "cannot write"}, "node two"),
        ({"clock": 90.0}, "clock"),
    ],
)
def test_a_node_that_differs_is_named(changes: dict[str, Any], check: str | None) -> None:
    found = list(judge([(node(), 100.0), (node("two", **changes), 100.0)], "2.60.0"))
    problems = [one for one in found if one.level == "problem"]
    assert [one.check for one in problems] == ([check] if check else [])
    assert all("two" in one.check + one.found and one.remedy for one in problems)


def test_problems_stop_and_notes_do_not() -> None:
    refuse_problems([ok("a", "b"), note("c", "d", "e")])
    with pytest.raises(PreflightFailed, match=r"^disk: full \(make room\)$"):
        refuse_problems([ok("a", "b"), problem("disk", "full", "make room")])
    text = findings_text([ok("a", "b"), problem("disk", "full", "make room")])
    assert text.splitlines() == [
        "ok      a     b",
        "PROBLEM disk  full",
        "              -> make room",
        "2 checks, 1 problems, 0 notes",
    ]


def test_generated_secrets_differ_each_time_and_the_service_takes_the_key() -> None:
    one, other = fresh_secrets(), fresh_secrets()
    same = {name for name in one if one[name] == other[name]}
    assert same == {"MLFLOW_TRACKING_USERNAME"}
    assert all(len(value) >= 32 for name, value in one.items() if name not in same)
    ring = KeyRing(load_keys(None, one))
    assert ring.admit(f"Bearer {one['RAVERSE_API_KEY']}") == "first"
    with pytest.raises(Unauthorized):
        ring.admit(f"Bearer {other['RAVERSE_API_KEY']}")


def test_secrets_are_kept_private_and_whole(tmp_path: Path) -> None:
    file = tmp_path / "new" / "secrets.env"
    values = secrets_file(file)
    assert secrets_file(file) == values
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o640)
    with pytest.raises(InvalidConfig, match="chmod 600"):
        secrets_file(file)
    file.chmod(0o600)
    file.write_text("\n".join(line for line in file.read_text().splitlines() if "REDIS" not in line))
    with pytest.raises(InvalidConfig, match="lacks REDIS_PASSWORD"):
        secrets_file(file)


def test_the_doctor_leaves_with_one_where_something_would_stop_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    options = ["doctor", "--config", "digits", "--set", f"storage.root={tmp_path}"]
    assert CliRunner().invoke(cli.app, options).exit_code == 0
    assert "0 problems" in capfd.readouterr().out
    assert CliRunner().invoke(cli.app, [*options, "--gpus", "99"]).exit_code == 1
    assert "PROBLEM" in capfd.readouterr().out
