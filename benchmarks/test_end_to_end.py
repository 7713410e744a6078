"""The label command on real photos, against what a user would write, and against its own encoder alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cdul_fast
from benchmarks.rivals import label as rivals
from benchmarks.timing import Race, library_threads
from cdul_fast import encoders
from cdul_fast.config import LabelConfig
from cdul_fast.data.sources import open_source
from cdul_fast.execution.work import ScoreSpec, ViewSpec, prepare_photo, score_views

ROOT = Path(__file__).resolve().parents[1]
CLASSES = (
    "person", "bicycle", "car", "motorcycle", "bus", "train", "boat", "traffic light", "bench", "bird", "cat",
    "dog", "horse", "sheep", "cow", "umbrella", "chair", "couch", "potted plant", "dining table",
)  # fmt: skip
THREADS = 2


@pytest.fixture(scope="module")
def folder(photo_paths: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Links to the photos, and the class list beside them."""
    return _linked(tmp_path_factory.mktemp("photos"), photo_paths)


def _linked(folder: Path, paths: Iterable[Path]) -> Path:
    for path in paths:
        (folder / path.name).symlink_to(path)
    (folder.parent / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file of random ViT-B-32 weights for both sides, with a logit scale that spreads the scores."""
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32", pretrained=None)
    path = tmp_path_factory.mktemp("weights") / "vit-b-32.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return path


def _config(folder: Path, out: Path, cache: Path, **settings: Any) -> LabelConfig:
    defaults: dict[str, Any] = {
        "source": str(folder), "classes": str(folder.parent / "classes.txt"), "out": str(out),
        "cache_dir": str(cache), "threads": THREADS, "overwrite": True, "quiet": True, "report": False,
    }  # fmt: skip
    return LabelConfig(**{**defaults, **settings})


def _keep_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """One loaded encoder serves every run, as one loaded network serves the loops it is compared with."""
    create, made = encoders.create_encoder, {}

    def kept(*arguments: Any, **settings: Any) -> Any:
        key = (*arguments, settings["backend"], settings["precision"])
        if key not in made:
            made[key] = create(*arguments, **settings)
            monkeypatch.setattr(made[key], "close", lambda: None)
        return made[key]

    monkeypatch.setattr(encoders, "create_encoder", kept)


def _scores(out: Path) -> np.ndarray:
    return cdul_fast.open_run(str(out)).scores()[1]


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, over the classes of each photo, averaged."""
    ranks = [np.argsort(np.argsort(scores, axis=1), axis=1).astype(float) for scores in (a, b)]
    rows = [np.corrcoef(x, y)[0, 1] for x, y in zip(*ranks, strict=True)]
    return round(float(np.mean(rows)), 4)


@pytest.mark.parametrize("precision", ["bf16", pytest.param("int8", marks=pytest.mark.slow)])
def test_label_with_vit_b_32(
    race: Race, rounds: Any, weights: Path, photo_paths: list[Path],
    tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Neither side's time has the loading of its network in it; both begin with files and end with files."""
    import open_clip

    _keep_encoders(monkeypatch)
    photo_paths = photo_paths[: rounds(16)]
    (tmp_path / "photos").mkdir()
    folder = _linked(tmp_path / "photos", photo_paths)
    model, _, transform = open_clip.create_model_and_transforms("ViT-B-32", pretrained=str(weights))
    model.eval()
    fast = open_clip.create_model("ViT-B-32", pretrained=str(weights), precision="pure_bf16").eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    with torch.inference_mode():
        texts = model.encode_text(tokenizer([f"a photo of a {name}." for name in CLASSES]))
        texts = texts / texts.norm(dim=-1, keepdim=True)
    scale = float(model.logit_scale.exp())
    cache = tmp_path / "cache"

    def ours() -> None:
        cdul_fast.label_images(
            _config(
                folder, tmp_path / "ours", cache, model="ViT-B-32", pretrained=str(weights), quickgelu=False,
                backend="openvino", precision=precision,
            )
        )  # fmt: skip

    def loop(run: Callable[..., np.ndarray], network: Any) -> Callable[[], np.ndarray]:
        return lambda: run(photo_paths, tmp_path / run.__name__, network, transform, texts, scale)

    with library_threads(THREADS):
        ours()  # converts and loads the model, as a first run does
        loops = {"plain": loop(rivals.plain, model)}
        exact = loops["plain"]()
        results = {"label": _scores(tmp_path / "ours")}
        if precision == "bf16":
            loops["strong"] = loop(rivals.strong, fast)
            results["strong"] = loops["strong"]()
        agreement = {
            name: {
                "largest score difference": round(float(np.abs(scores - exact).max()), 5),
                "rank correlation": _rank_correlation(scores, exact),
            }
            for name, scores in results.items()
        }
        targets = {"bf16": {"plain": 2.2, "strong": 1.12}, "int8": {"plain": 3.6}}.get(precision, {})
        race.run(
            ours,
            loops,
            rounds=rounds(3),
            target=targets,
            subject=f"label, {precision}",
            notes={"photos": len(photo_paths), "agreement with plain": agreement},
            warmup=0,
        )


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ViT-B-32", "RN50"])
def test_pipeline_against_its_encoder(
    race: Race, rounds: Any, photo_paths: list[Path], tmp_path: Path, model: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The whole pipeline must keep 97 % of the rate of its encoder on ready pixels."""
    _keep_encoders(monkeypatch)
    photo_paths = photo_paths[:20]
    (tmp_path / "photos").mkdir()
    folder = _linked(tmp_path / "photos", photo_paths)
    cache = tmp_path / "cache"
    config = _config(folder, tmp_path / "run", cache, model=model, pretrained="none", backend="openvino")
    runs = [cdul_fast.label_images(config)]
    encoder = encoders.create_encoder(model, "none", backend="openvino", precision="auto")
    views = 10 * len(photo_paths)
    ready = torch.randn(encoder.batch, 3, encoder.image_size, encoder.image_size)
    ready = ready.to(getattr(torch, encoder.input_dtype))

    def encoder_alone() -> None:
        """As many calls at once as the encoder likes."""
        calls = -(-views // len(ready))
        with ThreadPoolExecutor(encoder.parallel_calls) as pool:
            list(pool.map(lambda _: encoder.embed_images(ready), range(calls)))

    def pipeline() -> None:
        runs.append(cdul_fast.label_images(config))

    race.run(
        pipeline, {"encoder alone": encoder_alone}, rounds=rounds(3), target={"encoder alone": 0.97},
        subject=f"label, {model}", warmup=0,
        notes={"views": views, "views of the encoder's calls": -(-views // len(ready)) * len(ready)},
    )  # fmt: skip


def test_tiny_pipeline_against_its_stages(
    race: Race, rounds: Any, folder: Path, photo_paths: list[Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Where decoding shares the cores: within 10 % of the CPU time of the stages over the cores."""
    create_encoder = encoders.create_encoder
    _keep_encoders(monkeypatch)
    many = tmp_path / "photos"
    many.mkdir()
    for copy in range(rounds(16)):
        for path in photo_paths:
            (many / f"{copy}-{path.name}").symlink_to(path)
    config = _config(many, tmp_path / "run", tmp_path / "cache", model="tiny", classes=None, backend="auto")
    cdul_fast.label_images(config)

    encoder = create_encoder("tiny", "openai", threads=1, cache_dir=tmp_path / "cache")
    spec, source = ViewSpec.of(config, encoder), open_source(str(many))
    photos = len(source) // THREADS
    pixels = torch.empty(encoder.batch, spec.views, 3, spec.size, spec.size, dtype=getattr(torch, spec.dtype))
    texts = cdul_fast.open_run(tmp_path / "run").texts()
    scores = ScoreSpec(config.aggregator, encoder.logit_scale, config.zeta, config.lam)

    def stages_alone() -> None:
        """The stages one after the other on one thread, for a thread's share of the photos."""
        for first in range(0, photos, len(pixels)):
            count = min(len(pixels), photos - first)
            for slot in range(count):
                assert prepare_photo(source, first + slot, spec, pixels[slot]).status == "ok"
            embeddings = encoder.embed_images(pixels[:count].flatten(0, 1))
            score_views(embeddings.reshape(count, spec.views, -1), texts, scores, threads=1)

    # What a call takes of the cores tells our own waste from what the machine gave to others.
    spent: dict[str, list[float]] = {"label, tiny": [], "its stages alone": []}

    def counted(name: str, call: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            start = time.process_time()
            call()
            spent[name].append(round(time.process_time() - start, 3))

        return run

    race.run(
        counted("label, tiny", lambda: cdul_fast.label_images(config)),
        {"its stages alone": counted("its stages alone", stages_alone)},
        rounds=rounds(5),
        target={"its stages alone": 1 / 1.1},
        subject="label, tiny",
        notes={"photos": len(source), "CPU seconds of each call, warming up first": spent},
    )
