"""The report: what it counts, which photos it chooses, how it takes scores apart, how large it gets."""

from __future__ import annotations

import re
import time
import weakref
from collections import Counter
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run_factory import CLASSES, make_photo, make_run, synthetic_cosines

from cdul_fast.data.run_dir import Shard, open_run
from cdul_fast.errors import CdulError
from cdul_fast.pseudo_labels import LabelSettings
from cdul_fast.report import main
from cdul_fast.reporting import figures, write_report
from cdul_fast.reporting.collect import collect, cooccurrence
from cdul_fast.reporting.parts import parts_agree, score_parts, tile_scores
from cdul_fast.reporting.samples import choose, load_samples
from cdul_fast.reporting.thumbnails import make_thumbnail
from cdul_fast.views import view_boxes


def words(page: Path) -> str:
    """A page's text without tags."""
    text = page.read_text("utf-8")
    body = re.sub(r"<(script|style)>.*?</\1>", " ", text[text.index("<body>") :], flags=re.S)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", body)).split())


def test_counts_equal_a_direct_count(tmp_path: Path) -> None:
    failures = [("a", "missing", "gone"), ("b", "decode_error", "bad"), ("c", "decode_error", "bad")]
    run = open_run(make_run(tmp_path / "run", photos=50, failures=failures, shard_size=7, write_photos=False))
    stats = collect(run, samples=8)
    table = run.table().to_pylist()
    ok = [row for row in table if row["status"] == "ok"]
    assert (
        stats.counts == Counter(row["status"] for row in table) == {"ok": 50, "missing": 1, "decode_error": 2}
    )
    assert stats.reasons == {("missing", "gone"): 1, ("decode_error", "bad"): 2}
    expected = Counter(name for row in ok for name in row["labels"])
    assert stats.label_counts.tolist() == [expected[name] for name in CLASSES]
    per_photo = Counter(len(row["labels"]) for row in ok)
    assert {n: int(count) for n, count in enumerate(stats.labels_per_photo) if count} == per_photo
    assert int(stats.best_histogram.sum()) == 50
    assert int(stats.all_histogram.sum()) == 50 * len(CLASSES)
    best = np.array([max(row["scores"]) for row in ok])
    np.testing.assert_array_equal(stats.best_histogram, np.histogram(best, 200, (0, 1))[0])
    sums = [sum(row["scores"][c] for row in ok if name in row["labels"]) for c, name in enumerate(CLASSES)]
    np.testing.assert_allclose(stats.label_score_sums, sums, rtol=1e-6)
    assert stats.parts_known
    assert np.all(stats.label_whole_sums <= stats.label_score_sums + 1e-6)


def test_pairs_equal_a_direct_count(tmp_path: Path) -> None:
    run = open_run(make_run(tmp_path / "run", photos=60, shard_size=9, write_photos=False))
    chosen = [4, 0, 2]
    pairs = cooccurrence(run, chosen)
    rows = [set(labels) for labels in run.table(["labels"])["labels"].to_pylist()]
    names = [CLASSES[c] for c in chosen]
    assert pairs.tolist() == [[sum(a in row and b in row for row in rows) for b in names] for a in names]
    assert pairs.sum() > pairs.trace() > 0


@pytest.mark.parametrize("aggregator", ["global", "mean", "max", "cdul"])
@pytest.mark.parametrize("lam", [-1.0, -0.3, 0.0, 0.6, 1.0])
@pytest.mark.parametrize("zeta", [0.0, 0.4])
@pytest.mark.parametrize("views", [1, 10])
def test_parts_add_up_to_the_score(aggregator: str, lam: float, zeta: float, views: int) -> None:
    from cdul_fast import ops

    cosines = synthetic_cosines(np.random.default_rng(3), 17, views, 5)
    how = LabelSettings(aggregator, 50.0, zeta, lam)
    whole, tiles = score_parts(cosines, how)
    scores = ops.aggregate(cosines, aggregator=aggregator, scale=50.0, zeta=zeta, lam=lam)
    np.testing.assert_allclose(whole + tiles, scores, atol=2e-6)
    assert whole.min() >= 0
    assert tiles.min() >= 0
    assert parts_agree(scores, whole, tiles)
    assert not parts_agree(scores + 0.01, whole, tiles)
    if aggregator == "global" or views == 1:
        assert not tiles.any()
    else:
        assert whole.any()
        assert tiles.any()


def test_tile_scores_are_each_tile_s_own_softmax() -> None:
    cosines = synthetic_cosines(np.random.default_rng(4), 3, 5, 4)
    soft = np.exp(100.0 * (cosines[:, 1:] - cosines[:, 1:].max(axis=2, keepdims=True)).astype(np.float64))
    soft /= soft.sum(axis=2, keepdims=True)
    np.testing.assert_allclose(tile_scores(cosines, 100.0), soft, atol=2e-6)


