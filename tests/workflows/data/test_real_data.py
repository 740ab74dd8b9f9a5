"""Data that real people have: each fault that such data showed, by name, in the check and in the import alike."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import shutil
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageCms

from tests.workflows.data import samples_own as samples
from tests.workflows.data.test_check import check
from tests.workflows.data.test_picture import SHAPE, color_of, encoded
from workflows.config.schema import DataConfig
from workflows.data.own.opening import Opened
from workflows.data.own.records import Usable, use
from workflows.data.picture import PictureShape, prepare
from workflows.data.sources import detect, seen
from workflows.data.sources.location import Location
from workflows.data.split import RankSplit
from workflows.errors import InvalidData


def opened(path: Path, **settings: object) -> Opened:
    return Opened.of(DataConfig(source=settings.pop("source", "auto"), path=str(path), image_size=8, **settings))


def looked_at(path: Path, **settings: object) -> tuple[list[Usable], dict[str, str]]:
    """Reads all records; returns the usable ones, and the reason of each refused one by its name."""
    data = opened(path, **settings)
    good, bad = [], {}
    for record in (record for piece in data.pieces for record in data.read(piece)):
        try:
            good.append(use(record, data.rules))
        except InvalidData as error:
            assert record.name not in bad, "nothing twice"
            bad[record.name] = str(error)
    return good, bad


def test_pictures_in_tars_win_over_the_tables_of_img2dataset(tmp_path: Path) -> None:
    samples.write_tar(tmp_path / "00000.tar", [m for n in range(12) for m in samples.members_of(n)])
    rows = {"url": ["http://x/1.jpg"] * 12, "caption": ["a"] * 12, "width": [3] * 12, "status": ["success"] * 12}
    pq.write_table(pa.table(rows), tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text("{}")
    assert detect(Location(str(tmp_path))) == "webdataset"
    assert len(looked_at(tmp_path)[0]) == 12
    (tmp_path / "00000.tar").unlink()
    with pytest.raises(InvalidData, match="img2dataset"):
        detect(Location(str(tmp_path)))


def test_a_mixture_is_read_as_what_gives_most_and_told(tmp_path: Path) -> None:
    samples.write_sidecar(tmp_path / "d", 12)
    pq.write_table(pa.table({"prompt": ["x"], "score": [1.0]}), tmp_path / "d/prompts.parquet")
    samples.write_tar(tmp_path / "d/backup.tar", [m for n in range(12) for m in samples.members_of(n)])
    (tmp_path / "d/sub").mkdir()
    (tmp_path / "d/sub/metadata.jsonl").write_text('{"file_name": "../0000.png", "text": "x"}\n')
    found = seen(Location(str(tmp_path / "d")))
    assert next(iter(found)) == "sidecar"
    assert (found["sidecar"], found["webdataset"], found["folder"]) == (12, 12, 1)
    assert "webdataset 12" in str(opened(tmp_path / "d").mixture())
    result, report = check(tmp_path / "d", tmp_path / "out")
    assert report["format"] == "sidecar"
    assert "mixture" in result.output


def test_folders_that_lead_in_circles_are_read_once(tmp_path: Path) -> None:
    folder = samples.write_sidecar(tmp_path / "d/a", 3)
    (folder / "loop").symlink_to("..")
    (tmp_path / "d/Again").symlink_to("a")
    entries = [entry.path for entry in Location(str(tmp_path / "d")).entries() if entry.path.endswith(".png")]
    assert entries == ["a/0000.png", "a/0001.png", "a/0002.png"]


@pytest.mark.parametrize("name", ["../secret/0.png", "/etc/hostname", "x/../../secret/0.png", "file:///etc/hostname"])
def test_files_outside_are_refused_by_every_source(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/0.png").write_bytes(samples.picture(0))
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = pa.array([{"bytes": None, "path": name}], kind)
    for folder in ("t", "f"):
        (tmp_path / folder).mkdir()
    pq.write_table(pa.table({"image": rows, "text": ["a"]}), tmp_path / "t/0.parquet")
    (tmp_path / "f/metadata.jsonl").write_text(json.dumps({"file_name": name, "text": "a"}))
    for folder in ("t", "f"):
        good, bad = looked_at(tmp_path / folder)
        assert not good
        assert "outside" in str(bad) or "URL" in str(bad)


def test_the_key_s_own_picture_comes_first_in_a_tar(tmp_path: Path) -> None:
    depth, real, text = samples.picture(1), samples.picture(2), b"a caption"
    members = [("0.depth.png", depth), ("0.png", real), ("0.txt", text)]
    members += [("1.depth.png", depth), ("1.mask.png", real), ("1.txt", text)]
    members += [("2.input.png", real), ("2.outputs.txt", text)]
    samples.write_tar(tmp_path / "0.tar", members)
    good, bad = looked_at(tmp_path)
    assert [usable.record.image for usable in good] == [real, real]
    assert good[0].changes == ("other pictures of its key left aside (depth.png)",)
    assert "1.depth.png and 1.mask.png" in bad["0.tar:1"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "cp1252"])
def test_texts_in_other_encodings_are_read(encoding: str, tmp_path: Path) -> None:
    wanted = "it\u2019s a caf\u00e9"
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    data = (mark + wanted).encode(encoding)
    samples.write_sidecar(tmp_path / "s", 1)
    (tmp_path / "s/0000.txt").write_bytes(data)
    samples.write_tar(tmp_path / "w/0.tar", [("1.png", samples.picture(1)), ("1.txt", data)])
    samples.write_folder(tmp_path / "f", 1)
    line = f'{{"file_name": "images/0000.png", "text": "{wanted}"}}\n'
    (tmp_path / "f/metadata.jsonl").write_bytes((mark + line).encode(encoding))
    for folder in "swf":
        good, bad = looked_at(tmp_path / folder)
        assert not bad
        assert good[0].captions == (wanted,), folder
        assert bool(good[0].changes) == (encoding == "cp1252")


def linear_profile() -> bytes:
    """sRGB's profile with straight tone curves."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(data[128:132], "big")
    for number in range(count):
        place = 132 + 12 * number
        if data[place : place + 4] in (b"rTRC", b"gTRC", b"bTRC"):
            start = int.from_bytes(data[place + 4 : place + 8], "big")
            data[start : start + 12] = b"curv\0\0\0\0\0\0\0\0"
    return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_colour_profiles_are_converted_to_srgb(kind: str) -> None:
    image = Image.new("RGB", (16, 16), (55, 55, 55))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(image, kind, icc_profile=linear_profile(), **options)
    pixels, found = prepare(data, SHAPE)
    # 55 / 255 = 0.2157 of linear light is 0.5018 in sRGB: 1.055 * 0.2157 ** (1 / 2.4) - 0.055.
    assert abs(int(pixels[0, 4, 4]) - 128) <= 1
    assert "to sRGB" in found.notes[0]
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels, found = prepare(encoded(image, kind, icc_profile=plain, **options), SHAPE)
    assert abs(int(pixels[0, 4, 4]) - 55) <= 1
    assert found.notes == ()
    _, found = prepare(encoded(image, kind, icc_profile=b"rubbish", **options), SHAPE)
    assert "ignored" in found.notes[0]


