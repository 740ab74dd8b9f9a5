"""What bytes are that should be a picture, judged by how they begin."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

_MAGIC: Final = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    *(b"\0\0\0\x0cjP  ", b"\xffO\xffQ", b"qoif", b"8BPS", b"DDS ", b"P1\n", b"P2\n", b"P3\n", b"P4\n", b"P5", b"P6"),
)
_HEIC: Final = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_AVIF: Final = (b"avif", b"avis")
_JXL: Final = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
_KINDS: Final = (
    (b"version https://git-lfs", "a Git LFS pointer, and the picture is not here: run `git lfs pull`"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a zip archive: unpack it"),
    (b"\x1f\x8b", "compressed with gzip: unpack it"),
    (b"\x1aE\xdf\xa3", "a video"),
    (b"PAR1", "a Parquet file"),
    (b"RIFF", "no WebP picture, though it begins like one (RIFF)"),
)
_PAGES: Final = re.compile(rb"\s*(<!doctype html|<html|<head|<body)", re.IGNORECASE)
_DRAWING: Final = re.compile(rb"\s*(<\?xml|<svg)", re.IGNORECASE)
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/\s]{16,}={0,2}\s*")
_ADDRESS: Final = re.compile(r"<[^<>]*\bat 0x[0-9a-fA-F]+>|\bat 0x[0-9a-fA-F]+|0x[0-9a-fA-F]{6,}")


def is_picture(data: bytes) -> bool:
    """Whether bytes begin like a picture of a format in wide use."""
    webp = data[:4] == b"RIFF" and data[8:12] == b"WEBP"
    boxed = data[4:8] == b"ftyp" and data[8:12] in (*_HEIC, *_AVIF)
    return webp or boxed or data.startswith((*_MAGIC, *_JXL))


def missing_decoder(data: bytes) -> str | None:
    """The package that reads a picture which Pillow cannot read alone; None: there is none to name."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC:
        return "a HEIC picture: pip install pillow-heif, or convert it to JPEG"
    if data.startswith(_JXL):
        return "a JPEG XL picture: pip install pillow-jxl-plugin, or convert it to JPEG"
    return None


def described(data: bytes) -> str | None:
    """What bytes are instead of a picture, with what to do; None: nothing is known."""
    for start, kind in _KINDS:
        if data.startswith(start):
            return kind
    if data[4:8] == b"ftyp" and data[8:12] not in (*_HEIC, *_AVIF):
        return "a video"
    if _PAGES.match(data):
        return "an HTML page, as a failed download leaves it: download it again"
    if _DRAWING.match(data):
        return "XML or SVG text: draw it as PNG"
    if not data.strip(b"\0"):
        return f"{len(data)} bytes of zeros"
    return _text(data)


def _text(data: bytes) -> str | None:
    head = data[:4096]
    if head.startswith(b"data:image/"):
        return "a data: URL as text: decode it to a file"
    if _BASE64.fullmatch(head if len(data) <= len(head) else head.rstrip(b"=")):
        try:
            if is_picture(base64.b64decode(b"".join(head.split())[:64])):
                return "base64 text of a picture: decode it to a file"
        except (binascii.Error, ValueError):
            pass
    if any(byte < 9 or 13 < byte < 32 for byte in head):
        return None
    try:
        return f"text ({head.decode()[:40]!r}), no picture"
    except UnicodeDecodeError:
        return None


def without_addresses(text: str) -> str:
    """An error's text without addresses of memory, which differ from run to run."""
    return " ".join(_ADDRESS.sub("", text).split())
