"""Waits until a URL answers; a refusal for want of a token is an answer: python wait_for.py URL."""

from __future__ import annotations

import sys
import time

import httpx


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=3).status_code in (200, 401)
    except httpx.HTTPError:
        return False


if __name__ == "__main__":
    while not answers(sys.argv[1]):
        time.sleep(0.3)
