"""The page of a trained model: loss, mAP, AP per class, and class activation maps over the epochs."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from cdul_fast.data.sinks import replacing


def write_training_report(folder: str | Path) -> Path:
    """Write ``report.html`` of a model directory from the files in it.

    Args:
        folder: The model directory; needs ``history.json``.

    Returns:
        The page's path.
    """
    import jinja2

    folder = Path(folder)
    content = json.loads((folder / "history.json").read_text(encoding="utf-8"))
    info = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    history: list[dict[str, Any]] = content["history"]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True
    )
    page = environment.get_template("training.html.j2").render(
        info=info,
        history=history,
        charts=_charts(history),
        classes=_per_class(history, content["classes"]),
        seconds=content["seconds"],
        limiting=content["limiting_stage"],
        cams=_cams(folder / "cams"),
    )
    with replacing(folder / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder / "report.html"


def _charts(history: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(title, data URI of an SVG) of each figure there is data for."""
    wanted = (
        ("Loss", ("loss",)),
        ("mAP, %", ("map", "label_map")),
        ("Labels a photo", ("label_positives",)),
        ("Share of labels that crossed 1/2", ("label_changed",)),
    )
    names = {"map": "photos of --val", "label_map": "labels of the training photos"}
    charts = []
    for title, keys in wanted:
        lines = {
            names.get(key, title): [(e["epoch"], e[key]) for e in history if e.get(key) is not None]
            for key in keys
        }
        if any(lines.values()):
            charts.append((title, _chart({name: line for name, line in lines.items() if line})))
    return charts


def _chart(lines: dict[str, list[tuple[int, float]]]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 2.8), layout="constrained")
    axes = figure.add_subplot()
    for name, points in lines.items():
        axes.plot(
            [x for x, _ in points], [y for _, y in points], label=name, marker="." if len(points) < 2 else ""
        )
    axes.set_xlabel("epoch")
    axes.grid(alpha=0.3)
    if len(lines) > 1:
        axes.legend(fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _per_class(history: list[dict[str, Any]], classes: list[str]) -> list[tuple[str, float]]:
    """(class, AP in percent) at the last epoch, best first, classes that were not judged left out."""
    last = history[-1].get("ap") if history else None
    found = [
        (name, float(value)) for name, value in zip(classes, last or [], strict=False) if value is not None
    ]
    return sorted(found, key=lambda pair: -pair[1])


def _cams(folder: Path) -> list[list[tuple[int, str]]]:
    """For each photo, (epoch, data URI) in the order of epochs."""
    rows: dict[str, list[tuple[int, str]]] = {}
    for path in sorted(folder.glob("*-*.jpg")):
        photo, _, epoch = path.stem.partition("-")
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        rows.setdefault(photo, []).append((int(epoch), "data:image/jpeg;base64," + data))
    return list(rows.values())
