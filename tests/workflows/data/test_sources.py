"""The five formats: what they give, and what they say of broken files."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.workflows.data import samples_own as samples
from workflows.data.intake import PictureIntake
from workflows.data.own.records import Rules, clean_captions, use
from workflows.data.picture import PictureShape
from workflows.data.sources import SOURCES, detect, pieces_of, records_of
from workflows.data.sources.location import Location
from workflows.data.sources.record import Columns, Record
from workflows.errors import InvalidData


def records(folder: Path | str, source: str, columns: Columns | None = None) -> list[Record]:
    location, columns = Location(str(folder)), columns or Columns()
    return [
        record
        for piece in SOURCES[source].pieces(location, columns)
        for record in SOURCES[source].read(location, pickle.loads(pickle.dumps(piece)), columns)
    ]


def faults(found: list[Record]) -> dict[str, str]:
    return {record.name: record.fault for record in found if record.fault is not None}


@pytest.mark.parametrize("name", samples.WRITERS)
def test_each_format_is_detected_and_read_in_order(name: str, tmp_path: Path) -> None:
    folder = samples.WRITERS[name](tmp_path / name, 30)
    assert detect(Location(str(folder))) == name
    found = records(folder, name)
    assert [record.image for record in found] == [samples.picture(number) for number in range(30)]
    assert [record.captions[0] for record in found] == [samples.caption(number) for number in range(30)]
    assert [record.label for record in found] == [samples.label(number) for number in range(30)]
    assert not faults(found)
    assert len({record.name for record in found}) == 30


@pytest.mark.parametrize("name", samples.WRITERS)
def test_labels_are_optional(name: str, tmp_path: Path) -> None:
    found = records(samples.WRITERS[name](tmp_path / name, 6, labels=False), name)
    assert [record.label for record in found] == [None] * 6


@pytest.mark.parametrize("name", ["sidecar", "parquet"])
def test_an_image_may_have_several_captions(name: str, tmp_path: Path) -> None:
    found = records(samples.WRITERS[name](tmp_path / name, 6), name)
    assert found[2].captions == ("a blue field number 2", "another wording of 2")


def test_urls_are_read_like_folders(tmp_path: Path) -> None:
    import fsspec

    folder = samples.write_webdataset(tmp_path / "tars", 6)
    assert len(records(folder.as_uri(), "webdataset")) == 6
    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe(f"/raverse-test/{path.name}", path.read_bytes())
    try:
        assert [r.image for r in records("memory://raverse-test", "webdataset")] == [
            record.image for record in records(folder, "webdataset")
        ]
    finally:
        memory.rm("/raverse-test", recursive=True)


def test_a_single_file_is_a_location(tmp_path: Path) -> None:
    folder = samples.write_parquet(tmp_path / "data", 12)
    assert len(records(folder / "part.parquet", "parquet")) == 12
    assert detect(Location(str(folder / "part.parquet"))) == "parquet"


def test_a_location_knows_when_its_files_change(tmp_path: Path) -> None:
    folder = samples.write_folder(tmp_path / "data", 3)
    before = Location(str(folder)).stamp()
    assert Location(str(folder)).stamp() == before
    with (folder / "metadata.jsonl").open("a") as file:
        file.write("\n")
    assert Location(str(folder)).stamp() != before


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="nothing at"):
        detect(Location(str(tmp_path / "nowhere")))
    with pytest.raises(InvalidData, match=r"no known format .* \(0 files\): wanted one of folder"):
        detect(Location(str(tmp_path)))
    for name in SOURCES:
        with pytest.raises(InvalidData, match="no "):
            records(tmp_path, name)


def test_other_names_of_keys(tmp_path: Path) -> None:
    folder = samples.write_folder(tmp_path / "data", 2)
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    renamed = [{"f": line["file_name"], "c": [line["text"], "more"], "k": 7} for line in lines]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, renamed)))
    found = records(folder, "folder", Columns(image="f", caption="c", label="k"))
    assert [record.captions for record in found] == [(samples.caption(0), "more"), (samples.caption(1), "more")]
    assert [record.label for record in found] == ["7", "7"]


def test_bad_lines_of_metadata_are_listed(tmp_path: Path) -> None:
    folder = samples.write_folder(tmp_path / "data", 2)
    bad = ["{", "[1]", '{"text": "x"}', '{"file_name": "gone.png", "text": "x"}', '{"file_name": "../x", "text": "x"}']
    bad += ['{"file_name": "images/0000.png", "text": 7}', "[" * 100_000, ""]
    with (folder / "metadata.jsonl").open("a") as file:
        file.write("\n".join(bad))
    (folder / "images/alone.png").write_bytes(samples.picture(9))
    found = records(folder, "folder")
    assert list(faults(found).values()) == [
        "the line is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))",
        "the line holds list, wanted an object",
        "no file_name in the line (keys: text)",
        "the file does not exist",
        "the file lies outside the folder",
        "the line is not JSON (nested too deeply)",
        "no line in metadata names it",
    ]
    assert len(found) == 2 + 7, "nothing is lost"
    assert found[0].notes == ("a line about it left aside: the caption is int, wanted a text or a list of texts",)


def test_side_cars_without_their_other_half_are_listed(tmp_path: Path) -> None:
    folder = samples.write_sidecar(tmp_path / "data", 3)
    (folder / "0001.txt").unlink()
    (folder / "0002.png").unlink()
    assert faults(records(folder, "sidecar")) == {
        "0001.png": "no .txt of this name beside it",
        "0002.txt": "there is no image of this name",
    }


def test_an_unordered_tar_gives_the_same_samples(tmp_path: Path) -> None:
    members = [member for number in range(4) for member in samples.members_of(number)]
    samples.write_tar(tmp_path / "a/0.tar", members)
    samples.write_tar(tmp_path / "b/0.tar", sorted(members, key=lambda member: member[0][::-1]))
    ordered, mixed = (records(tmp_path / name, "webdataset") for name in "ab")
    assert sorted(ordered, key=lambda r: r.name) == sorted(mixed, key=lambda r: r.name)
    assert [record.name for record in mixed] == [record.name for record in records(tmp_path / "b", "webdataset")]


def test_troubles_of_a_tar_are_listed(tmp_path: Path) -> None:
    members = [("1.jpg", b""), ("1.txt", b"zero bytes"), ("2.txt", b"no image"), ("3.png", samples.picture(3))]
    members += [("3.json", b"{"), ("4.png", samples.picture(4)), ("4.png", b"again"), ("4.txt", b"four")]
    members += [("5.png", samples.picture(5)), ("5.json", json.dumps({"caption": "five", "label": 2}).encode())]
    path = samples.write_tar(tmp_path / "t/0.tar", members)
    found = {record.name: record for record in records(path.parent, "webdataset")}
    assert found["0.tar:1"].image == b""
    assert found["0.tar:2"].fault == "no image among its members (txt)"
    assert "Expecting property name" in str(found["0.tar:3"].fault)
    assert found["0.tar:4"].image == samples.picture(4)
    assert found["0.tar:4.png"].fault == "a second member of this name"
    assert (found["0.tar:5"].captions, found["0.tar:5"].label) == (("five",), "2")
    data = path.read_bytes()
    assert "0.tar" not in found, "a whole file is not said to end early"
    for length in (512 * 5, 512 * 5 + 100, 512 * 6):
        path.write_bytes(data[:length])
        assert "ends early" in str({r.name: r for r in records(path.parent, "webdataset")}["0.tar"].fault)
    path.write_bytes(b"this is no tar" * 100)
    assert "is no tar file" in str(records(path.parent, "webdataset")[0].fault)


def test_missing_and_wrong_columns_are_named(tmp_path: Path) -> None:
    def write(**columns: object) -> Path:
        pq.write_table(pa.table(columns), tmp_path / "x.parquet")
        return tmp_path

    with pytest.raises(
        InvalidData, match=r"no caption column \(caption, .* which has image, words: set data.caption_col"
    ):
        records(write(image=[b"x"], words=["x"]), "parquet")
    with pytest.raises(InvalidData, match=r"no image column .* set data\.image_column"):
        records(write(text=["x"]), "parquet")
    with pytest.raises(InvalidData, match=r"'image' .* is int64, wanted bytes"):
        records(write(image=[1], text=["x"]), "parquet")
    with pytest.raises(InvalidData, match=r"'text' .* is int64, wanted text"):
        records(write(image=[b"x"], text=[1]), "parquet")
    with pytest.raises(InvalidData, match=r"no label column \(kind\)"):
        records(write(image=[b"x"], text=["x"]), "parquet", Columns(label="kind"))
    assert records(write(b=[b"x"], words=["x"]), "parquet", Columns("b", "words"))[0].captions == ("x",)


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    folder = samples.write_parquet(tmp_path / "data", 30)
    file = folder / "part.parquet"
    data = bytearray(file.read_bytes())
    file.write_bytes(data[:100])
    with pytest.raises(InvalidData, match=r"part\.parquet .* is no readable Parquet"):
        records(folder, "parquet")
    data[4:400] = bytes(396)
    file.write_bytes(data)
    found = records(folder, "parquet")
    assert len(found) == 30
    assert "the file is damaged here" in str(found[0].fault)


def test_hugging_face_images_may_lie_beside_the_table(tmp_path: Path) -> None:
    rows = [{"bytes": None, "path": "a.png"}, {"bytes": None, "path": "gone.png"}, {"bytes": None, "path": None}]
    (tmp_path / "a.png").write_bytes(samples.picture(0))
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array(rows, kind), "text": ["a", "b", "c"]}), tmp_path / "0.parquet")
    found = records(tmp_path, "hf_parquet")
    assert found[0].image == samples.picture(0)
    assert found[1].fault is not None
    assert found[2].image == b""


def not_utf8(values: list[bytes]) -> pa.Array:
    """A column that says it is text, as other writers make them from any bytes."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


