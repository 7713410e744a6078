"""The semantic modules of SST and SARB: attention, co-occurrence, blending, prototypes, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from cdul_fast.training.methods import Batch, Output, Problem, create_method
from cdul_fast.training.methods.sarb import cluster_centres, draw_classes, draw_partners
from cdul_fast.training.methods.semantic import SemanticHead, class_similarity, contrastive
from cdul_fast.training.methods.sst import between_images, cooccurrence_loss, within_image

OBSERVED = torch.tensor([[1, -1, 0], [1, 0, -1], [-1, 0, 0]], dtype=torch.int8)


def problem(observed=OBSERVED, vectors=None):
    return Problem(torch.full(observed.shape, 0.5), observed, annotated=True, class_vectors=vectors)


def unit(angle):
    return [math.cos(angle), math.sin(angle)]


def test_attention_reads_the_cell_that_matches_the_class():
    torch.manual_seed(0)
    head = SemanticHead(4, problem(), rank=3)
    with torch.no_grad():
        # Class c attends to cells rich in channel c: score = w . tanh(U x * V e).
        head.class_vectors.copy_(torch.eye(3))
        head.guides.weight.copy_(torch.eye(3))
        head.cells.weight.copy_(torch.eye(3, 4))
        head.cells.bias.zero_()
        head.score.weight.fill_(100.0)
    maps = torch.zeros(1, 4, 2, 2)
    maps[0, 0, 0, 0] = maps[0, 1, 0, 1] = maps[0, 2, 1, 0] = 2.0
    maps[0, 3] = torch.tensor([[5.0, 6.0], [7.0, 8.0]])
    output = head(maps)
    assert torch.allclose(output.class_features[0, :, 3], torch.tensor([5.0, 6.0, 7.0]), atol=1e-4)
    expected = (output.class_features[0] * head.weight).sum(-1) + head.bias
    assert torch.allclose(output.logits[0], expected)


def test_attention_weights_sum_to_one():
    head = SemanticHead(5, problem(vectors=torch.randn(3, 7)), rank=4, width=6)
    weights = head.attention(torch.randn(2, 9, 5))
    assert weights.shape == (2, 3, 9)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 3))
    assert head(torch.randn(2, 5, 3, 3)).class_features.shape == (2, 3, 6)
    assert not head.class_vectors.requires_grad, "text embeddings stay as they are"


def test_similarity_and_contrast():
    angles = [[0.0, 0.0, 0.0], [math.pi / 3, 0.0, 0.0], [math.pi / 2, 0.0, 0.0]]
    features = torch.tensor([[unit(a) for a in row] for row in angles]) * 3.0
    similarity = class_similarity(features)
    assert similarity[0, 0, 1].item() == pytest.approx(0.5, abs=1e-6)
    # Class 0: images 0 and 1 have it (two ordered pairs), image 2 has it not (two pairs); no other pairs.
    expected = (2 * (1 - 0.5) + (1 + 0.0) + (1 + math.cos(math.pi / 6))) / 4
    assert contrastive(features, OBSERVED).item() == pytest.approx(expected, abs=1e-6)
    assert contrastive(features, torch.zeros_like(OBSERVED)).item() == 0.0


def test_within_image_averages_over_known_positives():
    pairs = torch.tensor([[[0.0, 0.2, 0.9], [0.0, 0.0, 0.3], [0.0, 0.0, 0.0]]])
    assert within_image(pairs, torch.tensor([[1, 0, 0]]))[0].tolist() == pytest.approx([0.0, 0.2, 0.9])
    assert within_image(pairs, torch.tensor([[1, 1, 0]]))[0].tolist() == pytest.approx([0.0, 0.1, 0.6])
    assert within_image(pairs, torch.tensor([[0, -1, 0]]))[0].tolist() == [0.0, 0.0, 0.0]


def test_between_images_averages_over_images_that_have_the_class():
    features = torch.tensor([[unit(0.0)], [unit(math.pi / 2)], [unit(math.pi / 3)]])
    observed = torch.tensor([[1], [1], [0]])
    score = between_images(features, observed)
    assert score[2, 0].item() == pytest.approx((0.5 + math.cos(math.pi / 6)) / 2, abs=1e-6)


def test_cooccurrence_loss_by_hand():
    # Image 0 knows classes 0 (yes) and 1 (no): pairs (0,1) and (1,0), both "not together".
    pairs = torch.full((1, 3, 3), math.log(0.3 / 0.7))
    got = cooccurrence_loss(pairs, torch.tensor([[1, -1, 0]])).item()
    assert got == pytest.approx(-(0.3**2) * math.log(0.7), rel=1e-5)
    got = cooccurrence_loss(pairs, torch.tensor([[1, 1, 0]])).item()
    assert got == pytest.approx(-0.7 * math.log(0.3), rel=1e-5)


def sst_batch(epoch):
    torch.manual_seed(1)
    method = create_method("sst", problem(), {"margin": 0.9, "contrastive_weight": 0.05})
    method.build_head(2)
    with torch.no_grad():
        for layer in (method.cooccurrence.given, method.cooccurrence.asked):
            layer.weight.zero_()
            layer.bias.zero_()
    features = torch.tensor([[unit(0.0)] * 3, [unit(0.1)] * 3, [unit(2.0)] * 3], requires_grad=True)
    logits = torch.tensor([[2.0, -1.0, 0.5], [1.0, 0.0, -2.0], [-1.0, 0.5, 0.25]])
    batch = Batch(torch.arange(3), epoch)
    loss = method.loss(Output(logits, features), method.targets(batch), batch)
    return method, loss, features, logits


def softplus(x):
    return math.log1p(math.exp(x))


def test_sst_adds_its_terms_by_hand():
    method, loss, features, _ = sst_batch(epoch=1)
    known = (softplus(-2.0) + softplus(-1.0) + softplus(-1.0) + softplus(-2.0) + softplus(-1.0)) / 5
    # All pairs have probability 0.5; known pairs are (yes, no) in images 0 and 1: never together.
    together = -(0.5**2) * math.log(0.5)
    contrast = contrastive(features, OBSERVED).item()
    assert loss.item() == pytest.approx(known + 10 * together + 0.05 * contrast, rel=1e-5)
    loss.backward()
    assert method.cooccurrence.given.bias.grad is not None


def test_sst_adds_pseudo_positives_from_its_start_epoch():
    # No image is known to have class 1 or 2, so similarity finds nothing; make co-occurrence certain instead.
    method, _, features, logits = sst_batch(epoch=4)
    with torch.no_grad():
        method.cooccurrence.given.bias.fill_(3.0)
        method.cooccurrence.asked.bias.fill_(3.0)
    losses = {}
    for epoch in (4, 5):
        batch = Batch(torch.arange(3), epoch)
        losses[epoch] = method.loss(Output(logits, features), method.targets(batch), batch).item()
    # Unknown beside a known positive: image 0 class 2 (logit 0.5) and image 1 class 1 (logit 0.0), each as
    # much as one of the five known labels; similarity finds nothing and leaves these alone.
    known = softplus(-2.0) + softplus(-1.0) + softplus(-1.0) + softplus(-2.0) + softplus(-1.0)
    within = (known + softplus(-0.5) + softplus(0.0)) / 7
    assert losses[5] - losses[4] == pytest.approx(within + known / 5, rel=1e-3)


def test_sst_takes_pseudo_positives_from_similar_images():
    observed = torch.tensor([[1], [0], [0]], dtype=torch.int8)
    method = create_method("sst", problem(observed), {"margin": 0.9})
    method.build_head(2)
    features = torch.tensor([[unit(0.0)], [unit(0.1)], [unit(2.0)]])
    logits = torch.tensor([[1.0], [0.3], [0.2]])
    losses = []
    for epoch in (4, 5):
        batch = Batch(torch.arange(3), epoch)
        losses.append(method.loss(Output(logits, features), method.targets(batch), batch).item())
    between = (softplus(-1.0) + softplus(-0.3)) / 2
    assert losses[1] - losses[0] == pytest.approx(between + softplus(-1.0), rel=1e-4)


def test_a_partner_is_another_image_and_gives_what_it_is_known_to_have():
    generator = torch.Generator().manual_seed(0)
    observed = torch.tensor([[1, 0], [1, -1], [0, 0], [0, 1]], dtype=torch.int8)
    seen = set()
    for _ in range(50):
        partners, usable = draw_partners(observed, generator)
        assert sorted(partners.tolist()) == [0, 1, 2, 3] and (partners != torch.arange(4)).all()
        assert torch.equal(usable, (observed == 0) & (observed[partners] == 1))
        seen.add(int(partners[2]))
    assert seen == {0, 1, 3}
    assert not draw_partners(observed[2:3], generator)[1].any(), "nobody else is there"


def test_one_allowed_class_of_each_image_is_drawn():
    generator = torch.Generator().manual_seed(0)
    allowed = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    draws = torch.stack([draw_classes(allowed, generator) for _ in range(200)])
    assert draws.sum(2).eq(torch.tensor([1, 0, 1])).all()
    assert not (draws & ~allowed).any()
    assert 60 < draws[:, 0, 0].sum() < 140


def test_sarb_blends_by_hand():
    observed = torch.tensor([[1], [0]], dtype=torch.int8)
    method = create_method("sarb", problem(observed), {"blend": 0.25, "start": 3, "prototypes": 1})
    head = method.build_head(2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[2.0, -1.0]]))
        head.bias.fill_(0.5)
    features = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    logits = head.classify(features)
    known = softplus(-2.5)
    batch = Batch(torch.arange(2), 2)
    assert method.loss(Output(logits, features), method.targets(batch), batch).item() == pytest.approx(known)
    # Blend 0.25 * (0, 1) + 0.75 * (1, 0) -> logit 2 * 0.75 - 0.25 + 0.5 = 1.75, target 1 - 0.25; it counts as
    # much as the known label beside it.
    batch = Batch(torch.arange(2), 3)
    blended = (known + 0.75 * softplus(-1.75) + 0.25 * softplus(1.75)) / 2
    got = method.loss(Output(logits, features), method.targets(batch), batch)
    assert got.item() == pytest.approx(known + blended, rel=1e-5)
    # A prototype (the only positive) adds the same once more.
    method.after_epoch(2, lambda: iter([(batch.rows, Output(logits, features))]))
    got = method.loss(Output(logits, features), method.targets(batch), batch)
    assert got.item() == pytest.approx(known + 2 * blended, rel=1e-5)
    got.backward()
    assert method.modules()["blend"].grad.abs().sum() > 0, "the share is learned"


def test_sarb_refreshes_prototypes_on_time():
    method = create_method("sarb", problem(), {"start": 3, "refresh": 2})
    called = []
    output = Output(torch.zeros(3, 3), torch.ones(3, 3, 2))

    def sweep():
        called.append(True)
        return iter([(torch.arange(3), output)])

    counts = []
    for epoch in range(1, 8):
        method.after_epoch(epoch, sweep)
        counts.append(len(called))
    assert counts == [0, 1, 1, 2, 2, 3, 3]
    state = method.state()["centres"]
    assert state.shape == (3, 10, 2) and state[0].eq(1).all()
    assert state[1].isnan().all(), "no image is known to have class 1"


def test_kmeans_finds_separate_clumps():
    generator = torch.Generator().manual_seed(0)
    clumps = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = (clumps[:, None] + torch.randn(3, 30, 2, generator=generator) * 0.1).reshape(-1, 2)
    found = None
    for seed in range(10):  # Lloyd from random points may merge clumps; one of ten starts must not.
        centres = cluster_centres(points, 3, torch.Generator().manual_seed(seed))
        distance = torch.cdist(clumps, centres).min(dim=1).values.max().item()
        found = distance if found is None else min(found, distance)
    assert found < 0.1
    few = cluster_centres(points[:2], 5, generator)
    assert few.shape == (5, 2) and len(few.unique(dim=0)) == 2
