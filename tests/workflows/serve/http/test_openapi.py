"""Schemathesis throws what the OpenAPI document allows, and what it forbids, at every route: no 500, no hang."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance]
ROUTES = {
    "POST /v1/images/generations",
    "POST /v1/images/edits",
    "GET /v1/models",
    "GET /v1/models/{name}",
    "GET /health",
    "GET /healthz",
}


@pytest.fixture(scope="module")
def operations(api: FastAPI) -> dict[str, Any]:
    document = schemathesis.openapi.from_asgi("/openapi.json", api)
    found = [result.ok() for result in document.get_all_operations()]
    return {operation.label: operation for operation in found}


def test_every_route_is_in_the_document(operations: dict[str, Any]) -> None:
    assert set(operations) == ROUTES


# A route that takes nothing, or any name, has no wrong requests.
WRONG = [(route, GenerationMode.NEGATIVE) for route in sorted(ROUTES) if route.startswith("POST")]


@pytest.mark.parametrize(("route", "mode"), [(route, GenerationMode.POSITIVE) for route in sorted(ROUTES)] + WRONG)
def test_no_request_breaks_the_service(operations: dict[str, Any], route: str, mode: GenerationMode) -> None:
    answers = []

    @given(case=operations[route].as_strategy(generation_mode=mode))
    @settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    def check(case: schemathesis.Case) -> None:
        answers.append(case.call_and_validate(checks=CHECKS).status_code)

    check()
    assert len(answers) > 0
