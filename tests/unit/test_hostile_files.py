"""Small files that mean much: bombs, endless names, endless numbers. Each is refused or has a row."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cdul_fast.data import tables
from cdul_fast.data.decode import PhotoProblem, decode_photo, own_pixel_limit
from cdul_fast.data.sources import open_source
from cdul_fast.errors import CdulError, ConfigError
from cdul_fast.prompts import load_classes

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20


def png(*chunks: tuple[bytes, bytes], width: int = 8, height: int = 8, pixels: bytes = b"") -> bytes:
    """A grey PNG with more chunks before its pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = pixels or zlib.compress(bytes(9 * 8))
    body = b"".join(chunk(kind, content) for kind, content in chunks)
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def zeros(mebibytes: int) -> bytes:
    """So many zeros, compressed."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(MIB)) for _ in range(mebibytes)) + packer.flush()


def photo(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, kind)
    return stream.getvalue()


def gif_on_a_large_canvas() -> bytes:
    data = bytearray(photo("GIF"))
    data[6:10] = struct.pack("<HH", 65535, 65535)
    return bytes(data)


def jpeg_of_many_scans() -> bytes:
    """Progressive, each of its scans repeated: every repetition goes over all coefficients again."""
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    start = data.index(b"\xff\xda")
    scan = data[start : data.index(b"\xff\xda", start + 2)]
    return data[:-2] + scan * 500 + data[-2:]


BOMBS: dict[str, tuple[Callable[[], bytes], set[str]]] = {
    "text of 300 MiB in a PNG": (lambda: png((b"zTXt", b"a\0\0" + zeros(300))), {"decode_error", "ok"}),
    "300 texts of 1 MiB in a PNG": (
        lambda: png(*[(b"zTXt", b"a%d\0\0" % i + zeros(1)) for i in range(300)]),
        {"decode_error", "ok"},
    ),
    "international text of 300 MiB": (
        lambda: png((b"iTXt", b"a\0\1\0\0\0" + zeros(300))),
        {"decode_error", "ok"},
    ),
    "colour profile of 300 MiB": (lambda: png((b"iCCP", b"a\0\0" + zeros(300))), {"decode_error", "ok"}),
    "pixels of 300 MiB behind a small header": (lambda: png(pixels=zeros(300)), {"decode_error", "ok"}),
    "a header of 60,000 x 60,000": (lambda: png(width=60000, height=60000), {"too_large"}),
    "a GIF on a large canvas": (gif_on_a_large_canvas, {"too_large"}),
    "a photo in gzip": (lambda: gzip.compress(photo("JPEG")), {"unsupported"}),
    "gzip of 300 MiB": (lambda: gzip.compress(bytes(300 * MIB)), {"unsupported"}),
    "a JPEG of many scans": (jpeg_of_many_scans, {"decode_error", "ok"}),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_photo_that_unpacks_to_much(name: str, tmp_path: Path) -> None:
    make, statuses = BOMBS[name]
    (tmp_path / "bomb").write_bytes(make())
    code = (
        "import pathlib, resource, sys\n"
        "from cdul_fast.data.decode import decode_photo, own_pixel_limit\n"
        "data = pathlib.Path(sys.argv[1]).read_bytes()\n"
        "decode_photo(bytes.fromhex(sys.argv[2]))\n"  # a good one first: the libraries are in memory then
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "with own_pixel_limit(): photo = decode_photo(data)\n"
        "print(photo.status, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "bomb"), photo("PNG").hex()]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=60)
    status, mebibytes = done.stdout.split()
    assert status in statuses, done.stderr
    assert int(mebibytes) < 100


def bmp_claiming(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


def tiff_claiming(width: int, height: int) -> bytes:
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
            (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, 1)]  # fmt: skip
    body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + bytes(4)


@pytest.mark.parametrize("make", [bmp_claiming, tiff_claiming, lambda w, h: png(width=w, height=h)])
@pytest.mark.parametrize("width", [2**31 - 1, 2**31, 2**32 - 1])
def test_a_header_that_claims_more_than_a_column_holds(make: Callable[[int, int], bytes], width: int) -> None:
    if make is bmp_claiming and width > 2**31 - 1:
        pytest.skip("a BMP counts with a sign")
    with own_pixel_limit():
        photo = decode_photo(make(width, 7))
    assert photo.status in ("too_large", "decode_error", "unsupported")
    assert 0 <= photo.width < 2**31
    if make is tiff_claiming:
        assert (photo.status, photo.width, photo.height) == ("too_large", 2**31 - 1, 7)


# ---- Parquet --------------------------------------------------------------------------------------------


def repeated(value: Any, kind: str, rows: int) -> Any:
    import pyarrow as pa

    numbers = pa.array([0] * rows, pa.int32())
    return pa.DictionaryArray.from_arrays(numbers, pa.array([value], getattr(pa, kind)()))


def write_repeated(path: Path, name: str, value: Any, kind: str, rows: int) -> int:
    """A Parquet file in which one value stands so many times; returns the file's size."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({name: repeated(value, kind, rows)})
    pq.write_table(table, path, compression="zstd", store_schema=False)
    return path.stat().st_size