def test_the_outlined_tile_is_the_one_with_the_highest_score(tmp_path: Path) -> None:
    size = (301, 97)
    overlap = {"overlap": 0.3}  # so that tiles at the edge are smaller than those in the middle
    run = open_run(make_run(tmp_path / "run", photos=20, sizes=(size,), shard_size=6, config=overlap))
    shown = load_samples(run, choose(collect(run, 20), 20))
    by_path = dict(zip(run.scores()[0], np.concatenate([s.cosines() for s in run.shards]), strict=True))
    boxes = view_boxes(*size, overlap=0.3)[1:]
    seen = set()
    for sample in (s for group in shown.values() for s in group):
        soft = tile_scores(by_path[sample.path][None], 100.0)[0]
        for bar in sample.bars:
            best = int(soft[:, run.classes.index(bar.name)].argmax())
            assert bar.tile is not None
            left, top = bar.tile.left * size[0], bar.tile.top * size[1]
            box = (left, top, left + bar.tile.width * size[0], top + bar.tile.height * size[1])
            assert box == pytest.approx(tuple(boxes[best]))
            assert bar.tile.score == pytest.approx(float(soft[best, run.classes.index(bar.name)]))
            seen.add(best)
    assert seen == set(range(9))


def test_one_easy_class_does_not_fill_the_confident_photos(tmp_path: Path) -> None:
    cosines = np.full((400, 10, len(CLASSES)), 0.18, np.float32)
    cosines[:, :, 0] += 0.1  # all but certain ...
    cosines[-7:] = 0.18
    for c in range(1, len(CLASSES)):
        cosines[-c, :, c] += 0.03  # ... and one photo of each other class, less so
    run = open_run(
        make_run(tmp_path / "run", photos=400, cosines=cosines, write_photos=False, shard_size=150)
    )
    shown = load_samples(run, choose(collect(run, 8), 8))["confident"]
    assert len({sample.bars[0].name for sample in shown}) == len(shown)


def test_groups_hold_what_they_say_and_no_photo_twice(tmp_path: Path) -> None:
    run = open_run(make_run(tmp_path / "run", photos=200, shard_size=30, write_photos=False))
    shown = load_samples(run, choose(collect(run, 24), 24))
    assert [len(group) for group in shown.values()] == [6, 6, 6, 6]
    assert list(shown) == ["confident", "uncertain", "many", "few"]
    paths = [sample.path for group in shown.values() for sample in group]
    assert len(set(paths)) == 24
    names, scores = run.scores()
    best = dict(zip(names, scores.max(axis=1), strict=True))
    counts = {row["path"]: len(row["labels"]) for row in run.table().to_pylist() if row["scores"]}
    assert (
        min(best[s.path] for s in shown["confident"])
        > 0.8
        > 0.4
        > max(best[s.path] for s in shown["uncertain"])
    )
    assert [s.labels for s in shown["many"]] == sorted(counts.values(), reverse=True)[:6]
    above = {s.path for group in ("confident", "uncertain", "many") for s in shown[group]}
    assert {s.labels for s in shown["few"]} == {min(n for path, n in counts.items() if path not in above)}
    assert len({s.bars[0].name for s in shown["confident"]}) >= 5
    for sample in (s for group in shown.values() for s in group):
        assert sample.labels == counts[sample.path] == sum(bar.is_label for bar in sample.bars)
        values = [bar.score for bar in sample.bars]
        assert values == sorted(values, reverse=True)


def test_photos_with_equally_many_labels_are_not_called_many_or_few(tmp_path: Path) -> None:
    run = open_run(make_run(tmp_path / "run", photos=30, config={"threshold": 2.0}, write_photos=False))
    assert {name: len(group) for name, group in choose(collect(run, 12), 12).items()} == {
        "confident": 6,
        "uncertain": 6,
    }


def test_a_small_run_shows_every_photo_once(tmp_path: Path) -> None:
    run = open_run(make_run(tmp_path / "run", photos=5, write_photos=False))
    chosen = choose(collect(run, 24), 24)
    assert sum(map(len, chosen.values())) == 5


def test_shards_are_read_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", photos=60, shard_size=6, write_photos=False)
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0
    read = Shard.cosines

    def counted(self: Shard) -> np.ndarray:
        nonlocal most
        array = read(self).copy()
        alive.append(weakref.ref(array))
        most = max(most, sum(ref() is not None for ref in alive))
        return array

    monkeypatch.setattr(Shard, "cosines", counted)
    write_report(run)
    assert len(alive) >= 10
    assert most <= 2  # the one being read, and the last one until its name is bound again


