"""What the dashboard shows is what the service tells."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.workflows.serve.conftest import DASHBOARD
from workflows.serve.metric_names import MetricName
from workflows.serve.replica.metrics import ReplicaMetrics
from workflows.serve.replica.replica import Replica


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    text = json.dumps(json.loads(DASHBOARD.read_text())["panels"])
    found = {re.sub(r"_(bucket|count|sum)$", "", name) for name in re.findall(r"ray_(raverse_\w+)", text)}
    assert found == set(MetricName)


class Recorder:
    """Stands where Ray's metric stands, and remembers."""

    def __init__(self) -> None:
        self.told: list[tuple[float, dict[str, str]]] = []

    def observe(self, value: float, tags: dict[str, str]) -> None:
        self.told.append((value, tags))

    def __getattr__(self, name: str) -> Any:
        assert name in ("set", "inc")
        return self.observe


@pytest.fixture
def recorded() -> tuple[ReplicaMetrics, dict[str, Recorder]]:
    metrics = ReplicaMetrics("tiny")
    names = ("_rows", "_queued", "_wait", "_step", "_step_rows", "_pictures", "_version")
    recorders = {name: Recorder() for name in names}
    for name, recorder in recorders.items():
        assert hasattr(metrics, name)
        setattr(metrics, name, recorder)
    return metrics, recorders


def test_what_the_engine_did_is_told_once(
    replica: Replica,
    api: FastAPI,
    ask: Callable[..., httpx.Response],
    recorded: tuple[ReplicaMetrics, dict[str, Recorder]],
) -> None:
    metrics, told = recorded
    metrics.record(replica._versions.loaded)
    for recorder in told.values():
        recorder.told.clear()
    body = {"prompt": "a handwritten one", "num_inference_steps": 6, "n": 2}
    assert ask(api, "POST", "/v1/images/generations", json=body).status_code == 200
    metrics.record(replica._versions.loaded)
    assert told["_pictures"].told == [(2, {"model": "tiny", "end": "finished"})]
    assert len(told["_step"].told) == 6
    assert {tags["bucket"] for _, tags in told["_step"].told} == {"4"}
    assert [value for value, _ in told["_step_rows"].told] == [2] * 6
    assert len(told["_wait"].told) == 1
    assert told["_rows"].told == [(0, {"model": "tiny"})]
    assert told["_version"].told == [(1, {"model": "tiny", "version": "1"})]
    metrics.record(replica._versions.loaded)
    assert len(told["_step"].told) == 6
    assert len(told["_pictures"].told) == 1


def test_a_request_is_one_line_of_json_in_the_log(
    api: FastAPI, ask: Callable[..., httpx.Response], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr("workflows.serve.http.router._LOG.info", lambda form, text: lines.append(form % text))
    headers = {"x-request-id": "mine"}
    drawn = {"prompt": "a handwritten one", "seed": 3, "num_inference_steps": 2}
    for body in (drawn, {"prompt": " "}, drawn | {"stream": True, "preview_every": 1}):
        ask(api, "POST", "/v1/images/generations", json=body, headers=headers)
    good, bad, streamed = (json.loads(line) for line in lines)
    assert (good["status"], good["seed"], good["model"], bad["status"]) == (200, 3, "tiny", 400)
    assert (streamed["status"], streamed["stream"]) == (200, True)
    assert good["request_id"].startswith("mine/")
    assert "handwritten" not in lines[0]
