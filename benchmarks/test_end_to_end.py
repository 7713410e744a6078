"""The label command on real photos, against what a user would write, and against its own encoder alone."""

from __future__ import annotations

from collections.abc import Callable
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

ROOT = Path(__file__).resolve().parents[1]
CLASSES = (
    "person", "bicycle", "car", "motorcycle", "bus", "train", "boat", "traffic light", "bench", "bird", "cat",
    "dog", "horse", "sheep", "cow", "umbrella", "chair", "couch", "potted plant", "dining table",
)  # fmt: skip
THREADS = 2


@pytest.fixture(scope="module")
def folder(photo_paths: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Links to the photos, and the class list beside them."""
    folder = tmp_path_factory.mktemp("photos")
    for path in photo_paths:
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


def _scores(out: Path) -> np.ndarray:
    return cdul_fast.open_run(str(out)).scores()[1]


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, over the classes of each photo, averaged."""
    ranks = [np.argsort(np.argsort(scores, axis=1), axis=1).astype(float) for scores in (a, b)]
    rows = [np.corrcoef(x, y)[0, 1] for x, y in zip(*ranks, strict=True)]
    return round(float(np.mean(rows)), 4)


@pytest.mark.parametrize("precision", ["bf16", "int8", "fp32"])
def test_against_users_loops(
    race: Race, rounds: Any, folder: Path, weights: Path, photo_paths: list[Path],
    tmp_path: Path, precision: str,
) -> None:  # fmt: skip
    import open_clip

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
        ours()  # converts the model and fills the cache, as a first run does
        exact = loop(rivals.plain, model)()
        strong = loop(rivals.strong, fast)()
        agreement = {
            name: {
                "largest score difference": round(float(np.abs(scores - exact).max()), 5),
                "rank correlation": _rank_correlation(scores, exact),
            }
            for name, scores in (("label", _scores(tmp_path / "ours")), ("strong", strong))
        }
        targets = {"bf16": {"plain": 2.2, "strong": 1.12}, "int8": {"plain": 3.6}}.get(precision, {})
        race.run(
            ours,
            {"plain": loop(rivals.plain, model), "strong": loop(rivals.strong, fast)},
            rounds=rounds(3),
            target=targets,
            subject=f"label, {precision}",
            notes={"photos": len(photo_paths), "agreement with plain": agreement},
            warmup=0,
        )


@pytest.mark.parametrize("model", ["ViT-B-32", "RN50"])
def test_pipeline_against_its_encoder(
    race: Race, rounds: Any, folder: Path, photo_paths: list[Path], tmp_path: Path, model: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The whole pipeline must keep 97 % of the rate of its encoder on ready pixels."""
    cache = tmp_path / "cache"
    encoder = encoders.create_encoder(model, "none", threads=THREADS, cache_dir=cache)
    views = 10 * len(photo_paths)
    ready = torch.randn(encoder.batch, 3, encoder.image_size, encoder.image_size)
    ready = ready.to(getattr(torch, encoder.input_dtype))

    def encoder_alone() -> None:
        for _ in range(0, views, len(ready)):
            encoder.embed_images(ready)

    rates: list[float] = []

    config = _config(folder, tmp_path / "run", cache, model=model, pretrained="none")
    monkeypatch.setattr(encoders, "create_encoder", lambda *_, **__: encoder)
    monkeypatch.setattr(encoder, "close", lambda: None)  # one loaded encoder serves every round

    def pipeline() -> None:
        rates.append(cdul_fast.label_images(config).images_per_second)

    race.run(
        pipeline, {"encoder alone": encoder_alone}, rounds=rounds(5), target={"encoder alone": 0.97},
        subject=f"label, {model}", notes={"pipeline's own images/s": rates},
    )  # fmt: skip
