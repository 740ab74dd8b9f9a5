"""Where captioned images come from, by the name that `data.source` takes.

A new format of a user's own data is a module of `workflows.data.sources`, its functions in the table there, and a row
here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

BUILT_IN_DATA: Final = ("digits", "shapes")
"""The data sets that the job makes."""
AUTO: Final = "auto"
"""The name that stands for the format that is found out."""
FORMATS: Final[Mapping[str, str]] = {
    "folder": "images and a metadata.jsonl, .json or .csv with file_name and text",
    "sidecar": "images with a .txt, .caption or .json of the same name beside them",
    "webdataset": "tar files of KEY.jpg and KEY.txt",
    "hf_parquet": "Parquet with image: {bytes, path} and a caption column",
    "parquet": "Parquet with image bytes and a caption column",
    "lance": "a Lance data set with image bytes and a caption column",
    "classes": "images in folders that name them, such as cat/1.png",
    "vectors": "Parquet with columns of numbers and a caption or a label",
}
"""The formats of a user's own data by name, with the files of each; the one that gives the most is taken."""

if TYPE_CHECKING:
    SourceName: TypeAlias = str
else:
    SourceName = Literal[(*BUILT_IN_DATA, AUTO, *FORMATS)]
