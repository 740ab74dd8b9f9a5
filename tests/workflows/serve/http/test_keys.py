"""API keys: hashes only, unknown ones refused, and a rate per key."""

from __future__ import annotations

from pathlib import Path

import pytest

from workflows.errors import InvalidConfig, Overloaded, Unauthorized
from workflows.serve.http.keys import VARIABLE, KeyRing, load_keys, new_key


def ring(per_minute: int | None = None) -> tuple[str, KeyRing]:
    key, line = new_key("alice", per_minute)
    return key, KeyRing(load_keys(None, {VARIABLE: line}))


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_is_known_in_any_case(scheme: str) -> None:
    key, keys = ring()
    assert keys.admit(f"{scheme} {key}") == "alice"


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Bearer rv-wrong", "Basic {key}", "{key}", "Bearer {key}x"]
)
def test_anything_else_is_refused(header: str) -> None:
    key, keys = ring()
    with pytest.raises(Unauthorized):
        keys.admit(header.format(key=key))


def test_what_is_stored_is_no_key() -> None:
    key, line = new_key("alice", 7)
    assert key not in line
    name, digest, rate = line.split()
    assert (name, len(digest), rate) == ("alice", 64, "7")
    with pytest.raises(Unauthorized):
        KeyRing(load_keys(None, {VARIABLE: line})).admit(f"Bearer {digest}")


def test_keys_come_from_a_file_and_from_the_environment(tmp_path: Path) -> None:
    (one, first), (two, second) = new_key("one"), new_key("two", 5)
    file = tmp_path / "keys.txt"
    file.write_text(f"# who may ask\n\n{first}\n")
    keys = KeyRing(load_keys(str(file), {VARIABLE: f"{second},"}))
    assert {keys.admit(f"Bearer {key}") for key in (one, two)} == {"one", "two"}


def test_a_bad_line_is_told_by_number_and_not_in_full(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(f"{new_key('one')[1]}\nrv-a-key-pasted-by-mistake\n")
    with pytest.raises(InvalidConfig, match="API key 2 is no") as caught:
        load_keys(str(file), {})
    assert "mistake" not in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"nowhere\.txt"):
        load_keys(str(tmp_path / "nowhere.txt"), {})


def test_a_name_that_would_break_the_line_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="wanted letters"):
        new_key("two words")


def test_a_key_may_send_its_number_of_requests_and_then_learns_when_to_come_back() -> None:
    key, keys = ring(per_minute=3)
    for _ in range(3):
        keys.admit(f"Bearer {key}", now=100.0)
    with pytest.raises(Overloaded) as caught:
        keys.admit(f"Bearer {key}", now=100.0)
    assert caught.value.retry_after == pytest.approx(20.0)
    with pytest.raises(Overloaded):
        keys.admit(f"Bearer {key}", now=119.0)
    assert keys.admit(f"Bearer {key}", now=120.1) == "alice"


def test_a_key_without_a_rate_is_not_limited() -> None:
    key, keys = ring()
    assert {keys.admit(f"Bearer {key}", now=0.0) for _ in range(1000)} == {"alice"}
