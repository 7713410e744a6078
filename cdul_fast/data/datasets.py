"""Readers of the data sets that the paper measures on: PASCAL VOC, COCO and NUS-WIDE.

Each has one function for the photos of a run and one for the true labels. Objects marked "difficult" in VOC
are left out of the truth by default, as in the published figures.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from xml.parsers import expat

from cdul_fast.data.decode import SUFFIXES
from cdul_fast.data.paths import one_line, show_path
from cdul_fast.data.source import Source, read_lines, require_folder, rooted
from cdul_fast.errors import ConfigError

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "dining table",
    "dog",
    "horse",
    "motorbike",
    "person",
    "potted plant",
    "sheep",
    "sofa",
    "train",
    "tv monitor",
)

Difficult = Literal["absent", "present", "ignore"]

# Names as the files have them -> as the prompts want them.
_VOC_NAMES = {name.replace(" ", ""): name for name in VOC_CLASSES}


def voc_class(name: str) -> str:
    """A VOC class name as prompts want it: ``pottedplant`` becomes ``potted plant``."""
    return _VOC_NAMES.get(name, name)


def _voc_root(folder: str) -> Path:
    path = require_folder(Path(folder).absolute(), "a VOC folder, with JPEGImages in it")
    require_folder(path / "JPEGImages", "the photos of a VOC folder")
    return path


def _voc_ids(root: Path, split: str) -> list[str]:
    main = root / "ImageSets" / "Main"
    path = main / f"{split}.txt"
    if "/" in split or not path.is_file():
        found = sorted(p.stem for p in main.glob("*.txt") if "_" not in p.stem) if main.is_dir() else []
        raise ConfigError(
            f"{show_path(path)}: no such split; this VOC folder has: {', '.join(found) or 'none'}"
        )
    ids = [line.split()[0] for line in read_lines(path, "ids of a split")]
    for one in ids:
        if "/" in one:
            raise ConfigError(f"{show_path(path)}: '{one_line(one, 80)}' is no photo id")
    return ids


def read_voc(folder: str, split: str | None) -> Source:
    """Photos of a VOC folder (``VOC2007``, ``VOC2012``): those of a split, or all in ``JPEGImages``.

    Raises:
        ConfigError: A file or folder of the layout is missing; names it.
    """
    root = _voc_root(folder)
    if split is None:
        photos = sorted(p.name for p in (root / "JPEGImages").iterdir() if p.suffix.lower() in SUFFIXES)
    else:
        photos = [f"{one}.jpg" for one in _voc_ids(root, split)]
    return Source("voc", root, [f"JPEGImages/{name}" for name in photos], VOC_CLASSES)


def _parse_xml(data: bytes) -> ET.Element:
    """Parse XML that declares nothing: entities could grow without bound, or read other files.

    Raises:
        ValueError: There is a DOCTYPE.
        ExpatError: It is no XML.
    """

    def refuse(*_: object) -> None:
        raise ValueError("it has a DOCTYPE, which annotations never have")

    # The parser itself looks, not a search in the bytes: XML may come in any encoding.
    scan = expat.ParserCreate()
    scan.StartDoctypeDeclHandler = refuse
    scan.Parse(data, True)
    return ET.fromstring(data)


def voc_objects(file: Path) -> list[tuple[str, bool]]:
    """Class and "difficult" mark of every object in a VOC annotation file.

    Raises:
        ConfigError: The file is missing, no XML, or an object in it has no name.
    """
    shown = show_path(file)
    try:
        tree = _parse_xml(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"{shown}: {error.strerror or error} (a VOC annotation)") from None
    except (ET.ParseError, expat.ExpatError, ValueError, LookupError) as error:
        raise ConfigError(f"{shown}: not an XML file of annotations ({error})") from None
    objects = []
    for element in tree.iter("object"):
        name = (element.findtext("name") or "").strip()
        if not name:
            raise ConfigError(f"{shown}: an object without the field 'name'")
        objects.append((voc_class(name), (element.findtext("difficult") or "0").strip() == "1"))
    return objects


LabelSets = tuple[list[str], list[frozenset[str]], list[frozenset[str]]]


def voc_truth(folder: str, split: str | None = None, difficult: Difficult = "absent") -> LabelSets:
    """True labels of a VOC folder: paths, classes present, and classes to leave out of any figure.

    Args:
        folder: The folder that holds ``Annotations``.
        split: A split, or None for every annotated photo.
        difficult: What a class counts as where every object of it is marked difficult: ``absent`` (the
            default), ``present``, or ``ignore`` (neither).

    Raises:
        ConfigError: A file of the layout is missing or wrong; names it.
    """
    root = Path(folder).absolute()
    annotations = require_folder(root / "Annotations", "the annotations of a VOC folder")
    ids = sorted(p.stem for p in annotations.glob("*.xml")) if split is None else _voc_ids(root, split)
    present: list[frozenset[str]] = []
    ignored: list[frozenset[str]] = []
    for one in ids:
        objects = voc_objects(annotations / f"{one}.xml")
        easy = {name for name, hard in objects if not hard}
        only_hard = {name for name, hard in objects if hard} - easy
        present.append(frozenset(easy | only_hard if difficult == "present" else easy))
        ignored.append(frozenset(only_hard if difficult == "ignore" else ()))
    return [f"JPEGImages/{one}.jpg" for one in ids], present, ignored


def _load_coco(file: str) -> dict[str, Any]:
    shown = show_path(file)
    try:
        with Path(file).open(encoding="utf-8") as stream:
            content = json.load(stream)
    except OSError as error:
        raise ConfigError(f"{shown}: {error.strerror or error} (COCO annotations)") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{shown}: not a JSON file ({one_line(str(error), 120)})") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{shown}: COCO annotations are an object with 'images' and 'categories'")
    return content


def _entries(content: dict[str, Any], key: str, fields: dict[str, type], shown: str) -> list[dict[str, Any]]:
    """The list under a key of a COCO file, with the fields of every entry checked."""
    entries = content.get(key)
    if not isinstance(entries, list):
        raise ConfigError(f"{shown}: the field '{key}' is missing or not a list")
    for index, entry in enumerate(entries):
        for field, kind in fields.items():
            if not isinstance(entry, dict) or not isinstance(entry.get(field), kind):
                raise ConfigError(f"{shown}: {key}[{index}] has no field '{field}' of type {kind.__name__}")
    return entries


def _coco_categories(content: dict[str, Any], shown: str) -> dict[int, str]:
    entries = _entries(content, "categories", {"id": int, "name": str}, shown)
    return {entry["id"]: entry["name"] for entry in entries}


def _coco_images_folder(file: str, images: str | None) -> Path:
    """Where the photos of an annotation file lie: ``--images``, else the split's folder beside it."""
    if images is not None:
        return require_folder(Path(images), "--images")
    path = Path(file).absolute()
    match = re.fullmatch(r"[a-z_]+?_([a-z]+20\d\d)", path.stem)
    if match is not None:
        for folder in (path.parent.parent / match[1], path.parent.parent / "images" / match[1]):
            if folder.is_dir():
                return folder
    return path.parent