@pytest.mark.parametrize("embeddings", [False])
def test_ten_thousand_photos_stay_under_5_mb_and_10_s(tmp_path: Path, embeddings: bool) -> None:
    run = make_run(
        tmp_path / "run",
        photos=10_000,
        classes=[f"class number {i}" for i in range(80)],
        write_photos=False,
        embeddings=embeddings,
    )
    root = tmp_path / "run-photos"
    shown = [
        s.path
        for g in load_samples(open_run(run), choose(collect(open_run(run), 48), 48)).values()
        for s in g
    ]
    rng = np.random.default_rng(0)
    rows = {row["path"]: (row["width"], row["height"]) for row in open_run(run).table().to_pylist()}
    for path in shown:  # noise compresses worse than any photo
        width, height = rows[path]
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(root / path, quality=95)
    start = time.perf_counter()
    page = write_report(run, samples=48)
    assert time.perf_counter() - start < 10
    assert page.read_text("utf-8").count("data:image/jpeg") >= 40
    assert page.stat().st_size < 5_000_000


def test_a_page_needs_nothing_beside_itself(tmp_path: Path) -> None:
    text = write_report(make_run(tmp_path / "run")).read_text("utf-8")
    links = re.findall(r"""(?:src|href|action)\s*=\s*["']?([^"'\s>]+)""", text)
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"@import|url\(|https?:", text)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", photos=30, shard_size=10, write_photos=False)
    (run / "labels-00001.parquet").unlink()
    text = words(write_report(run))
    assert "labels-00001.parquet" in text
    assert "20 of 21" in text


def test_parts_of_a_run_come_together(tmp_path: Path) -> None:
    for part in (1, 2):
        make_run(
            tmp_path / "run", photos=4, shard=(part, 2), seed=part, root=tmp_path / "photos", failures=()
        )
    assert "Photos labelled 8 " in words(write_report(tmp_path / "run"))


@pytest.mark.parametrize(
    "options",
    [
        {"photos": 0},
        {"photos": 0, "failures": ()},
        {"photos": 1, "grid": 1},
        {"photos": 6, "view_layout": "global,max,min"},
        {"photos": 6, "classes": ["only"]},
        {"photos": 6, "config": {"threshold": 2.0}},
        {"photos": 6, "config": {"scale": None}},
        {"photos": 3, "sizes": ((1, 400), (400, 1), (1, 1))},
    ],
)
def test_odd_runs_still_give_a_page(tmp_path: Path, options: dict[str, Any]) -> None:
    run = make_run(tmp_path / "run", **options)
    text = write_report(run).read_text("utf-8")
    assert text.rstrip().endswith("</html>")
    has_tiles = options.get("grid") != 1 and "view_layout" not in options and options["photos"] > 0
    assert ('class="tile"' in text) == has_tiles


def test_without_views_the_bars_have_one_part(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", photos=6)
    (run / "views-00000.safetensors").unlink()
    text = write_report(run).read_text("utf-8")
    assert 'class="part plain"' in text
    assert 'class="part tiles"' not in text


def test_scores_made_by_other_settings_are_not_taken_apart(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", photos=6, config={"scale": 20.0})
    assert 'class="part tiles"' not in write_report(run).read_text("utf-8")


def test_an_interrupted_run_has_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", photos=6)
    (run / "run.json").rename(run / "manifest.json")
    info = (run / "manifest.json").read_text()
    for key in ("stages", "seconds", "counts", "images_per_second", "peak_memory_mib", "limiting_stage"):
        info = re.sub(rf'"{key}": (\{{[^}}]*\}}|[^,}}]*), ?', "", info)
    (run / "manifest.json").write_text(info)
    assert "Photos labelled 6 of 7" in words(write_report(run))


def test_the_rule_that_chose_the_labels_is_shown(tmp_path: Path) -> None:
    stored = {"rule": "calibrated", "power": 0.51234567, "values": dict.fromkeys(CLASSES, 0.125)}
    run = make_run(tmp_path / "run", photos=4, config={"threshold": None}, info={"thresholds": stored})
    text = words(write_report(run))
    assert "Thresholds rule calibrated power 0.51235" in text
    assert "potted plant 0.125" in text
    assert "threshold 0.2" not in text
    fixed = make_run(tmp_path / "fixed", photos=4, info={"thresholds": {"rule": "fixed", "value": 0.2}})
    assert "threshold 0.2" in words(write_report(fixed))


def test_failures_past_the_limit_are_counted(tmp_path: Path) -> None:
    failures = [(f"{i}.jpg", "decode_error" if i % 3 else "missing", f"reason {i % 3}") for i in range(300)]
    text = words(write_report(make_run(tmp_path / "run", photos=2, failures=failures)))
    assert "299.jpg" not in text
    assert "199.jpg" in text
    assert "And 100 more" in text
    assert "100 × decode_error: reason 1" in text


def test_thumbnails_say_why_there_is_none(tmp_path: Path) -> None:
    make_photo(tmp_path / "a.jpg", (90, 60), 0)
    (tmp_path / "text.jpg").write_text("no photo")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-300])
    assert make_thumbnail(tmp_path / "a.jpg", edge=32, size=(90, 60)).uri.startswith(
        "data:image/jpeg;base64,"
    )
    problems = {
        name: make_thumbnail(tmp_path / name, edge=32, size=(90, 61)).problem
        for name in ("a.jpg", "text.jpg", "folder.jpg", "cut.jpg", "none.jpg")
    }
    assert problems == {
        "a.jpg": "photo has changed since the run",
        "text.jpg": "photo cannot be read",
        "folder.jpg": "photo cannot be read",
        "cut.jpg": "photo cannot be read",
        "none.jpg": "photo not found",
    }


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA", "I;16"])
def test_thumbnails_of_every_mode(tmp_path: Path, mode: str) -> None:
    name = tmp_path / ("photo.tif" if mode == "CMYK" else "photo.png")
    if mode == "I;16":
        Image.fromarray(np.full((40, 50), 30_000, np.uint16)).save(name)
    else:
        Image.new("RGB", (50, 40), (200, 30, 30)).convert(mode).save(name)
    assert make_thumbnail(name, edge=16, size=(50, 40)).uri