def test_texts_that_are_no_utf8_are_read_and_told(tmp_path: Path) -> None:
    samples.write_sidecar(tmp_path / "s", 1)
    (tmp_path / "s/0000.txt").write_bytes(b"caf\xe9")
    samples.write_tar(tmp_path / "w/0.tar", [("1.png", samples.picture(1)), ("1.txt", b"caf\xe9")])
    column = not_utf8([b"caf\xe9", b"good"])
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), column)
    for name, captions in (("t", column), ("l", lists)):
        (tmp_path / name).mkdir()
        pq.write_table(
            pa.table({"image": [samples.picture(0)] * 2, "caption": captions}), tmp_path / name / "0.parquet"
        )
    found = [
        records(tmp_path / name, kind)
        for name, kind in zip("swtl", ("sidecar", "webdataset", "parquet", "parquet"), strict=True)
    ]
    for first, *more in found:
        usable = use(first, Rules(PictureIntake(PictureShape(8)), 99))
        assert usable.captions == ("caf\u00e9",)
        assert usable.changes == ("text that is no UTF-8 read as Windows-1252",)
        assert [record.captions for record in more] in ([], [("good",)])


def test_a_file_name_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    samples.write_sidecar(tmp_path / "s", 1)
    (tmp_path / "s" / os.fsdecode(b"\xff.png")).write_bytes(samples.picture(1))
    location = Location(str(tmp_path / "s"))
    found = [record for piece in pieces_of("sidecar", location, Columns())
             for record in records_of("sidecar", location, piece, Columns())]  # fmt: skip
    assert faults(found) == {"\\xff.png": "the name is no UTF-8: rename it"}


@pytest.mark.parametrize("text", ["猫の写真", "صورة قطة", "фото кошки", "क बिल्ली", "👩‍👩‍👧 family", "a\u0301 é"])
def test_captions_of_any_script_stay_as_they_are(text: str) -> None:
    assert clean_captions([text], 2000) == ((text,), ())


def test_captions_that_tools_cannot_read_are_changed_and_told() -> None:
    assert clean_captions(["a\0b"], 99) == (("a b",), ("NUL removed from a caption",))
    assert clean_captions(["\ud800x"], 99) == (("?x",), ("what is no Unicode text replaced in a caption",))
    assert clean_captions(["x" * 1_000_000], 50) == (("x" * 50,), ("a caption of 1000000 characters cut to 50",))
    assert clean_captions(["  ", "a", "a"], 50) == (("a",), ("an empty caption left out",))
    assert clean_captions([], 50) == ((), ())
