"""Pixels of any depth and colour space as 8 bits of sRGB, with a remark on every guess and change."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any, Final

import numpy as np
from PIL import Image, ImageCms

from workflows.errors import InvalidData

_WHOLE: Final = 16
"""Bits of a picture whose values are taken as they are."""
_LEAST_CHANGE: Final = 2
"""Of 255: smaller changes by a profile are not told."""
_SRGB_GAMMA: Final = 0.45455
_ROW: Final = 32
_OPAQUE: Final = 255


def as_srgb(image: Image.Image, background: str) -> tuple[Image.Image, tuple[str, ...]]:
    """A picture in 8 bits of gray or sRGB, and what was changed.

    Args:
        image: decoded.
        background: colour below transparent parts.

    Raises:
        InvalidData: floating-point pixels.
    """
    notes: list[str] = []
    profile, gamma = image.info.get("icc_profile"), image.info.get("gamma")
    named = "srgb" in image.info
    flat = _eight_bits(image, notes)
    alpha = _alpha(flat)
    if alpha is not None:
        flat = flat.convert("RGBA").convert("RGB")
    elif flat.mode not in ("L", "RGB", "CMYK"):
        flat = flat.convert("RGB")
    flat = _converted(flat, profile, gamma if not named else None, notes)
    if alpha is not None:
        below = Image.new("RGB", flat.size, background)
        flat = Image.composite(flat.convert("RGB"), below, alpha) if not _is_opaque(alpha) else flat
        if not _is_opaque(alpha):
            notes.append(f"transparent parts laid on {background} (data.background)")
    return flat, tuple(notes)


def _alpha(image: Image.Image) -> Image.Image | None:
    return image.convert("RGBA").getchannel("A") if image.has_transparency_data else None


def _is_opaque(alpha: Image.Image) -> bool:
    return bool(alpha.getextrema()[0] == _OPAQUE)


def _eight_bits(image: Image.Image, notes: list[str]) -> Image.Image:
    """Integers of up to 32 bits as 8: those of 16 bits keep the upper ones, unless only a part of the range is used."""
    if image.mode == "F":
        raise InvalidData("floating-point pixels: convert the picture to 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    bits = max(high, 1).bit_length()
    if low >= 0 and bits == _WHOLE:
        return Image.fromarray((values >> 8).astype(np.uint8))
    if low < 0 or bits > _WHOLE:
        bottom, top = min(low, 0), high
    else:
        bottom, top = 0, 2 ** max(bits, 8) - 1
        if bits < 8:
            bottom, top = 0, 255
    notes.append(f"pixels of {bottom} to {top} spread over 0 to 255")
    scaled = (values - bottom) * 255 / max(top - bottom, 1)
    return Image.fromarray(np.clip(np.round(scaled), 0, 255).astype(np.uint8))


def _converted(image: Image.Image, profile: bytes | None, gamma: Any, notes: list[str]) -> Image.Image:
    """In sRGB, by the picture's profile, or by the exponent that a PNG file names."""
    plain = image if image.mode in ("L", "RGB") else image.convert("RGB")
    if profile:
        try:
            changed = ImageCms.applyTransform(image, _transform(bytes(profile), image.mode))
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            notes.append("its colour profile cannot be used, and is ignored")
            return plain
        if changed is not None and _differ(plain, changed):
            notes.append(f"colours converted from {_name(bytes(profile))} to sRGB")
            return changed
        return plain
    if isinstance(gamma, float) and gamma > 0 and abs(gamma - _SRGB_GAMMA) > 0.02:
        notes.append(f"colours converted from a gamma of {1 / gamma:.2g} to sRGB")
        linear = (np.arange(256) / 255) ** (1 / gamma)
        srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
        return plain.point(np.round(srgb * 255).astype(int).tolist() * len(plain.getbands()))
    return plain


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> Any:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")


@lru_cache(maxsize=16)
def _name(profile: bytes) -> str:
    try:
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (ImageCms.PyCMSError, OSError):
        return "its profile"
    return " ".join(name.split())[:40] or "its profile"


def _differ(before: Image.Image, after: Image.Image) -> bool:
    """Whether a profile changes pixels by more than rounding; looked for in strips of rows."""
    for top in range(0, before.height, _ROW):
        box = (0, top, before.width, min(top + _ROW, before.height))
        one, other = (np.asarray(image.crop(box).convert("RGB"), np.int16) for image in (before, after))
        if np.abs(one - other).max(initial=0) > _LEAST_CHANGE:
            return True
    return False
