"""`digits`: the 1,797 scanned handwritten digits that ship with scikit-learn.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998, https://doi.org/10.24432/C50P49 (the test set: 8 x 8 counts of ink, 0..16).
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from workflows.data.builtin.wording import word
from workflows.data.dataset import Split
from workflows.data.split import stratified_held_out

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ATTRIBUTES = {"digit": WORDS}
TEMPLATES = (
    "a handwritten {digit}",
    "a handwritten {figure}",
    "the digit {digit}",
    "the number {figure}",
    "a scan of the digit {figure}",
    "a photo of a handwritten {digit}",
    "{digit}, written by hand",
    "a small picture of the number {digit}",
)
"""Wordings; the first is the canonical one."""


def digits(held_out: float, seed: int) -> tuple[Split, Split]:
    """The training and the held-out scans.

    Args:
        held_out: share of each digit's scans that is kept out of training.
        seed: of the split and of the wordings.
    """
    rng = np.random.default_rng(seed)
    scans, labels = load_digits(return_X_y=True)
    labels = labels.astype(np.int64)
    samples = Split(
        np.arange(len(labels), dtype=np.int64),
        np.rint(scans.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8),
        tuple(word(TEMPLATES, {"digit": WORDS[label], "figure": str(label)}, rng) for label in labels),
        labels,
        tuple((WORDS[label],) for label in labels),
        np.zeros(len(labels), np.bool_),
    )
    kept_out = stratified_held_out(labels, held_out, rng)
    return samples.rows(np.flatnonzero(~kept_out)), samples.rows(np.flatnonzero(kept_out))