def test_every_member_of_a_tar_is_in_a_record(tmp_path: Path) -> None:
    members = []
    for number in range(12):
        members += [(f"22.{number:02d}.png", samples.picture(number)), (f"22.{number:02d}.txt", b"x")]
    path = samples.write_tar(tmp_path / "0.tar", members)
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("30.png")
        link.type, link.linkname = tarfile.LNKTYPE, "22.05.png"
        tar.addfile(link)
        text = tarfile.TarInfo("30.txt")
        text.size = 1
        tar.addfile(text, io.BytesIO(b"y"))
    good, bad = looked_at(tmp_path)
    assert (len(good), bad) == (13, {})
    assert good[-1].record.image == samples.picture(5)
    samples.write_tar(tmp_path / "0.tar", [member for member in members if member[0].endswith(".png")])
    good, bad = looked_at(tmp_path, source="webdataset")
    assert (len(good), len(bad)) == (0, 12)


def test_one_broken_file_costs_its_own_rows(tmp_path: Path) -> None:
    for name in "abc":
        samples.write_parquet(tmp_path / name, 30)
        shutil.move(tmp_path / name / "part.parquet", tmp_path / f"{name}.parquet")
        (tmp_path / name).rmdir()
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    table = pq.read_table(tmp_path / "b.parquet").rename_columns(["image", "words", "label"])
    pq.write_table(table, tmp_path / "b.parquet")
    good, bad = looked_at(tmp_path)
    assert len(good) == 30
    assert sum(name.startswith("b.parquet") for name in bad) == 30
    assert 5 <= sum(name.startswith("a.parquet") for name in bad) <= 25, "half a file counts as about 15 rows"
    (tmp_path / "t").mkdir()
    (tmp_path / "t/bad.tar").write_bytes(b"no tar" * 300)
    samples.write_webdataset(tmp_path / "t", 6)
    good, bad = looked_at(tmp_path / "t")
    assert (len(good), list(bad)) == (6, ["bad.tar"])


