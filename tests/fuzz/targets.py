"""What is fuzzed: every parser that takes a file of somebody else's, with seeds to begin from.

A target is given the bytes of one file and a folder of its own. It may return or raise `CdulError` (and so
`ConfigError`); anything else is a finding.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import shutil
import struct
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cdul_fast import config as settings
from cdul_fast.cli import parse_config
from cdul_fast.data import datasets, sources
from cdul_fast.data.decode import PhotoProblem, decode_photo, own_pixel_limit
from cdul_fast.data.journal import Journal, Row, read_journal
from cdul_fast.data.manifest import read_manifest, shard_table_if_sound
from cdul_fast.data.run_dir import open_run
from cdul_fast.data.sinks import STATUSES
from cdul_fast.data.truth import load_truth
from cdul_fast.errors import CdulError
from cdul_fast.execution.work import ViewSpec, crop_views
from cdul_fast.prompts import load_classes

MAX_PIXELS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Target:
    """One parser.

    Attributes:
        check: Gives it the bytes; raises on a finding.
        seeds: Makes well-formed inputs.
    """

    check: Callable[[bytes, Path], None]
    seeds: Callable[[], list[bytes]]


def allow(parse: Callable[[], object]) -> bool:
    """Whether the parser took its input; its own refusal is fine."""
    try:
        parse()
    except CdulError as error:
        message = str(error)
        assert message and len(message) < 2000 and message.isprintable(), f"no message to show: {message!r}"
        return False
    return True


def written(folder: Path, name: str, data: bytes) -> Path:
    """The bytes as a file."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# ---- photos ---------------------------------------------------------------------------------------------


def picture(width: int = 24, height: int = 17) -> np.ndarray:
    """A smooth picture with some noise, uint8 [height, width, 3]."""
    rng = np.random.default_rng(width)
    ramp = np.linspace(0, 200, width * height * 3).reshape(height, width, 3)
    return (ramp + rng.integers(0, 50, ramp.shape)).astype(np.uint8)


def photo_seeds() -> list[bytes]:
    """Small photos in every format and mode that is read."""
    from PIL import Image

    image = Image.fromarray(picture())
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.fromarray(np.arange(300, dtype=np.uint16).reshape(15, 20) * 200)
    frames = [Image.fromarray(picture(20 + i, 12)).quantize(16) for i in range(3)]
    kinds: list[tuple[Image.Image, str, dict[str, object]]] = [
        (image, "JPEG", {}),
        (image, "JPEG", {"progressive": True, "exif": exif}),
        (image.convert("L"), "JPEG", {}),
        (image.convert("CMYK"), "JPEG", {}),
        (image, "PNG", {"exif": exif}),
        (image.convert("RGBA"), "PNG", {}),
        (image.quantize(8), "PNG", {"transparency": 0}),
        (image.convert("1"), "PNG", {}),
        (wide, "PNG", {}),
        (image, "WEBP", {}),
        (image.convert("RGBA"), "WEBP", {"lossless": True}),
        (image, "BMP", {}),
        (image.quantize(4), "BMP", {}),
        (frames[0], "GIF", {"save_all": True, "append_images": frames[1:]}),
        (image, "TIFF", {}),
        (image, "TIFF", {"compression": "tiff_lzw"}),
        (image.convert("L"), "TIFF", {"compression": "tiff_adobe_deflate", "exif": exif}),
        (wide, "TIFF", {}),
    ]
    seeds = []
    for one, kind, more in kinds:
        stream = io.BytesIO()
        one.save(stream, kind, **more)
        seeds.append(stream.getvalue())
    return seeds


HALF = (0.5, 0.5, 0.5)
SPEC = ViewSpec(3, 0.0, 0, ("squash", *["center_crop"] * 9), 16, HALF, HALF, "float32", MAX_PIXELS, False)


