"""How well a label head knows how often it is right."""

from __future__ import annotations

import pytest
import torch

from workflows.train.validation import calibration_error


def test_a_head_that_is_as_often_right_as_it_says_has_no_calibration_error() -> None:
    confidence = torch.tensor([0.75] * 4 + [1.0] * 4)
    right = torch.tensor([True, True, True, False] + [True] * 4)
    assert calibration_error(confidence, right) == pytest.approx(0.0, abs=1e-7)


def test_errors_of_bins_do_not_cancel() -> None:
    confidence = torch.tensor([0.95, 0.95, 0.55, 0.55])
    right = torch.tensor([True, False, True, True])
    assert float(confidence.mean()) == pytest.approx(float(right.float().mean()))
    assert calibration_error(confidence, right) == pytest.approx(0.45)
