"""One table maps every error to a status; clients learn what they can mend and nothing of our insides."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import pytest
from ray.exceptions import RayTaskError

import diffusion_core
import workflows
from diffusion_core.errors import InvalidBundle, NonFinite, RaverseError
from workflows import errors
from workflows.errors import InvalidRequest, Overloaded
from workflows.serve.http.errors import STATUS, error_answer, invalid_fields_answer, status_of


def known_errors(kind: type[RaverseError] = RaverseError) -> Iterator[type[RaverseError]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__.partition(".")[0] in {"diffusion_core", "workflows"}:
            yield from known_errors(child)


def import_all() -> None:
    for package in (diffusion_core, workflows):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.endswith("errors"):
                importlib.import_module(module.name)


def test_every_error_has_a_status_of_its_own() -> None:
    import_all()
    found = set(known_errors())
    assert len(found) > 20
    assert found - set(STATUS) == set()


def test_the_tree_in_the_docstring_names_every_error_of_the_workflows() -> None:
    drawn = {line.strip(" ├└─│").split()[0] for line in (errors.__doc__ or "").splitlines() if line.strip()}
    import_all()
    own = {kind.__name__ for kind in known_errors() if kind.__module__ == errors.__name__}
    assert len(own) > 15
    assert own - drawn == set()


def test_a_class_outside_the_table_would_be_noticed() -> None:
    class Forgotten(RaverseError):
        pass

    Forgotten.__module__ = "workflows.forgotten"
    assert Forgotten in set(known_errors()) - set(STATUS)
    Forgotten.__module__ = "elsewhere"


def test_an_error_of_the_client_is_told_in_full() -> None:
    status, body, headers = error_answer(InvalidRequest("n: too many", "n"))
    assert (status, headers) == (400, {})
    assert body.model_dump() == {
        "error": {"message": "n: too many", "type": "invalid_request_error", "param": "n", "code": "invalid_value"}
    }


@pytest.mark.parametrize("error", [InvalidBundle("/secret/place is broken"), RuntimeError("/secret/place")])
def test_our_own_faults_do_not_tell_our_insides(error: Exception) -> None:
    status, body, _ = error_answer(error)
    assert status == 500
    assert body.error.type == "server_error"
    assert "secret" not in body.error.message
    assert type(error).__name__ in body.error.message


def test_an_error_that_crossed_processes_keeps_its_status_and_its_field() -> None:
    wrapped = RayTaskError("generate", "trace", InvalidRequest("label: unknown", "label")).as_instanceof_cause()
    status, body, _ = error_answer(wrapped)
    assert (status, body.error.param, body.error.message) == (400, "label", "label: unknown")


def test_an_overload_says_when_to_come_back() -> None:
    status, _, headers = error_answer(Overloaded("full", retry_after=2.2))
    assert (status, headers) == (429, {"Retry-After": "3"})


def test_a_subclass_inherits_the_status() -> None:
    class Worse(NonFinite):
        pass

    Worse.__module__ = "elsewhere"
    assert status_of(Worse("nan")) == STATUS[NonFinite] == 422


def test_a_missing_body_says_what_to_send() -> None:
    detail = invalid_fields_answer(
        [{"type": "missing", "loc": ("body",), "msg": "Field required", "input": None}]
    ).error
    assert detail.param is None
    assert "application/json" in detail.message