def test_base64_is_understood_and_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    texts = [base64.b64encode(samples.picture(n)).decode() for n in range(3)]
    texts[2] = f"data:image/png;base64,{texts[2]}"
    (tmp_path / "b").mkdir()
    pq.write_table(pa.table({"image": texts, "caption": ["a", "b", "c"]}), tmp_path / "b/0.parquet")
    assert len(looked_at(tmp_path / "b")[0]) == 3
    (tmp_path / "d").mkdir()
    columns = [[samples.picture(0)], ["a"], ["b"]]
    twice = pa.Table.from_arrays([pa.array(column) for column in columns], ["image", "caption", "caption"])
    pq.write_table(twice, tmp_path / "d/0.parquet")
    with pytest.raises(InvalidData, match=r"2 columns .* are named 'caption'"):
        looked_at(tmp_path / "d")


def test_a_missing_label_is_told_and_a_choice(tmp_path: Path) -> None:
    folder = samples.write_sidecar(tmp_path / "d", 30)
    (folder / "0003.cls").unlink()
    _, report = check(folder, tmp_path / "out")
    assert report["labels"]["(none)"] == 1
    assert any("1 of 30" in kind for kind in report["remedies"])
    _, report = check(folder, tmp_path / "out", "--label-missing", "refuse")
    assert (report["usable"], "(none)" in report["labels"]) == (29, False)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_a_few_pictures_hold_one_out(count: int) -> None:
    ranks = np.arange(count, dtype=np.uint64)
    assert RankSplit.of(ranks, 0.1, 0).count(ranks) == 1
    assert RankSplit.of(ranks, 0.0, 0).count(ranks) == 0


@pytest.mark.parametrize(
    ("end", "kind"),
    [("avif", "AVIF"), ("jfif", "JPEG"), ("jpe", "JPEG"), ("jp2", "JPEG2000"), ("ppm", "PPM"), ("tga", "TGA")],
)
def test_all_that_pillow_decodes_is_found(end: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / f"a.{end}").write_bytes(encoded(Image.new("RGB", (16, 16), "red"), kind))
    (tmp_path / "a.txt").write_text("red")
    assert len(looked_at(tmp_path)[0]) == 1


def test_pictures_without_a_decoder_name_the_package(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50))
    (tmp_path / "b.jxl").write_bytes(b"\xff\x0a" + bytes(50))
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("x")
    _, bad = looked_at(tmp_path)
    assert "pip install pillow-heif" in bad["a.heic"]
    assert "pip install pillow-jxl-plugin" in bad["b.jxl"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "Git LFS"),
        (b"<!DOCTYPE html><html>404</html>", "HTML"),
        (base64.b64encode(samples.picture(0)), "base64"),
        (b"just text", "text"),
    ],
)
def test_what_is_no_picture_is_called_what_it_is(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidData, match=reason):
        prepare(data, SHAPE)


def test_reasons_are_the_same_at_each_run() -> None:
    for data in (b"\x89PNG\r\n\x1a\n\1\2", b"\1\2\3", samples.picture(0)[:60], b"RIFF\0\0\0\0WEBP\1\2"):
        with pytest.raises(InvalidData) as caught:
            prepare(data, SHAPE)
        assert "0x" not in str(caught.value)


@pytest.mark.parametrize("name", ["metadata.jsonl", "my.jsonl", "part.parquet", "0.tar"])
def test_a_path_may_be_the_file_itself(name: str, tmp_path: Path) -> None:
    samples.write_folder(tmp_path / "d", 3)
    shutil.copy(tmp_path / "d/metadata.jsonl", tmp_path / "d/my.jsonl")
    samples.write_parquet(tmp_path / "p", 3)
    shutil.move(tmp_path / "p/part.parquet", tmp_path / "d")
    samples.write_tar(tmp_path / "d/0.tar", [m for n in range(3) for m in samples.members_of(n)])
    good, bad = looked_at(tmp_path / "d" / name)
    assert (len(good), bad) == (3, {})


