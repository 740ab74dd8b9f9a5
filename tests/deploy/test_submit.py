"""`raverse submit` where there is no cluster to talk to, or nothing that could run there."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from workflows.config.load import load_config
from workflows.deploy.doctor.cluster import check_ray_version, check_resources
from workflows.deploy.submit import Cluster, check_travels, entrypoint, runtime_env
from workflows.errors import ClusterUnreachable, InvalidConfig


@pytest.fixture
def stranger() -> Iterator[str]:
    """The address of a web server that is not Ray."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_another_server_is_not_taken_for_ray(stranger: str) -> None:
    with pytest.raises(ClusterUnreachable, match=r"is not Ray's dashboard.*give http://HOST:8265"):
        Cluster(stranger)


@pytest.mark.parametrize(
    ("address", "part"),
    [
        ("127.0.0.1:8265", "wanted the URL"),
        ("ray://127.0.0.1:10001", "wanted the URL"),
        ("http://127.0.0.1:1", "nothing answers"),
        ("http://no-such-host.invalid:8265", "nothing answers"),
        ("http://127.0.0.1:99999", "nothing answers"),
    ],
)
def test_an_address_without_a_cluster_is_told_with_what_to_do(address: str, part: str) -> None:
    with pytest.raises(ClusterUnreachable, match=part):
        Cluster(address)


@pytest.mark.parametrize(("there", "level"), [("2.60.3", "ok"), ("2.59.0", "problem"), ("3.60.0", "problem")])
def test_versions_must_agree_but_for_the_patch(there: str, level: str) -> None:
    assert check_ray_version("2.60.0", there).level == level


@pytest.mark.parametrize(("gpus", "workers", "problems"), [(0, 2, 0), (2, 2, 0), (3, 2, 1), (0, 9, 1), (8, 9, 2)])
def test_what_the_job_wants_is_compared_with_all_nodes(gpus: int, workers: int, problems: int) -> None:
    nodes = [{"CPU": 4.0}, {"CPU": 4.0, "GPU": 2.0}]
    found = list(check_resources(nodes, gpus, workers))
    assert sum(one.level == "problem" for one in found) == problems
    assert all(one.remedy for one in found if one.level == "problem")


def test_what_stays_at_home_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("name: own")
    shared = load_config("digits", ["storage.root=/shared/raverse"])
    check_travels(shared, "digits", tmp_path)
    check_travels(shared, "own.yaml", tmp_path)
    with pytest.raises(InvalidConfig, match="stays on this machine"):
        check_travels(shared, str(own), tmp_path)
    with pytest.raises(InvalidConfig, match="is not in"):
        check_travels(shared, "other.yaml", tmp_path)
    with pytest.raises(InvalidConfig, match=r"would go away with it: give --set storage\.root"):
        check_travels(load_config("digits", [f"storage.root={tmp_path}/runs"]), "digits", tmp_path)


def test_the_line_keeps_what_shells_would_change() -> None:
    line = entrypoint("digits", ["name=a b", "denoiser.train.num_workers=[1,2]"], num_gpus=2)
    assert line == (
        "python -m workflows.cli doctor --config digits --set 'name=a b' --set 'denoiser.train.num_workers=[1,2]' "
        "--gpus 2 && python -m workflows.cli run --config digits --set 'name=a b' "
        "--set 'denoiser.train.num_workers=[1,2]'"
    )


def test_the_runtime_environment_is_the_file_and_the_folder(tmp_path: Path) -> None:
    assert runtime_env(tmp_path, None) == {"working_dir": str(tmp_path)}
    file = tmp_path / "environment.yaml"
    file.write_text("pip: [raverse]")
    assert runtime_env(tmp_path, file) == {"working_dir": str(tmp_path), "pip": ["raverse"]}
    file.write_text("[1]")
    with pytest.raises(InvalidConfig, match="holds list"):
        runtime_env(tmp_path, file)
