"""Ray's token: where it is, and the headers that carry it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def ray_token(environment: Mapping[str, str] = os.environ) -> str | None:
    """The token that this process would send to a Ray cluster: of the environment, a file, or the home folder."""
    if token := environment.get("RAY_AUTH_TOKEN", "").strip():
        return token
    file = Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return file.read_text().strip() or None if file.is_file() else None


def ray_headers(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Headers for a request to Ray's dashboard; none where authentication is turned off or there is no token."""
    token = ray_token(environment)
    off = environment.get("RAY_AUTH_MODE", "").lower() == "disabled"
    return {"Authorization": f"Bearer {token}"} if token and not off else {}