def test_a_parquet_file_whose_names_unpack_to_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "names.parquet"
    assert write_repeated(path, "path", "x" * 100_000, "string", 50_000) < 10_000
    start = time.monotonic()
    with pytest.raises(ConfigError, match=r"names\.parquet: column 'path': names of 5000000000 bytes"):
        open_source(str(path))
    assert time.monotonic() - start < 10


def test_photos_that_a_parquet_file_repeats_are_not_unpacked_at_once(tmp_path: Path) -> None:
    path = tmp_path / "photos.parquet"
    picture = photo("PNG") + bytes(200_000)
    assert write_repeated(path, "image", picture, "binary", 20_000) < 20_000
    code = (
        "import resource, sys\n"
        "from cdul_fast.data.sources import open_source\n"
        "import pyarrow.parquet, numpy\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "source = open_source(sys.argv[1])\n"
        "print(len(source), len(source.read(19_999)))\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    arguments = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split()[:2] == ["20000", str(len(picture))], done.stderr
    assert int(done.stdout.split()[2]) < 300, "the row group is 4 GB when it is unpacked"


def test_a_row_group_too_large_for_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"image": [bytes(MIB)] * 5})
    pq.write_table(table, tmp_path / "large.parquet", use_dictionary=False)
    monkeypatch.setattr(tables, "_MAX_ROW_GROUP_BYTES", 4 * MIB)
    with pytest.raises(ConfigError, match=r"large\.parquet: a row group of \d+ bytes"):
        open_source(str(tmp_path / "large.parquet"))


@pytest.mark.parametrize("column", ["path", "image"])
def test_parquet_text_that_is_no_utf8(tmp_path: Path, column: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    array = pa.StringArray.from_buffers(1, pa.py_buffer(struct.pack("<ii", 0, 2)), pa.py_buffer(b"\xff\xfe"))
    pq.write_table(pa.table({column: array}), tmp_path / "names.parquet")
    with pytest.raises(ConfigError, match=r"names\.parquet"):
        open_source(str(tmp_path / "names.parquet"))


def test_a_row_group_with_fewer_rows_than_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "photos.parquet"
    pq.write_table(pa.table({"image": [b"a", b"b", b"c"]}), path)
    source = open_source(str(path))
    pq.write_table(pa.table({"image": [b"a", b"b"]}), path)  # changed since
    assert source.read(0) == b"a"
    with pytest.raises(PhotoProblem, match="holds 2 rows, fewer than it says"):
        source.read(2)


# ---- names and numbers ----------------------------------------------------------------------------------

LONG = "n" * 100_000


def test_class_names_of_any_length(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text(f"dog\n{LONG}\n")
    assert load_classes(tmp_path / "classes.txt").names == ("dog", LONG)
    (tmp_path / "classes.txt").write_text(f"{LONG}\n{LONG}\n")
    with pytest.raises(ConfigError, match="twice") as caught:
        load_classes(tmp_path / "classes.txt")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["photos.csv", "photos.txt", "photos.json", "photos.parquet"])
def test_a_photo_with_an_endless_name_has_a_row(name: str, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / name
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"path": [LONG]}), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps({"images": [{"id": 1, "file_name": LONG}], "categories": []}))
    else:
        path.write_text(f"path\n{LONG}\n" if path.suffix == ".csv" else f"{LONG}\n")
    listed = open_source(None, list_file=str(path)) if path.suffix == ".txt" else open_source(str(path))
    assert listed.path(0) == LONG
    with pytest.raises(PhotoProblem, match="File name too long") as caught:
        listed.read(0)
    assert caught.value.status == "missing"