def read_coco(file: str, images: str | None) -> Source:
    """Photos of a COCO annotation file, in its order.

    Relative names count from ``images``, or else from the folder of the split (``train2014`` beside
    ``annotations``), or else from the file's own folder.

    Raises:
        ConfigError: The file is missing, or a field in it is missing or of the wrong type.
    """
    content, shown = _load_coco(file), show_path(file)
    listed = _entries(content, "images", {"id": int, "file_name": str}, shown)
    classes = tuple(_coco_categories(content, shown).values())
    root, names = rooted([entry["file_name"] for entry in listed], _coco_images_folder(file, images))
    return Source("coco", root, names, classes)


def coco_truth(file: str) -> LabelSets:
    """True labels of a COCO annotation file; crowds count as present.

    Raises:
        ConfigError: As for `read_coco`, or an annotation names an unknown photo or category.
    """
    content, shown = _load_coco(file), show_path(file)
    listed = _entries(content, "images", {"id": int, "file_name": str}, shown)
    categories = _coco_categories(content, shown)
    present: dict[int, set[str]] = {entry["id"]: set() for entry in listed}
    fields: dict[str, type] = {"image_id": int, "category_id": int}
    for index, entry in enumerate(_entries(content, "annotations", fields, shown)):
        if entry["image_id"] not in present:
            raise ConfigError(
                f"{shown}: annotations[{index}] names the image_id {entry['image_id']}, not listed"
            )
        if entry["category_id"] not in categories:
            raise ConfigError(
                f"{shown}: annotations[{index}] names the category_id {entry['category_id']}, not listed"
            )
        present[entry["image_id"]].add(categories[entry["category_id"]])
    labels = [frozenset(present[entry["id"]]) for entry in listed]
    return [entry["file_name"] for entry in listed], labels, []


