from __future__ import annotations

import pytest
import torch

from tests.workflows.embed.conftest import TINY
from workflows.errors import InvalidClip
from workflows.towers.clip_model import build_model


@pytest.mark.parametrize(("vision_width", "text_width"), [(96, 64), (100, 56), (7, 11)])
def test_any_width_makes_a_model(vision_width: int, text_width: int) -> None:
    sizes = {"vision_width": vision_width, "text_width": text_width}
    model, tokenizer = build_model(TINY.model_copy(update=sizes), image_size=8)
    assert model(torch.zeros(1, 3, 8, 8), tokenizer(["a"]))["text_features"].shape == (1, 8)


def test_patches_must_fill_the_picture() -> None:
    with pytest.raises(InvalidClip, match="patch_size 3 does not divide the 8 pixels"):
        build_model(TINY.model_copy(update={"patch_size": 3}), image_size=8)
