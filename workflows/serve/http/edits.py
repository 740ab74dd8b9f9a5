"""The form of `POST /v1/images/edits`: text parts, a picture, and perhaps a mask."""

from __future__ import annotations

import io
import re
from typing import Any, Final

import numpy as np
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from workflows.data.picture import decoded
from workflows.data.png import pixels_of
from workflows.errors import InvalidData, InvalidRequest
from workflows.options.guidance import SETTINGS
from workflows.serve.request.messages import InitImage
from workflows.serve.request.schema import EditRequest, ModelCard

_PICTURES: Final = ("image", "image[]")
_MASK: Final = "mask"
_FIELDS: Final = 64
_LISTS: Final = {name for name, setting in SETTINGS.items() if setting.form == "interval"} | {"seeds", "without_effect"}
"""Fields that are lists; a form holds them as text, with commas or spaces, or as JSON has them."""
_FORMATS: Final = ("PNG", "JPEG", "WEBP")

FORM: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": {"schema": {"$ref": "#/components/schemas/EditForm"}}},
    }
}
"""The form's entry in the OpenAPI document, which refers to `form_schema`."""

_FILES: Final[dict[str, Any]] = {
    "image": {"type": "string", "format": "binary", "description": "PNG, JPEG or WebP."},
    "mask": {
        "type": "string",
        "format": "binary",
        "description": "PNG; where it is transparent, the picture is made anew. Without it, the picture's own "
        "transparency counts.",
    },
}


def form_schema() -> dict[str, Any]:
    """The form as JSON schema for the OpenAPI document; the route reads the form itself, so FastAPI cannot know it."""
    schema = EditRequest.model_json_schema()
    schema["title"] = "EditForm"
    schema["properties"] |= _FILES
    schema["required"] = ["prompt", "image"]
    return schema


def decode_init_image(image: bytes, mask: bytes | None, card: ModelCard) -> InitImage:
    """Decodes the picture of an edit, and its mask.

    Args:
        image: a PNG, JPEG or WebP file.
        mask: a PNG file that is transparent where the picture is made anew; None takes the picture's transparency.
        card: the model that will edit the picture.

    Raises:
        InvalidRequest: a file that is no picture, or of another size than the model makes.
    """
    picture = _open(image, "image", card)
    pixels = _pixels(picture, card)
    keep = None
    if mask is not None:
        keep = _opaque(_open(mask, _MASK, card))
    elif picture.has_transparency_data:
        # As in OpenAI's route: without a mask, the picture's own transparency is one.
        keep = _opaque(picture)
    return InitImage(np.ascontiguousarray(pixels), None if keep is None or keep.all() else keep)


async def read_form(http: Request) -> tuple[EditRequest, bytes, bytes | None]:
    """Reads a form: its text parts, the file of the picture, and the file of the mask if there is one.

    The files are bounded by the guard's `max_body_bytes`; they are not decoded yet.

    Raises:
        RequestValidationError: text parts that break the schema.
        InvalidRequest: no form, or other files than one picture and one mask.
    """
    kind = http.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        raise InvalidRequest(f"the body is of type {kind[:60] or 'nothing'!r}: send multipart/form-data with `image`")
    try:
        form = await http.form(max_files=_FIELDS, max_fields=_FIELDS)
    except HTTPException as error:
        raise InvalidRequest(f"the body is no form ({error.detail}): send multipart/form-data") from error
    files: dict[str, list[bytes]] = {"image": [], _MASK: []}
    texts: dict[str, str] = {}
    for name, value in form.multi_items():
        part = "image" if name in _PICTURES else name
        if part in files:
            files[part].append(await value.read() if isinstance(value, UploadFile) else value.encode())
        elif name in texts:
            raise InvalidRequest(f"{name}: given more than once", name)
        else:
            texts[name] = value if isinstance(value, str) else (await value.read()).decode(errors="replace")
    await form.close()
    masks = files[_MASK]
    return _read_texts(texts), _one(files["image"], "image"), _one(masks, _MASK) if masks else None


def _read_texts(texts: dict[str, str]) -> EditRequest:
    # A form has no null: an empty part other than the prompt means absent.
    given = {name: text for name, text in texts.items() if text or name == "prompt"}
    if (label := given.get("label", "")).isdecimal():
        given["label"] = int(label)  # type: ignore[assignment]
    if (level := given.get("output_compression", "")).isdecimal():
        given["output_compression"] = int(level)  # type: ignore[assignment]
    for name in _LISTS & given.keys():
        given[name] = re.findall(r"[^][,\"'\s]+", given[name])  # type: ignore[assignment]
    try:
        return EditRequest.model_validate(given)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


def _pixels(picture: Image.Image, card: ModelCard) -> NDArray[np.uint8]:
    """The pixels `(h, w, c)` of a picture, decoded as training data are."""
    try:
        plain = decoded(picture).convert("L" if card.channels == 1 else "RGB")
    except InvalidData as error:
        raise InvalidRequest(f"image: {error}", "image") from error
    return pixels_of(plain).transpose(1, 2, 0)


def _one(files: list[bytes], name: str) -> bytes:
    if len(files) != 1:
        raise InvalidRequest(f"{name}: found {len(files)} files, wanted one", name)
    return files[0]


def _open(file: bytes, name: str, card: ModelCard) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(file), formats=_FORMATS)
        # The size is checked before the pixels are read, so a small file cannot unfold into a huge picture.
        if (size := f"{picture.width}x{picture.height}") not in card.sizes:
            raise InvalidRequest(f"{name}: this model makes {', '.join(card.sizes)} (found {size})", name)
        picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, InvalidRequest):
            raise
        raise InvalidRequest(f"{name}: no readable PNG, JPEG or WebP file", name) from error
    return picture


def _opaque(mask: Image.Image) -> NDArray[np.bool_]:
    if not mask.has_transparency_data:
        raise InvalidRequest(
            "mask: it has no transparency: the picture is made anew where the mask is transparent", _MASK
        )
    opaque: NDArray[np.bool_] = np.asarray(mask.convert("RGBA"))[..., 3] > 127
    return opaque