def test_stray_files_are_no_records(tmp_path: Path) -> None:
    folder = samples.write_sidecar(tmp_path / "s", 3)
    for name in ("README.txt", "sample_prompts.txt", "._0000.png", "._0000.txt"):
        (folder / name).write_text("x")
    members = [m for n in range(3) for m in samples.members_of(n)]
    members += [("README.txt", b"x"), ("._00000.png", b"x"), ("__MACOSX/a.png", b"x"), ("./._x.txt", b"x")]
    samples.write_tar(tmp_path / "t/0.tar", members)
    for name in "st":
        good, bad = looked_at(tmp_path / name)
        assert (len(good), bad) == (3, {})


@pytest.mark.parametrize(
    "kind",
    [pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.string(), 1), pa.string_view(), pa.large_list(pa.string())],
)
def test_captions_of_every_parquet_type(kind: pa.DataType, tmp_path: Path) -> None:
    nested = not (pa.types.is_dictionary(kind) or pa.types.is_string_view(kind))
    captions = pa.array([["a"], ["b"], ["a"]] if nested else ["a", "b", "a"])
    captions = captions.dictionary_encode() if pa.types.is_dictionary(kind) else captions.cast(kind)
    images = pa.array([samples.picture(n) for n in range(3)]).cast(pa.binary_view())
    pq.write_table(pa.table({"image": images, "caption": captions}), tmp_path / "0.parquet")
    good, bad = looked_at(tmp_path)
    assert ([usable.captions for usable in good], bad) == ([("a",), ("b",), ("a",)], {})


def test_the_limit_of_pixels_is_the_user_s_alone() -> None:
    data = encoded(Image.new("1", (14_000, 14_000)))
    with pytest.raises(InvalidData, match=r"data\.max_pixels"):
        prepare(data, PictureShape(8))
    prepare(data, PictureShape(8, max_pixels=200_000_000))


def test_a_part_of_the_range_is_spread_and_told() -> None:
    ramp = np.linspace(0, 4095, 256).reshape(16, 16).astype(np.uint16)
    pixels, found = prepare(encoded(Image.fromarray(ramp)), SHAPE)
    assert pixels.max() > 220
    assert found.notes == ("pixels of 0 to 4095 spread over 0 to 255",)
    small = np.arange(256, dtype=np.int32).reshape(16, 16)
    pixels, found = prepare(encoded(Image.fromarray(small), "TIFF"), SHAPE)
    assert pixels.max() > 220
    assert color_of(encoded(Image.fromarray(np.full((9, 9), 0xFFFF, np.uint16)))) == [255] * 3


@pytest.mark.parametrize("huge", [1e30, -1e12, 1e9])
def test_one_huge_number_is_refused_as_an_outlier(huge: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=200)
    values[77] = huge
    pq.write_table(pa.table({"x": values, "label": ["a", "b"] * 100}), tmp_path / "0.parquet")
    good, bad = looked_at(tmp_path)
    assert len(good) == 199
    assert "an outlier: x" in bad["0.parquet:77"]


def listing(kind: str, names: list[str]) -> str:
    rows = [{"file_name": name, "text": f'a "{name}", really'} for name in names]
    if kind == "csv":
        quoted = ['"{}","{}"'.format(row["file_name"], row["text"].replace('"', '""')) for row in rows]
        return "file_name,text\n" + "\n".join(quoted)
    if kind == "object.json":
        return json.dumps({row["file_name"]: row["text"] for row in rows}, indent=1)
    return json.dumps(rows, indent=None if kind == "jsonl" else 2)