def test_a_source_with_an_endless_name() -> None:
    with pytest.raises(ConfigError) as caught:
        open_source(LONG)
    assert len(str(caught.value)) < 1000


def test_a_csv_cell_beyond_its_limit(tmp_path: Path) -> None:
    (tmp_path / "photos.csv").write_text("path\n" + "n" * 200_000 + "\n")
    with pytest.raises(ConfigError, match="not a CSV file"):
        open_source(str(tmp_path / "photos.csv"))


@pytest.mark.parametrize("text", ['{"images": %s}' % ("[" * 100_000), "[" * 100_000, "1" * 10_000])
def test_json_that_is_nested_or_counts_without_end(tmp_path: Path, text: str) -> None:
    (tmp_path / "coco.json").write_text(text)
    with pytest.raises(CdulError, match=r"coco\.json"):
        open_source(str(tmp_path / "coco.json"))


def yaml_of_laughs(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for i in range(1, levels):
        lines.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]")
    return "\n".join(lines)


def test_yaml_whose_aliases_multiply(tmp_path: Path) -> None:
    """Nine to the ninth texts, were they ever written out."""
    from cdul_fast.cli import parse_config
    from cdul_fast.config import LabelConfig

    (tmp_path / "bomb.yaml").write_text(yaml_of_laughs(9))
    start = time.monotonic()
    with pytest.raises(ConfigError):
        load_classes(tmp_path / "bomb.yaml")
    with pytest.raises(ConfigError) as caught:
        parse_config(LabelConfig, "label", ["--config", str(tmp_path / "bomb.yaml")], ["source"])
    assert len(str(caught.value)) < 1000
    (tmp_path / "bomb.yaml").write_text(yaml_of_laughs(9) + "\nsource: *a8\n")
    with pytest.raises(ConfigError):
        parse_config(LabelConfig, "label", ["--config", str(tmp_path / "bomb.yaml")], ["source"])
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e999", "9" * 400, "-1", "[1]", "{a: 1}"])
@pytest.mark.parametrize("name", ["scale", "zeta", "lam", "grid", "top_k", "max_pixels", "photo_timeout"])
def test_numbers_that_are_none(tmp_path: Path, name: str, value: str) -> None:
    from cdul_fast.cli import parse_config
    from cdul_fast.config import LabelConfig

    if (name, value) == ("lam", "-1"):
        pytest.skip("a good value")
    path = tmp_path / "c.yaml"
    path.write_text(f"source: a\nout: b\n{name}: {value}\n")
    with pytest.raises(ConfigError, match=name.replace("_", "[-_]")) as caught:
        parse_config(LabelConfig, "label", ["--config", str(path)], ["source"])
    assert len(str(caught.value)) < 1000


def test_a_concept_whose_name_holds_nul(tmp_path: Path) -> None:
    from cdul_fast.data.datasets import nus_truth

    for folder in ("ImageList", "ConceptsList"):
        (tmp_path / folder).mkdir()
    (tmp_path / "ImageList" / "TrainImagelist.txt").write_text("a.jpg\n")
    (tmp_path / "ConceptsList" / "Concepts81.txt").write_text("dog\0\n")
    with pytest.raises(ConfigError, match="null byte"):
        nus_truth(str(tmp_path), "train")


def test_paths_that_are_no_utf8_or_stand_there_twice(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    with open(raw, "wb") as stream:  # noqa: PTH123
        stream.write(photo("PNG"))
    (tmp_path / "list").write_bytes(raw + b"\n" + raw + b"\n")
    source = open_source(None, list_file=str(tmp_path / "list"))
    assert source.path(0) == source.path(1)
    assert source.path(0).endswith("\\xff\\xfe.png")
    assert decode_photo(source.read(1)).status == "ok"
