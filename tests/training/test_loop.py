"""Pieces of the loop: schedules, averages, scaling, batches, crops, latent labels on disk."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cdul_fast.errors import CdulError
from cdul_fast.training.batches import PhotoBatches, StoredBatches, random_box
from cdul_fast.training.heads import train_head
from cdul_fast.training.latent import CLIP, LatentLabels
from cdul_fast.training.loop import Loop, LoopSettings, Network, Standardise, mean_average_precision
from cdul_fast.training.methods import Batch, Output, Problem, create_method
from cdul_fast.training.optim import MovingAverage, learning_rate_factor


def test_schedules():
    assert learning_rate_factor("constant", 0.9) == 1.0
    assert learning_rate_factor("cosine", 0.0) == 1.0
    assert learning_rate_factor("cosine", 0.5) == pytest.approx(0.5)
    assert learning_rate_factor("step", 0.66) == 1.0 and learning_rate_factor("step", 0.67) == 0.1
    assert learning_rate_factor("cosine", 0.05, warmup=0.1) == pytest.approx(0.5)
    assert learning_rate_factor("cosine", 0.55, warmup=0.1) == pytest.approx(0.5)


def test_moving_average_by_hand():
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(network.weight, 1.0)
    average = MovingAverage(network, 0.5)
    torch.nn.init.constant_(network.weight, 2.0)
    average.update(network)  # the first step keeps (1 + 1) / (10 + 1)
    assert average.network.weight.item() == pytest.approx(2 - 2 / 11)
    for _ in range(20):
        average.update(network)
    assert average.network.weight.item() == pytest.approx(2.0, abs=1e-4)


def test_standardise_pooled_and_maps_alike():
    maps = torch.randn(50, 3, 2, 2) * torch.tensor([1.0, 10.0, 0.1])[:, None, None] + 5
    scaling = Standardise(3)
    assert torch.equal(scaling(maps), maps), "the identity until it is fitted"
    scaling.fit(maps)
    pooled = scaling(maps.mean((2, 3)))
    assert torch.allclose(pooled.mean(0), torch.zeros(3), atol=1e-4)
    assert torch.allclose(pooled.std(0), torch.ones(3), atol=1e-4)
    assert torch.allclose(scaling(maps).mean((2, 3)), pooled, atol=1e-4)


def test_mean_ap_counts_only_classes_with_enough_positives():
    truth = np.array([[1, 1, 0], [1, 0, 0], [0, -1, 0], [0, 0, 0]])
    scores = np.array([[0.9, 0.2, 0.5], [0.8, 0.9, 0.5], [0.1, 1.0, 0.5], [0.2, 0.1, 0.5]], np.float32)
    score, per_class = mean_average_precision(scores, truth)
    assert per_class[0] == pytest.approx(100.0)
    assert per_class[1] == pytest.approx(50.0), "the unjudged photo does not count"
    assert np.isnan(per_class[2]) and score == pytest.approx(75.0)
    assert mean_average_precision(scores, truth, 2)[0] == pytest.approx(100.0)
    assert math.isnan(mean_average_precision(scores, truth, 3)[0])


def problem(count=40, classes=3):
    generator = torch.Generator().manual_seed(0)
    soft = torch.rand(count, classes, generator=generator)
    observed = torch.where(soft > 0.6, 1, -1).to(torch.int8)
    return Problem(soft, observed)


@pytest.mark.parametrize(("whole", "parts", "steps"), [(40, 4, 1), (30, 3, 2)], ids=["even", "rest"])
def test_gradients_of_micro_batches_add_up(whole, parts, steps):
    features = torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    results = []
    for batch_size, accumulate in ((whole, 1), (10, parts)):
        settings = LoopSettings(
            epochs=3, batch_size=batch_size, accumulate=accumulate, optimizer="sgd", lr=0.5, seed=4
        )
        result = train_head(features, problem(), "soft", {}, settings)
        results.append(result.loop.network.head.linear.weight.detach())
        assert result.loop.steps_per_epoch == steps
    assert torch.allclose(*results, atol=1e-6)


def test_an_epoch_visits_every_row_once_and_epochs_differ():
    method = create_method("soft", problem(), {})
    network = Network(None, method.build_head(5), 5)
    loop = Loop(network, method, StoredBatches(torch.zeros(40, 5)), LoopSettings(batch_size=16))
    first, second = (torch.cat(loop.epoch_rows(epoch)) for epoch in (1, 2))
    assert sorted(first.tolist()) == list(range(40)) == sorted(second.tolist())
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("smallest", [1.0, 0.3])
def test_random_boxes_lie_inside_and_keep_their_share(smallest):
    generator = np.random.default_rng(0)
    shares = []
    for _ in range(500):
        x0, y0, x1, y1 = random_box(generator, 97, 41, smallest)
        assert 0 <= x0 < x1 <= 97 and 0 <= y0 < y1 <= 41
        shares.append((x1 - x0) * (y1 - y0) / (97 * 41))
    if smallest == 1.0:
        assert set(shares) == {1.0}
    else:
        assert min(shares) > 0.25 and max(shares) > 0.9 and 0.5 < np.mean(shares) < 0.75


def test_augmentation_depends_on_epoch_and_row_alone(toy_run):
    photos = sorted((toy_run / "photos").glob("*.png"))
    more = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_scale": 0.5, "seed": 3}
    one = PhotoBatches(photos, 32, threads=1, **more)
    two = PhotoBatches(photos, 32, threads=3, **more)
    parts = [torch.tensor([3, 1]), torch.tensor([2])]
    first = torch.cat(list(one.read(parts, 5, train=True)))
    again = torch.cat(list(two.read([torch.tensor([2, 1, 3])], 5, train=True)))
    assert torch.equal(first[[2, 1, 0]], again)
    other = torch.cat(list(one.read(parts, 6, train=True)))
    assert not torch.equal(first, other)
    plain = torch.cat(list(one.read(parts, 0, train=False)))
    assert torch.equal(plain, torch.cat(list(one.read(parts, 9, train=False))))


def test_a_broken_photo_ends_training_with_its_name(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"no photo")
    batches = PhotoBatches([tmp_path / "x.jpg"], 32, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(CdulError, match=r"x\.jpg"):
        list(batches.read([torch.tensor([0])], 1, train=True))


def test_latent_labels_start_clipped():
    latent = LatentLabels(np.array([[0.0, 0.5, 1.0]], np.float32))
    limit = math.log((1 - CLIP) / CLIP)
    assert latent.values[0].tolist() == pytest.approx([-limit, 0.0, limit], rel=1e-5)


def label_step(v, z, sigma, step):
    y = 1 / (1 + math.exp(-v))
    psi = math.exp(-(((y - 0.5) / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi))
    return v - step * psi * (v - z)


def test_cdul_moves_latents_by_the_closed_form(tmp_path):
    soft = torch.tensor([[0.2, 0.7], [0.5, 0.9]])
    made = Problem(soft, torch.zeros(2, 2, dtype=torch.int8))
    latent = LatentLabels(soft.numpy(), tmp_path)
    method = create_method("cdul", made, {"sigma": 0.4, "step": 0.5, "warmup": 2}, latent=latent)
    logits = torch.tensor([[1.0, -2.0], [0.25, 3.0]])
    outputs = [(torch.tensor([1]), Output(logits[1:])), (torch.tensor([0]), Output(logits[:1]))]

    def sweep():
        return iter(outputs)

    method.after_epoch(1, sweep)
    assert latent.version == 0, "warm-up"
    method.after_epoch(2, sweep)
    wanted = [
        [label_step(math.log(p / (1 - p)), z, 0.4, 0.5) for p, z in zip(ps, zs, strict=True)]
        for ps, zs in zip(soft.double().tolist(), logits.double().tolist(), strict=True)
    ]
    assert np.allclose(latent.values, wanted, atol=1e-5)
    targets = method.targets(Batch(torch.tensor([1, 0]), 3))
    assert torch.allclose(targets, torch.tensor(wanted)[[1, 0]].sigmoid(), atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latent-0.f32", "latent-1.f32"]
    latent.restore(0)
    assert np.allclose(latent.probabilities(), soft, atol=1e-5), "the older version is untouched"
    latent.restore(1)
    latent.discard_old()
    assert [path.name for path in tmp_path.iterdir()] == ["latent-1.f32"]
    with pytest.raises(ValueError, match="latent-0"):
        latent.restore(0)
