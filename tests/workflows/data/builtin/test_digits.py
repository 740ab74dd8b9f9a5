from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from workflows.data.builtin.digits import TEMPLATES, WORDS, digits
from workflows.data.dataset import Split


def joined() -> tuple[Split, Split]:
    return digits(held_out=0.2, seed=0)


def test_every_scan_is_in_one_split_and_keeps_its_ink() -> None:
    splits = joined()
    ids = np.concatenate([split.sample_ids for split in splits])
    assert sorted(ids) == list(range(1797))
    images = np.concatenate([split.images for split in splits])[np.argsort(ids)]
    ink = load_digits().images
    assert images.min() == 0
    assert images.max() == 255
    np.testing.assert_array_equal(np.rint(images[:, 0] / 255 * 16), ink)


def test_labels_are_those_of_the_source() -> None:
    for split in joined():
        np.testing.assert_array_equal(split.labels, load_digits().target[split.sample_ids])
        assert split.attributes == tuple((WORDS[label],) for label in split.labels)


def test_captions_name_their_digit_and_no_other() -> None:
    wordings: dict[int, set[str]] = {}
    for split in joined():
        for captions, label in zip(split.captions, split.labels, strict=True):
            assert len(set(captions)) == len(captions) > 1
            wordings.setdefault(int(label), set()).update(captions)
    for label, texts in wordings.items():
        assert len(texts) == len(TEMPLATES)
        assert all(WORDS[label] in text or str(label) in text for text in texts)
        assert not any(texts & others for other, others in wordings.items() if other != label)


def test_the_split_is_fixed_and_stratified() -> None:
    train, held_out = joined()
    np.testing.assert_array_equal(held_out.sample_ids, joined()[1].sample_ids)
    share = np.bincount(held_out.labels) / np.bincount(np.concatenate([train.labels, held_out.labels]))
    assert np.abs(share - 0.2).max() < 0.005
    assert digits(held_out=0.2, seed=1)[1].sample_ids.tolist() != held_out.sample_ids.tolist()
