"""Edits: pictures that start from a picture, whole or behind a mask, in the forms that clients send."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from fastapi import FastAPI
from numpy.typing import NDArray
from PIL import Image

from diffusion_core.trajectory import image_to_image, inpaint
from workflows.data.picture import PictureShape, prepare
from workflows.data.pixels import to_data
from workflows.errors import InvalidRequest
from workflows.model.model import ModelPackage
from workflows.serve.http import edits
from workflows.serve.http.edits import decode_init_image
from workflows.serve.request.schema import ModelCard

PROMPT = "a handwritten one"
SOURCE = (np.arange(64, dtype=np.uint8) * 4).reshape(8, 8)
CARD = ModelCard(
    id="tiny",
    created=0,
    version="1",
    sizes=["8x8"],
    channels=1,
    classes=[],
    guidance=["none"],
    example_prompts=[],
    default_steps=1,
    max_steps=1,
)


def png(pixels: NDArray[np.uint8], mode: str | None = None, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels, mode).save(file, format=form)
    return file.getvalue()


def half_mask() -> bytes:
    """Keeps the left half: the right one is transparent."""
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, :4, 3] = 255
    return png(rgba)


@pytest.fixture
def edit(api: FastAPI, ask: Callable[..., httpx.Response]) -> Callable[..., httpx.Response]:
    def send(files: dict[str, Any] | list[tuple[str, Any]] | None = None, **texts: str) -> httpx.Response:
        given = {"image": ("blob", png(SOURCE), "application/octet-stream")} if files is None else files
        return ask(api, "POST", "/v1/images/edits", data={"prompt": PROMPT, **texts}, files=given)

    return send


def pixels(response: httpx.Response) -> NDArray[np.int16]:
    assert response.status_code == 200, response.text
    data = base64.b64decode(response.json()["data"][0]["b64_json"])
    return np.asarray(Image.open(io.BytesIO(data))).astype(np.int16)


def as_data() -> torch.Tensor:
    return to_data(SOURCE)[None, None]


def test_a_picture_is_changed_as_the_core_does_it(edit: Callable[..., httpx.Response], tiny_package: Path) -> None:
    response = edit(strength="0.5", num_inference_steps="10", seed="5", sampler="ddpm")
    package = ModelPackage.load(tiny_package)
    condition, plan = package.condition([PROMPT]), package.plan("ddpm", 10)
    wanted = image_to_image(package.denoiser, plan, condition, as_data(), strength=0.5, seeds=[5])
    assert np.abs(pixels(response) - package.rows.from_x(wanted)[0, 0].numpy()).max() <= 1
    assert response.json()["settings"]["strength"] == 0.5
    assert response.json()["settings"]["inpainted"] is False


def test_what_the_mask_keeps_stays_and_the_rest_is_as_the_core_makes_it(
    edit: Callable[..., httpx.Response], tiny_package: Path
) -> None:
    files = {"image": ("a.png", png(SOURCE), "image/png"), "mask": ("m.png", half_mask(), "image/png")}
    response = edit(files, num_inference_steps="10", seed="5")
    package = ModelPackage.load(tiny_package)
    keep = torch.zeros(1, 1, 8, 8)
    keep[..., :4] = 1
    wanted = inpaint(
        package.denoiser, package.plan("ddim", 10), package.condition([PROMPT]), as_data(), keep, seeds=[5]
    )
    found = pixels(response)
    assert np.abs(found - package.rows.from_x(wanted)[0, 0].numpy()).max() <= 1
    assert np.array_equal(found[:, :4], SOURCE[:, :4])
    assert not np.array_equal(found[:, 4:], SOURCE[:, 4:])
    assert response.json()["settings"]["inpainted"] is True
    assert response.json()["settings"]["strength"] == 1.0


def test_a_picture_s_own_transparency_is_a_mask(edit: Callable[..., httpx.Response]) -> None:
    rgba = np.stack([SOURCE, SOURCE, SOURCE, np.full_like(SOURCE, 255)], axis=-1)
    rgba[:, 4:, 3] = 0
    found = pixels(edit({"image": ("a.png", png(rgba), "image/png")}, seed="5"))
    assert np.array_equal(found[:, :4], SOURCE[:, :4])


def test_a_weak_edit_stays_near_the_picture(edit: Callable[..., httpx.Response]) -> None:
    weak, strong = (pixels(edit(strength=strength, num_inference_steps="50", seed="5")) for strength in ("0.02", "1"))
    assert np.abs(weak - SOURCE).mean() < 12 < np.abs(strong - SOURCE).mean()


@pytest.mark.parametrize("name", ["image", "image[]"])
@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_files_are_taken_as_clients_send_them(edit: Callable[..., httpx.Response], name: str, form: str) -> None:
    file = ("blob", png(SOURCE, form=form), "application/octet-stream")
    assert edit({name: file, "n": (None, "2", "text/plain; charset=utf-8")}).status_code == 200


def test_texts_that_change_nothing_are_accepted(edit: Callable[..., httpx.Response]) -> None:
    response = edit(quality="auto", user="me", input_fidelity="low", output_compression="100", size="", model="tiny")
    assert response.status_code == 200, response.text
    assert set(response.json()["settings"]["without_effect"]) >= {"quality", "user", "input_fidelity"}


def test_a_label_is_a_name_or_an_index(edit: Callable[..., httpx.Response]) -> None:
    for label in ("two", "2"):
        response = edit(prompt="", guidance="classifier", label=label)
        assert response.json()["settings"]["label"] == "two", response.text


@pytest.mark.parametrize(
    ("files", "texts", "param"),
    [
        ({}, {}, "image"),
        ([("image", ("a", png(SOURCE))), ("image[]", ("b", png(SOURCE)))], {}, "image"),
        ({"image": ("a", b"no picture")}, {}, "image"),
        ({"image": ("a", png(SOURCE)[:45])}, {}, "image"),
        ({"image": ("a", png(np.zeros((8, 9), np.uint8)))}, {}, "image"),
        ({"image": ("a", png(SOURCE)), "mask": ("m", png(SOURCE))}, {}, "mask"),
        (None, {"strength": "0"}, "strength"),
        (None, {"strength": "nan"}, "strength"),
        (None, {"n": "11"}, "n"),
        (None, {"n": "many"}, "n"),
        (None, {"bogus": "1"}, "bogus"),
        (None, {"quality": "hd"}, "quality"),
        (None, {"seed": str(2**64)}, "seed"),
    ],
)
def test_a_bad_part_is_refused_by_name(
    edit: Callable[..., httpx.Response], files: Any, texts: dict[str, str], param: str
) -> None:
    if files == {}:
        files = {"unused": ("a", b"")}
        response = edit(files, **texts)
        assert response.status_code == 400
        return
    response = edit(files, **texts)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


def test_no_form_is_told_what_to_send(api: FastAPI, ask: Callable[..., httpx.Response]) -> None:
    for options in (
        {"json": {"prompt": "a"}},
        {},
        {"content": b"x", "headers": {"content-type": "multipart/form-data"}},
    ):
        response = ask(api, "POST", "/v1/images/edits", **options)
        assert response.status_code == 400, response.text


def gray16() -> bytes:
    file = io.BytesIO()
    values = (SOURCE.astype(np.uint16) << 8) | 0x5A
    Image.fromarray(values).save(file, format="PNG")
    assert Image.open(io.BytesIO(file.getvalue())).mode.startswith("I;16")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["gray16", "transparent", "palette", "rotated"])
def test_uploads_are_decoded_as_training_data_are(kind: str) -> None:
    square = Image.fromarray(SOURCE)
    file = io.BytesIO()
    if kind == "gray16":
        file.write(gray16())
    elif kind == "transparent":
        square.convert("RGBA").save(file, "PNG")
        rgba = np.asarray(square.convert("RGBA")).copy()
        rgba[:2, :, 3] = 0
        file = io.BytesIO(png(rgba))
    elif kind == "palette":
        square.convert("P").save(file, "PNG")
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        square.save(file, "PNG", exif=exif)
    found = decode_init_image(file.getvalue(), None, CARD).pixels
    wanted, _ = prepare(file.getvalue(), PictureShape(8, 1))
    assert np.array_equal(found, wanted.transpose(1, 2, 0))
    if kind == "gray16":
        assert np.array_equal(found[..., 0], SOURCE)


def test_floating_point_pixels_are_refused_by_name() -> None:
    with pytest.raises(InvalidRequest) as caught:
        edits._pixels(Image.fromarray(SOURCE.astype(np.float32)), CARD)
    assert caught.value.param == "image" and "8 or 16 bits" in str(caught.value)


def test_json_is_told_to_come_as_a_form(api: FastAPI, ask: Callable[..., httpx.Response]) -> None:
    response = ask(api, "POST", "/v1/images/edits", json={"prompt": PROMPT, "image": "x"})
    assert response.status_code == 400
    assert "application/json" in response.json()["error"]["message"]
    assert "send multipart/form-data" in response.json()["error"]["message"]


def test_the_settings_of_an_edit_can_be_sent_back(edit: Callable[..., httpx.Response]) -> None:
    files = {"image": ("a.png", png(SOURCE), "image/png"), "mask": ("m.png", half_mask(), "image/png")}
    first = edit(
        files, n="2", seed="5", num_inference_steps="6", guidance_interval="0.3, 3", strength="0.7", quality="auto"
    )
    settings = first.json()["settings"]
    again = edit(
        files,
        **{name: json.dumps(value) if isinstance(value, list) else str(value) for name, value in settings.items()},
    )
    assert np.array_equal(pixels(again), pixels(first))
    assert again.json()["settings"] == {**settings, "without_effect": []}