def test_thumbnails_turn_as_the_run_did(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (60, 40), "red").save(tmp_path / "turned.jpg", exif=exif)
    assert make_thumbnail(tmp_path / "turned.jpg", edge=32, size=(60, 40)).uri
    assert make_thumbnail(tmp_path / "turned.jpg", edge=32, size=(40, 60), exif_rotate=True).uri
    assert make_thumbnail(tmp_path / "turned.jpg", edge=32, size=(40, 60)).problem


def test_the_command_writes_where_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", photos=4)
    moved = tmp_path / "moved"
    (tmp_path / "run-photos").rename(moved)
    assert main([str(run)]) == 0
    assert (run / "report.html").read_text("utf-8").count("photo not found") >= 4
    out = tmp_path / "new" / "page.html"
    assert main([str(run), "--images-root", str(moved), "--out", str(out), "--samples", "2"]) == 0
    assert out.read_text("utf-8").count('<article class="card">') == 2
    assert capsys.readouterr().out.splitlines() == [str(run / "report.html"), str(out)]
    assert [p.name for p in out.parent.iterdir()] == ["page.html"]


def test_wrong_calls_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="samples"):
        write_report(make_run(tmp_path / "run", photos=1), samples=-1)
    with pytest.raises(CdulError, match="no run directory"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(CdulError, match="run directory is missing"):
        main([])
    with pytest.raises(CdulError, match="--samples"):
        main([str(tmp_path / "run"), "--samples", "-3"])


def test_numbers_read_well() -> None:
    assert [figures.score(v) for v in (1.0, 0.123, 0.0994, 0.0004, 0.0)] == [
        "1.00",
        "0.12",
        "0.099",
        "<0.001",
        "0",
    ]
    assert [figures.share(a, b) for a, b in ((1, 8), (0, 5), (1, 100_000), (9_999, 10_000), (0, 0))] == [
        "12\u202f%",
        "0\u202f%",
        "<0.1\u202f%",
        ">99.9\u202f%",
        "–",
    ]
    assert [figures.seconds(v) for v in (0.0, 0.42, 12.3, 185, 7600)] == [
        "0 s",
        "0.42 s",
        "12 s",
        "3 min 05 s",
        "2 h 06 min",
    ]
    assert figures.count(1234567) == "1\u202f234\u202f567"


def test_pair_cells_have_no_false_zero() -> None:
    table = figures.matrix(["a", "b"], np.array([[1000, 2], [2, 4]]))
    assert table.totals == [1000, 4]
    assert [[cell.text for cell in row] for row in table.rows] == [["100", "<1"], ["50", "100"]]


def test_histograms_keep_every_count() -> None:
    counts = np.zeros(200, np.int64)
    counts[[0, 3, 17, 36]] = [5, 1, 7, 2]
    chart = figures.linear_histogram(counts)
    assert chart.upper == 0.2
    assert sum(bin.count for bin in chart.bins) == 15
    assert chart.position(0.1) == pytest.approx(0.5)
    assert chart.position(0.3) is None
    logs = np.zeros(48, np.int64)
    logs[[20, 47]] = [3, 4]
    chart = figures.log_histogram(logs)
    assert sum(bin.count for bin in chart.bins) == 7
    assert [text for _, text in chart.ticks] == ["10⁻⁴", "10⁻³", "10⁻²", "10⁻¹", "1"]
    assert figures.log_histogram(np.zeros(48, np.int64)).highest == 0
