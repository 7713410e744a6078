"""Training on real photos: features of a frozen network, the head on them, and the whole network's step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.timing import Race, library_threads
from cdul_fast.training.arithmetic import features_precision
from cdul_fast.training.backbones import Backbone, create_backbone
from cdul_fast.training.batches import StoredBatches
from cdul_fast.training.comparison import Bench, CompareConfig, prepare, train_one
from cdul_fast.training.features import compile_for_cpu, load_photo, run_compiled
from cdul_fast.training.loop import Loop, LoopSettings, Network
from cdul_fast.training.methods import Problem, create_method
from cdul_fast.training.recipes import recipe

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(
    not (DATA / "voc12_photos").is_dir(), reason=f"no photos in {DATA / 'voc12_photos'}"
)
BACKBONE, SIZE, THREADS = "efficientnet_lite0", 256, 2


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return create_backbone(BACKBONE).eval()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The comparison's data; its 1,697 training photos go through the network here."""
    photos = DATA / "voc12_photos"
    return prepare(
        CompareConfig(
            scores=str(DATA / "voc12_clip_scores.npz"),
            photos=str(photos / "train"),
            truth=str(photos / "train.csv"),
            test=str(photos / "test.csv"),
            methods="cdul",
            backbone=BACKBONE,
            image_size=SIZE,
            out=str(tmp_path_factory.mktemp("compare")),
            threads=THREADS,
        )
    )


@needs_data
def test_features(race: Race, rounds: Any, backbone: Backbone) -> None:
    """32 photos from file to pooled features; the rivals have them read and cropped by our code."""
    photos = sorted((DATA / "voc12_photos" / "train").glob("*.jpg"))[:32]
    compiled = compile_for_cpu(
        backbone, SIZE, precision=features_precision("auto"), threads=THREADS, batch=32
    )

    def ours() -> np.ndarray:
        return run_compiled(compiled, backbone.info, photos, SIZE, threads=THREADS)[0]

    @torch.inference_mode()
    def eager() -> np.ndarray:
        pixels = np.empty((len(photos), 3, SIZE, SIZE), np.float32)
        for row, path in enumerate(photos):
            load_photo(path, SIZE, "squash", backbone.info.mean, backbone.info.std, pixels[row : row + 1])
        return torch.cat([backbone(part) for part in torch.from_numpy(pixels).split(32)]).numpy()

    with library_threads(THREADS):
        first, second = ours(), eager()
        cosines = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
        assert cosines.min() > 0.98
        race.run(
            ours, {"eager torch fp32": eager}, rounds=rounds(3), target={"eager torch fp32": 3.0},
            notes={"smallest cosine to fp32": round(float(cosines.min()), 4)},
            subject=f"OpenVINO {features_precision('auto')}", warmup=0,
        )  # fmt: skip


def _plain_head(features: torch.Tensor, targets: torch.Tensor, epochs: int) -> nn.Linear:
    """The rival: the usual loop over a DataLoader, BCE with fixed soft labels."""
    from torch.utils.data import DataLoader, TensorDataset

    head = nn.Linear(features.shape[1], targets.shape[1])
    optimizer = torch.optim.AdamW(head.parameters(), 1e-3)
    loader = DataLoader(TensorDataset(features, targets), 64, shuffle=True)
    loss = nn.BCEWithLogitsLoss()
    for _ in range(epochs):
        for inputs, wanted in loader:
            optimizer.zero_grad()
            loss(head(inputs), wanted).backward()
            optimizer.step()
    return head


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("method", ["soft", "cdul"])
def test_head(race: Race, rounds: Any, bench: Bench, method: str) -> None:
    """1,697 photos, 60 epochs, a linear head, after the features; at most 5 seconds are wanted."""
    chosen = recipe(method)
    assert chosen.epochs == 60
    features, soft = bench.features(method), bench.problem(method, chosen.label_scale, 0).soft
    with library_threads(THREADS):
        race.run(
            lambda: train_one(bench, method, chosen, 0),
            {"DataLoader and BCE": lambda: _plain_head(features, soft, chosen.epochs)},
            rounds=rounds(3),
            notes={
                "photos": len(features),
                "target, seconds": 5.0,
                "features of all photos, seconds": round(bench.train_features.seconds, 1),
            },
            warmup=0,
        )


@pytest.mark.slow
def test_whole_network_step(race: Race, rounds: Any, backbone: Backbone) -> None:
    """A step of 16 photos at 224 pixels with the defaults of ``train``, and with torch's own."""

    def loop(precision: str, layout: torch.memory_format) -> Loop:
        soft = torch.rand(16, 20, generator=torch.Generator().manual_seed(0))
        method = create_method("soft", Problem(soft, torch.zeros(16, 20, dtype=torch.int8)), {})
        trained = create_backbone(BACKBONE, "none")
        network = Network(trained, method.build_head(trained.info.channels), trained.info.channels)
        network.to(memory_format=layout)
        images = torch.randn(16, 3, 224, 224).contiguous(memory_format=layout)
        settings = LoopSettings(epochs=1000, batch_size=16, lr=1e-5, precision=precision)
        return Loop(network, method, StoredBatches(images), settings)

    chosen = features_precision("auto")
    with library_threads(THREADS):
        race.run(
            loop(chosen, torch.channels_last).train_epoch,
            {
                "fp32, channels_last": loop("fp32", torch.channels_last).train_epoch,
                "fp32": loop("fp32", torch.contiguous_format).train_epoch,
            },
            rounds=rounds(3),
            subject=f"{chosen}, channels_last",
            notes={"photos a call": 16},
        )