_NUS_LISTS = {"train": "TrainImagelist.txt", "test": "TestImagelist.txt", None: "Imagelist.txt"}


def _nus_names(root: Path, split: str | None) -> list[str]:
    if split not in _NUS_LISTS:
        raise ConfigError(f"--split of a NUS-WIDE source is train or test, got {one_line(str(split), 40)!r}")
    folder = require_folder(root / "ImageList", "the lists of NUS-WIDE")
    lists = {path.name.lower(): path for path in folder.glob("*.txt")}
    wanted = _NUS_LISTS[split]
    path = lists.get(wanted.lower(), folder / wanted)
    # The lists were written on Windows: actor\0001_2124494179.jpg.
    return [line.replace("\\", "/") for line in read_lines(path, "a NUS-WIDE list of photos")]


def _nus_concepts(root: Path) -> list[str]:
    for path in (root / "ConceptsList" / "Concepts81.txt", root / "Concepts81.txt"):
        if path.is_file():
            concepts = read_lines(path, "the concepts of NUS-WIDE")
            if any("/" in concept for concept in concepts):
                raise ConfigError(f"{show_path(path)}: a concept's name holds a slash")
            return concepts
    raise ConfigError(f"{show_path(root)}: neither ConceptsList/Concepts81.txt nor Concepts81.txt")


def read_nus(folder: str, images: str | None, split: str | None) -> Source:
    """Photos of a NUS-WIDE folder: a split's, or all; they lie in ``images``, or else in ``Flickr``.

    Raises:
        ConfigError: A file of the layout is missing; names it.
    """
    root = require_folder(Path(folder), "a NUS-WIDE folder, with ImageList in it")
    names = _nus_names(root, split)
    flickr = root / "Flickr"
    photos = images or (flickr if flickr.is_dir() else root)
    return Source("nus", *rooted(names, photos), classes=tuple(_nus_concepts(root)))


def nus_truth(folder: str, split: str | None = None) -> LabelSets:
    """True labels of a NUS-WIDE folder: 81 concepts, one file of zeros and ones a concept.

    Raises:
        ConfigError: A file is missing, of the wrong length, or holds anything but 0 and 1; names it.
    """
    root = require_folder(Path(folder), "a NUS-WIDE folder, with ImageList in it")
    names = _nus_names(root, split)
    present: list[set[str]] = [set() for _ in names]
    for concept in _nus_concepts(root):
        path = _nus_label_file(root, concept, split)
        lines = read_lines(path, f"labels of the concept {one_line(concept, 60)}")
        if len(lines) != len(names):
            raise ConfigError(f"{show_path(path)}: {len(lines)} lines for {len(names)} photos")
        for index, line in enumerate(lines):
            if line not in ("0", "1"):
                raise ConfigError(
                    f"{show_path(path)}, line {index + 1}: wants 0 or 1, got {one_line(line, 40)!r}"
                )
            if line == "1":
                present[index].add(concept)
    return names, [frozenset(names) for names in present], []


def _nus_label_file(root: Path, concept: str, split: str | None) -> Path:
    folders: Sequence[str] = ("Groundtruth", ".")
    if split is None:
        name, inner = f"Labels_{concept}.txt", "AllLabels"
    else:
        name, inner = f"Labels_{concept}_{split.capitalize()}.txt", "TrainTestLabels"
    paths = [root / outer / inner / name for outer in folders]
    return next((path for path in paths if path.is_file()), paths[-1])