def check_photo(data: bytes, folder: Path) -> None:
    """One row's worth: a status, and pixels exactly where it is ok."""
    for rotate, least in ((False, None), (True, None), (False, 16), (True, 16)):
        with own_pixel_limit():
            photo = decode_photo(data, max_pixels=MAX_PIXELS, exif_rotate=rotate, least_side=least)
        assert photo.status in STATUSES
        assert (photo.status == "ok") == (photo.pixels is not None) == (photo.error is None)
        assert photo.error is None or (len(photo.error) <= 300 and photo.error.isprintable())
        if photo.pixels is not None:
            whole = (photo.height, photo.width)
            sizes = [tuple(-(-side // factor) for side in whole) for factor in (1, 2, 4, 8)]
            assert photo.pixels.shape[:2] in (sizes[:1] if least is None else sizes)
            assert photo.pixels.shape[2] == 3
            assert photo.pixels.dtype == np.uint8
            assert photo.width * photo.height <= MAX_PIXELS
            out = np.empty((10, 3, 16, 16), np.float32)
            crop_views(photo.pixels, SPEC, out)
            assert np.isfinite(out).all()


# ---- lists, settings, data sets -------------------------------------------------------------------------


def texts(*values: str) -> Callable[[], list[bytes]]:
    """Seeds from texts."""
    return lambda: [value.encode() for value in values]


def check_classes(suffix: str) -> Callable[[bytes, Path], None]:
    """Class files."""

    def check(data: bytes, folder: Path) -> None:
        path = written(folder, f"classes{suffix}", data)
        allow(lambda: load_classes(path))

    return check


def check_config(data: bytes, folder: Path) -> None:
    """A settings file of the label command."""
    path = written(folder, "config.yaml", data)
    arguments = ["--config", str(path), "--out", "o"]
    try:
        allow(lambda: parse_config(settings.LabelConfig, "label", arguments, ["source"]))
    except SystemExit as end:
        raise AssertionError(f"a settings file ended the process with {end.code}") from None


def check_source(name: str, *, truth: bool) -> Callable[[bytes, Path], None]:
    """A file that names photos, and their true labels."""

    def check(data: bytes, folder: Path) -> None:
        path = written(folder, name, data)

        def read() -> None:
            source = sources.open_source(str(path))
            for index in range(len(source)):
                source.path(index).encode()

        allow(read)
        if truth:
            allow(lambda: load_truth(path))

    return check


def check_list(data: bytes, folder: Path) -> None:
    """A file of paths, each of which becomes a row."""
    path = written(folder, "list", data)
    source = sources.open_source(None, list_file=str(path), images=str(folder))
    for index in range(min(len(source), 50)):
        source.path(index).encode()
        try:
            source.read(index)
        except PhotoProblem as problem:
            assert problem.status in STATUSES


def check_voc_xml(data: bytes, folder: Path) -> None:
    """One annotation of a VOC folder."""
    path = written(folder, "Annotations/a.xml", data)
    allow(lambda: datasets.voc_objects(path))
    allow(lambda: load_truth_of_voc(folder))


def load_truth_of_voc(folder: Path) -> object:
    """The true labels of the whole folder."""
    (folder / "JPEGImages").mkdir(exist_ok=True)
    return load_truth(folder)


def check_voc_split(data: bytes, folder: Path) -> None:
    """The list of a split."""
    (folder / "JPEGImages").mkdir(exist_ok=True)
    written(folder, "ImageSets/Main/train.txt", data)
    allow(lambda: datasets.read_voc(str(folder), "train"))


def check_nus(which: str) -> Callable[[bytes, Path], None]:
    """One of the three kinds of files of a NUS-WIDE folder, the others as they should be."""

    def check(data: bytes, folder: Path) -> None:
        files = {
            "ImageList/TrainImagelist.txt": b"actor\\0001.jpg\nactor\\0002.jpg\n",
            "ConceptsList/Concepts81.txt": b"dog\ncat\n",
            "TrainTestLabels/Labels_dog_Train.txt": b"1\n0\n",
            "TrainTestLabels/Labels_cat_Train.txt": b"0\n1\n",
        } | {which: data}
        for name, content in files.items():
            written(folder, name, content)
        allow(lambda: datasets.read_nus(str(folder), None, "train"))
        allow(lambda: datasets.nus_truth(str(folder), "train"))

    return check


def parquet_seeds() -> list[bytes]:
    """Parquet files that name photos or hold them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    photo = photo_seeds()[0]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    held = pa.array([{"bytes": photo, "path": "a.jpg"}, None], kind)
    seeds = []
    for table in (
        pa.table({"path": ["a.jpg", "b/c.jpg"]}),
        pa.table({"image": [photo, b"", None], "path": ["a", "b", "c"]}),
        pa.table({"image": held}),
        pa.table({"bytes": pa.array([photo] * 3, pa.large_binary())}),
    ):
        stream = io.BytesIO()
        pq.write_table(table, stream, row_group_size=2, compression="zstd")
        seeds.append(stream.getvalue())
    return seeds


def tar_seeds() -> list[bytes]:
    """A tar of photos with what lies beside them, and one with members that are no files."""
    photo = photo_seeds()[0]
    seeds = []
    for kinds in ((tarfile.REGTYPE,), (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.REGTYPE)):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for number, kind in enumerate(kinds):
                for name, content in ((f"{number}/ü.jpg", photo), (f"{number}/ü.json", b"{}")):
                    member = tarfile.TarInfo(name)
                    member.type, member.size = kind, len(content)
                    if kind != tarfile.REGTYPE:
                        member.size, member.linkname = 0, "../../etc/passwd"
                    archive.addfile(member, io.BytesIO(content))
        seeds.append(stream.getvalue())
    return seeds


def check_photo_file(name: str, kind: str) -> Callable[[bytes, Path], None]:
    """A file that holds photos, or names them: every row can be read, or says why not."""

    def check(data: bytes, folder: Path) -> None:
        path = written(folder, name, data)
        allow(lambda: read_some(str(path), kind))

    return check


def read_some(path: str, kind: str) -> None:
    """The first rows of a source."""
    source = sources.open_source(path, format=kind)
    for index in range(min(len(source), 20)):
        source.path(index).encode()
        try:
            source.read(index)
        except PhotoProblem as problem:
            assert problem.status in STATUSES


# ---- our own files --------------------------------------------------------------------------------------


@functools.cache
def sound_run() -> dict[str, bytes]:
    """The files of a small run directory."""
    from cdul_fast.data.sinks import ShardData, write_json, write_shard, write_texts

    folder = Path(tempfile.mkdtemp())
    try:
        rng = np.random.default_rng(3)
        data = ShardData(
            paths=["a.jpg", "b.jpg", "c.jpg"],
            status=["ok", "missing", "ok"],
            error=[None, "gone", None],
            width=np.array([4, 0, 5], np.int32),
            height=np.array([3, 0, 6], np.int32),
            scores=rng.random((2, 4), np.float32),
            labels=[["dog"], [], []],
            cosines=rng.random((2, 10, 4), np.float32),
            embeddings=rng.random((2, 10, 8)).astype(np.float16),
        )
        classes = ["person", "dog", "cat", "bus"]
        config = settings.LabelConfig(source="/photos", out="run").to_dict()
        write_shard(folder, "00000", data, classes=classes, config=config, fingerprint="x")
        write_texts(folder, rng.random((4, 8), np.float32))
        model = {"name": "stub", "pretrained": "", "backend": "stub", "precision": "fp32", "fingerprint": "x",
                 "logit_scale": 100.0, "image_size": 32, "dim": 8}  # fmt: skip
        shared = {"format": 1, "version": "0", "config": config, "classes": classes, "model": model,
                  "root": "/photos", "inputs": 3, "shards": 1}  # fmt: skip
        write_json(folder / "manifest.json", shared | {"prompts": "p", "inputs_sha256": "s"})
        write_json(folder / "run.json", shared | {
            "counts": {"ok": 2, "missing": 1}, "stages": {"read": 0.1}, "limiting_stage": "read",
            "images_per_second": 3.0, "seconds": 1.0, "peak_memory_mib": 50.0, "finished": True,
            "thresholds": {"rule": "calibrated", "values": [0.1] * 4},
        })  # fmt: skip
        return {path.name: path.read_bytes() for path in folder.iterdir()}
    finally:
        shutil.rmtree(folder)


def check_run(name: str) -> Callable[[bytes, Path], None]:
    """A run directory in which one file is not as it should be, through everything that reads it."""

    def check(data: bytes, folder: Path) -> None:
        for other, content in sound_run().items():
            written(folder, other, content)
        written(folder, name, data)

        def read() -> None:
            run = open_run(folder)
            for parse in (
                lambda: run.scores(),
                lambda: run.table(),
                lambda: run.texts(),
                lambda: run.counts,
                lambda: run.missing_shards,
                lambda: run.view_layout,
                lambda: [(shard.cosines(), shard.embeddings()) for shard in run.shards],
                lambda: repr(run),
                lambda: run._repr_html_(),
                lambda: run.photo("a.jpg"),
            ):
                allow(parse)
            for shard in run.shards:
                shard_table_if_sound(shard, ["a.jpg", "b.jpg", "c.jpg"], 4)

        allow(read)
        allow(lambda: read_manifest(folder, None))

    return check


def run_seeds(name: str) -> Callable[[], list[bytes]]:
    """The sound file."""
    return lambda: [sound_run()[name]]


def journal_seeds() -> list[bytes]:
    """A journal of two records."""
    folder = Path(tempfile.mkdtemp())
    try:
        journal = Journal(folder / "journal.bin")
        ones = np.ones((10, 4), np.float32)
        for number in range(2):
            good = Row("a.jpg", "ok", None, 4, 3, ones[0], ones, ones.astype("f2"))
            journal.append([(number, good), (number + 5, Row("b", "missing", "gone", 0, 0))])
            journal.flush()
        journal.close()
        return [(folder / "journal.bin").read_bytes()]
    finally:
        shutil.rmtree(folder)


def check_journal(data: bytes, folder: Path) -> None:
    """A journal is cut to its sound beginning, whatever follows."""
    path = written(folder, "journal-00000.bin", data)
    rows = read_journal(path)
    assert all(isinstance(number, int) and isinstance(row, Row) for number, row in rows.items())
    assert read_journal(path).keys() == rows.keys()


def check_journal_payload(data: bytes, folder: Path) -> None:
    """What another program wrote with a sound checksum."""
    check_journal(struct.pack("<QI", len(data), zlib.crc32(data)) + data, folder)


def check_latent(data: bytes, folder: Path) -> None:
    """The file of the latent labels that a checkpoint names."""
    from cdul_fast.training.latent import LatentLabels

    labels = LatentLabels(np.full((5, 3), 0.5), folder)
    path = written(folder, "latent-1.f32", data)
    try:
        labels.restore(1)
    except ValueError as error:  # which load_checkpoint turns into one line
        assert "cannot be resumed" in str(error)
        return
    assert path.stat().st_size == 60


def checkpoint_seeds() -> list[bytes]:
    """A file as `save_network` writes them."""
    from safetensors.numpy import save

    state = json.dumps({"format": 1, "epoch": 1, "history": []})
    return [save({"network.head.weight": np.ones((2, 3), np.float32)}, {"state": state})]


def check_checkpoint(data: bytes, folder: Path) -> None:
    """Weights of a trained model."""
    from cdul_fast.training.checkpoint import load_tensors

    path = written(folder, "best.safetensors", data)
    allow(lambda: load_tensors(path))


def model_seeds() -> list[bytes]:
    """What ``model.json`` holds."""
    content = {"format": 1, "version": "0", "classes": ["dog", "cat"], "backbone": "resnet18", "method": "an",
               "options": {}, "image_size": 64, "fit": "squash"}  # fmt: skip
    return [json.dumps(content).encode()]


def check_model(data: bytes, folder: Path) -> None:
    """The description of a trained model."""
    from cdul_fast.training.model_dir import read_info

    written(folder, "model.json", data)
    allow(lambda: read_info(folder))


COCO = {
    "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
    "categories": [{"id": 3, "name": "dog"}],
    "annotations": [{"image_id": 1, "category_id": 3}],
}
VOC = (
    '<?xml version="1.0" encoding="utf-8"?><annotation><object><name>dog</name><difficult>0</difficult>'
    "<bndbox><xmin>1</xmin></bndbox></object><object><name>pottedplant</name></object></annotation>"
)
CONFIGS = texts(
    "source: photos\ngrid: 2\nscale: 20.5\nquiet: true\ntop_k: null\n",
    "source: a\ntemplate: imagenet\nshard: 1/2\n&x limit: *x",
    json.dumps({"source": "a", "grid": 2, "scale": 20.5, "quiet": True, "top_k": None, "shard": "1/2"}),
)
CLASSES = texts(
    "[dog, cat]", "dog: [a dog, '{} !']\ncat:\n- x\n", "- dog\n- 1", '{"dog": ["a"], "cat": null}'
)

# Those that hold JSON, or may, are mutated by their structure too.
JSON_TARGETS = ("classes-yaml", "config", "coco", "run-json", "manifest", "model")
TARGETS = {
    "photo": Target(check_photo, photo_seeds),
    "classes-txt": Target(check_classes(".txt"), texts("dog\n# no\ncat\r\n\npotted plant\n")),
    "classes-yaml": Target(check_classes(".yaml"), CLASSES),
    "config": Target(check_config, CONFIGS),
    "csv": Target(
        check_source("t.csv", truth=True), texts('path,labels\na.jpg,dog;cat\n"b,c.jpg",\n', "a.jpg,x\n")
    ),
    "tsv": Target(check_source("t.tsv", truth=True), texts("image\tlabels\na.jpg\tdog;cat\n")),
    "list": Target(check_list, texts("a.jpg\nb c.jpg\r\n", "a\nb\0c\0")),
    "coco": Target(check_source("c.json", truth=True), texts(json.dumps(COCO))),
    "voc-xml": Target(check_voc_xml, texts(VOC)),
    "voc-split": Target(check_voc_split, texts("2008_000001\n2008_000002 -1\n")),
    "nus-list": Target(check_nus("ImageList/TrainImagelist.txt"), texts("actor\\0001.jpg\nb\\2.jpg\n")),
    "nus-concepts": Target(check_nus("ConceptsList/Concepts81.txt"), texts("dog\ncat\n")),
    "nus-labels": Target(check_nus("TrainTestLabels/Labels_dog_Train.txt"), texts("1\n0\n")),
    "parquet": Target(check_photo_file("photos.parquet", "parquet"), parquet_seeds),
    "tar": Target(check_photo_file("photos.tar", "webdataset"), tar_seeds),
    "run-json": Target(check_run("run.json"), run_seeds("run.json")),
    "manifest": Target(check_run("manifest.json"), run_seeds("manifest.json")),
    "labels": Target(check_run("labels-00000.parquet"), run_seeds("labels-00000.parquet")),
    "views": Target(check_run("views-00000.safetensors"), run_seeds("views-00000.safetensors")),
    "texts": Target(check_run("texts.safetensors"), run_seeds("texts.safetensors")),
    "journal": Target(check_journal, journal_seeds),
    "journal-payload": Target(check_journal_payload, lambda: [journal_seeds()[0][12:]]),
    "latent": Target(check_latent, lambda: [np.zeros(15, "<f4").tobytes()]),
    "checkpoint": Target(check_checkpoint, checkpoint_seeds),
    "model": Target(check_model, model_seeds),
}
