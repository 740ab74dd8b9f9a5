"""What to do about each kind of trouble that `raverse data check` finds, and how its words reach a terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from workflows.config.schema import DataConfig

RULES: Final = (
    "max_pixels",
    "max_caption_chars",
    "background",
    "caption_template",
    "label_missing",
    "max_bad_fraction",
)
"""Fields of the `data` section that decide about records, and are options of the check."""
_OPTIONS: Final = (
    *RULES,
    *("image_column", "caption_column", "label_column", "vector_columns", "image_size", "channels", "source"),
)
_WIDEST: Final = 160
_LONGEST_KIND: Final = 100
_REMEDIES: Final = (
    (r"no \.txt of this name|no line in metadata", "write a caption for it, or move the picture elsewhere"),
    (r"no caption|every caption is empty", "--caption-column names the key or column of captions"),
    (r"no (file_name|image column)", "--image-column names the key or column of pictures"),
    (r"no label", "--label-missing drop uses these records, and no labels"),
    (r"pixels are more than", "--max-pixels takes larger pictures"),
    (r"cut to N", "--max-caption-chars keeps longer captions"),
    (r"laid on", "--background sets another colour"),
    (r"Windows-1252", "convert the texts to UTF-8 if an accent is wrong: iconv -f ENCODING -t UTF-8 FILE"),
    (r"Git LFS", "git lfs pull"),
    (r"base64", "write the decoded bytes to the file: base64 --decode FILE"),
    (r"HEIC", "pip install pillow-heif"),
    (r"JPEG XL", "pip install pillow-jxl-plugin"),
    (r"is a URL|their addresses|HTML page", "download the pictures, for example with img2dataset"),
    (r"outside the folder", "give the folder that holds all files as PATH, or copy the files into it"),
    (r"does not exist", "mend the file names, or give the folder that they start from as PATH"),
    (r"which one is meant", "name the picture KEY.jpg"),
    (r"an outlier", "mend the number, or name the other columns with --vector-columns"),
    (r"colours converted|spread over", "compare before and after in report.html"),
    (r"damaged|readable Parquet|ends early|no tar file|decoded", "copy the file again, or remove it"),
    (r"no UTF-8: rename|no Unicode", "rename the file"),
)


def default_of(option: str) -> Any:
    """The default of a field of the `data` section."""
    return DataConfig.model_fields[option].default


def kind_of(reason: str) -> str:
    """A reason without what is particular to one file."""
    return printable(re.sub(r"'[^']*'|(?<![\w-])\d+", "N", reason.split(" (", maxsplit=1)[0]), _LONGEST_KIND)


def remedies(report: Mapping[str, Any]) -> dict[str, str]:
    """For each trouble of a report, the option or command that mends it."""
    found = {}
    for kind in (*report["unusable"], *report["changed"]):
        for pattern, remedy in _REMEDIES:
            if re.search(pattern, kind):
                found[kind] = remedy
                break
    missing = report["labels"].get("(none)", 0)
    if missing and missing < report["usable"]:
        found[f"{missing} of {report['usable']} usable records have no label, so no label is used"] = (
            "--label-missing refuse leaves those records out, and keeps the labels"
        )
    if report["usable"] and report["unusable"]:
        found["records that cannot be used"] = "--max-bad-fraction accepts a larger share of them"
    return found


def as_options(text: str) -> str:
    """A sentence about settings as one about the options of `data check`: `data.image_column` is `--image-column`."""
    text = re.sub(r"\bdata\.path\b", "PATH", text)
    return re.sub(
        r"\bdata\.(\w+)", lambda found: f"--{found[1].replace('_', '-')}" if found[1] in _OPTIONS else found[0], text
    )


def printable(text: str, widest: int = _WIDEST) -> str:
    """Text without control characters, shortened in the middle."""
    safe = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    half = (widest - 5) // 2
    return safe if len(safe) <= widest else f"{safe[:half]} ... {safe[-half:]}"