@pytest.mark.parametrize("kind", ["csv", "json", "object.json", "jsonl"])
def test_captions_in_one_file_of_any_kind(kind: str, tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(600)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(samples.picture(number))
    (tmp_path / f"metadata.{kind.rsplit('.', maxsplit=1)[-1]}").write_text(listing(kind, names))
    good, bad = looked_at(tmp_path)
    assert (len(good), bad) == (600, {})
    assert good[599].captions == ('a "599.png", really',)


@pytest.mark.parametrize("end", [".caption", ".TXT", ".json", ".png.txt"])
def test_other_side_cars(end: str, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(samples.picture(1))
    (tmp_path / f"1{end}").write_text(json.dumps({"caption": "a"}) if end == ".json" else "a")
    good, bad = looked_at(tmp_path)
    assert ([usable.captions for usable in good], bad) == ([("a",)], {})


def test_folders_name_classes_and_concepts(tmp_path: Path) -> None:
    for number, name in enumerate(("cat/1.png", "dog/2.png")):
        (tmp_path / "c" / name).parent.mkdir(parents=True)
        (tmp_path / "c" / name).write_bytes(samples.picture(number))
    good, _ = looked_at(tmp_path / "c", caption_template="a photo of a {label}")
    assert [(usable.captions, usable.record.label) for usable in good] == [
        (("a photo of a cat",), "cat"),
        (("a photo of a dog",), "dog"),
    ]
    (tmp_path / "k/10_sks dog").mkdir(parents=True)
    (tmp_path / "k/10_sks dog/1.png").write_bytes(samples.picture(1))
    assert looked_at(tmp_path / "k")[0][0].captions == ("sks dog",)


def test_a_compressed_tar_is_read(tmp_path: Path) -> None:
    path = samples.write_tar(tmp_path / "0.tar", [m for n in range(3) for m in samples.members_of(n)])
    (tmp_path / "0.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert len(looked_at(tmp_path)[0]) == 3


def test_a_binary_column_of_pictures_is_found_by_its_cells(tmp_path: Path) -> None:
    rows = {"id": [b"x", b"y"], "blob": [samples.picture(0), samples.picture(1)], "caption": ["a", "b"]}
    pq.write_table(pa.table(rows), tmp_path / "0.parquet")
    assert len(looked_at(tmp_path)[0]) == 2


def test_lines_that_name_one_picture_are_one_picture_with_their_captions(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(700)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(samples.picture(number))
    lines = [json.dumps({"file_name": name, "text": f"{turn} {name}"}) for turn in range(3) for name in names]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    good, bad = looked_at(tmp_path)
    assert (len(good), bad) == (700, {})
    assert all(usable.captions == tuple(f"{t} {usable.record.name}" for t in range(3)) for usable in good)


def test_a_sample_sees_the_end_of_the_data(tmp_path: Path) -> None:
    members = []
    for number in range(400):
        kind = "face" if number < 300 else "flag"
        members += [(f"{number:04d}.png", samples.picture(number)), (f"{number:04d}.txt", kind.encode())]
    samples.write_tar(tmp_path / "0.tar", members)
    _, report = check(tmp_path, tmp_path / "out", "--sample", "40")
    common = report["captions"]["most_common"]
    assert (common["face"], common["flag"]) == (30, 10)


def test_transparency_is_told_and_takes_the_background() -> None:
    data = encoded(Image.new("RGBA", (9, 9), (255, 0, 0, 0)))
    pixels, found = prepare(data, PictureShape(8, background="black"))
    assert pixels.max() == 0
    assert found.notes == ("transparent parts laid on black (data.background)",)
    assert prepare(encoded(Image.new("RGBA", (9, 9), "red")), SHAPE)[1].notes == ()


def test_paths_as_people_write_them(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    name = unicodedata.normalize("NFD", "caf\u00e9.png")
    (tmp_path / "images" / name).write_bytes(samples.picture(0))
    (tmp_path / "images/b.png").write_bytes(samples.picture(1))
    (tmp_path / "images/c.png").write_bytes(samples.picture(2))
    lines = [
        {"file_name": "images/caf\u00e9.png", "text": "a"},
        {"file_name": str(tmp_path / "images/b.png"), "caption": None, "prompt": "b"},
        {"file_name": "wrong/c.png", "text": "c"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    good, bad = looked_at(tmp_path)
    assert [usable.captions for usable in good] == [("a",), ("b",)]
    assert bad == {"wrong/c.png": "the file does not exist"}, "a wrong path is counted once"


def test_the_next_command_runs_for_any_name(tmp_path: Path) -> None:
    import shlex

    from workflows.config.load import load_config

    for name in ("artifacts", "123", "a: b #c", "true"):
        folder = samples.write_sidecar(tmp_path / name, 12)
        _, report = check(folder, tmp_path / "out")
        words = shlex.split(report["next"])
        config = load_config(
            words[words.index("--config") + 1], [words[n + 1] for n, w in enumerate(words) if w == "--set"]
        )
        assert config.data.path == str(folder)
    assert DataConfig(source="auto", path="~/x").path == os.path.expanduser("~/x")  # noqa: PTH111


def test_names_reach_the_terminal_without_control_characters(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for number in range(12):
        (tmp_path / f"d/{number}\x1b[31m{'x' * 200}.png").write_bytes(b"")
        (tmp_path / f"d/{number}\x1b[31m{'x' * 200}.txt").write_text("a")
    result, report = check(tmp_path / "d", tmp_path / "out")
    assert "\x1b[31m" not in result.output
    assert len(report["unusable_examples"]) == 5
    assert all(len(row["name"]) <= 160 for row in report["unusable_examples"])
    assert "data.max_bad_fraction" not in result.output
