"""Tiny towers with random weights: those of the embed stage's tests."""

from __future__ import annotations

from tests.workflows.embed.conftest import config, inputs, tiny_folder

__all__ = ["config", "inputs", "tiny_folder"]
