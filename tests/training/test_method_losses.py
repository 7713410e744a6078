"""Each method's targets and loss on a batch worked out by hand (plain float64 Python, no torch formulas)."""

from __future__ import annotations

import math

import pytest
import torch

from cdul_fast.training.methods import Batch, Output, Problem, create_method, method_class, method_names

# Two images, three classes. Logits whose probabilities are round numbers.
P = [[0.8, 0.5, 0.1], [0.25, 0.6, 0.9]]
LOGITS = torch.tensor([[math.log(p / (1 - p)) for p in row] for row in P])
ONE = [[1, 0, 0], [0, 0, 1]]
SOFT = [[0.7, 0.2, 0.1], [0.05, 0.15, 0.8]]


def problem(observed, **more):
    return Problem(torch.tensor(SOFT), torch.tensor(observed, dtype=torch.int8), **more)


def loss_of(name, observed, options=None, epoch=1, logits=LOGITS, **more):
    method = create_method(name, problem(observed, **more), options)
    batch = Batch(torch.tensor([0, 1]), epoch)
    return method.loss(Output(logits), method.targets(batch), batch).item()


def bce(p, q):
    return -(q * math.log(p) + (1 - q) * math.log(1 - p))


def cells(function):
    return [function(n, c) for n in range(2) for c in range(3)]


def test_soft_is_bce_against_the_pseudo_labels():
    expected = sum(cells(lambda n, c: bce(P[n][c], SOFT[n][c]))) / 6
    assert loss_of("soft", ONE) == pytest.approx(expected, rel=1e-5)


def test_cdul_starts_from_the_soft_labels():
    assert loss_of("cdul", ONE) == pytest.approx(loss_of("soft", ONE), rel=1e-5)


def test_an_counts_unknown_as_negative():
    expected = -(
        math.log(0.8) + math.log(0.5) + math.log(0.9) + math.log(0.75) + math.log(0.4) + math.log(0.9)
    )
    assert loss_of("an", ONE) == pytest.approx(expected / 6, rel=1e-5)


def test_an_ls_smooths_both_sides():
    expected = sum(cells(lambda n, c: bce(P[n][c], 0.9 if ONE[n][c] else 0.1))) / 6
    assert loss_of("an_ls", ONE) == pytest.approx(expected, rel=1e-5)


def test_wan_weighs_negatives_by_one_over_c_minus_one():
    positives = -math.log(0.8) - math.log(0.9)
    negatives = -(math.log(0.5) + math.log(0.9) + math.log(0.75) + math.log(0.4))
    assert loss_of("wan", ONE) == pytest.approx((positives + negatives / 2) / 6, rel=1e-5)


def test_epr_is_positives_and_the_count_penalty():
    counts = (0.8 + 0.5 + 0.1 + 0.25 + 0.6 + 0.9) / 2
    expected = -(math.log(0.8) + math.log(0.9)) / 6 + (counts - 1.5) ** 2 / 9
    assert loss_of("epr", ONE, expected_positives=1.5) == pytest.approx(expected, rel=1e-5)


def test_partial_bce_takes_the_lowest_scores_as_negatives():
    # Two of three classes known: the positive, and the lowest score (class 2 of image 0, class 0 of image 1).
    share = 2 / 3
    factor = (-4.45 * share + 5.45) / 3
    expected = factor * (-math.log(0.8) - math.log(0.9) - math.log(0.9) - math.log(0.75)) / 2
    assert loss_of("partial_bce", ONE, {"known": share}) == pytest.approx(expected, rel=1e-5)


def test_partial_bce_weighs_an_image_by_its_own_known_share():
    observed = [[1, -1, 0], [0, 0, -1]]
    first = (-4.45 * 2 / 3 + 5.45) / 3 * (-math.log(0.8) - math.log(0.5))
    second = (-4.45 / 3 + 5.45) / 3 * -math.log(0.1)
    assert loss_of("partial_bce", observed) == pytest.approx((first + second) / 2, rel=1e-5)


def test_partial_bce_factor_is_1_at_all_and_5_at_a_tenth_known():
    method = create_method("partial_bce", problem(ONE))
    settings = method.settings
    assert settings.slope + settings.offset == pytest.approx(1.0)
    assert settings.slope * 0.1 + settings.offset == pytest.approx(5.0, abs=0.01)


def test_role_sums_both_sides():
    method = create_method("role", problem(ONE, expected_positives=1.5))
    g = [[0.995, 0.45, 0.55], [0.5, 0.42, 0.995]]
    method._adam.table[:] = torch.tensor([[math.log(p / (1 - p)) for p in row] for row in g])
    batch = Batch(torch.tensor([0, 1]), 1)
    output = Output(LOGITS)
    got = method.loss(output, method.targets(batch), batch).item()

    def penalty(p):
        return (sum(map(sum, p)) / 2 - 1.5) ** 2 / 9

    expected = 0.5 * (
        -(math.log(0.8) + math.log(0.9)) / 6
        - 2 * math.log(0.995) / 6
        + sum(cells(lambda n, c: bce(P[n][c], g[n][c]))) / 6
        + sum(cells(lambda n, c: bce(g[n][c], P[n][c]))) / 6
        + penalty(P)
        + penalty(g)
    )
    assert got == pytest.approx(expected, rel=1e-5)


def test_role_starts_as_published_and_moves_only_the_rows_of_the_batch():
    method = create_method("role", problem(ONE), {"label_lr": 0.1})
    start = method.labels().clone()
    assert start[0, 0].item() == pytest.approx(0.995) and start[1, 2].item() == pytest.approx(0.995)
    unknown = start[torch.tensor(ONE) == 0]
    assert ((unknown > 0.4) & (unknown < 0.6)).all()
    logits = LOGITS[:1].clone().requires_grad_()
    batch = Batch(torch.tensor([0]), 1)
    output = Output(logits)
    method.loss(output, method.targets(batch), batch).backward()
    method.after_step(output, batch)
    assert torch.equal(method.labels()[1], start[1])
    # Adam's first step has the length of the learning rate in logits.
    moved = (method.labels()[0].logit() - start[0].logit()).abs()
    assert torch.allclose(moved, torch.full((3,), 0.1), atol=1e-3)


def test_role_gradient_scale_undoes_a_scaled_loss():
    results = []
    for scale in (1.0, 8.0):
        method = create_method("role", problem(ONE), {"label_lr": 0.1})
        batch = Batch(torch.tensor([0, 1]), 1, gradient_scale=scale)
        output = Output(LOGITS.clone().requires_grad_())
        (method.loss(output, method.targets(batch), batch) / scale).backward()
        method.after_step(output, batch)
        results.append(method.state()["mean"])
    assert torch.allclose(*results)


# Unobserved losses of AN, largest first: 0.5 -> 0.693 (image 0, class 1); 0.6 -> 0.916 (image 1, class 1).
def test_ll_r_drops_the_largest_unobserved_losses():
    kept = -(math.log(0.8) + math.log(0.9) + math.log(0.75) + math.log(0.9))
    # ceil(6 * (t - 1) * 0.3): none in epoch 1, 2 in epoch 2 (1.8), 4 in epoch 3 (3.6).
    options = {"delta": 0.3}
    assert loss_of("ll_r", ONE, options, epoch=1) == pytest.approx(loss_of("an", ONE), rel=1e-6)
    assert loss_of("ll_r", ONE, options, epoch=2) == pytest.approx(kept / 6, rel=1e-5)
    positives = -(math.log(0.8) + math.log(0.9))
    assert loss_of("ll_r", ONE, options, epoch=3) == pytest.approx(positives / 6, rel=1e-5)


def test_ll_r_never_drops_observed_labels():
    logits = torch.tensor([[-9.0, -8.0, -8.0], [-8.0, -8.0, -9.0]])
    assert loss_of("ll_r", ONE, {"delta": 0.9}, epoch=9, logits=logits) == pytest.approx(18.0 / 6, rel=1e-3)


def test_ll_quota_is_the_ceiling_and_not_one_more():
    method = create_method("ll_r", problem(ONE), {"delta": 0.5})
    assert method.quota(Batch(torch.tensor([0, 1]), 2)) == 3
    assert method.quota(Batch(torch.tensor([0]), 2)) == 2


def test_ll_ct_turns_them_for_the_step_only():
    flipped = (
        -(math.log(0.8) + math.log(0.9) + math.log(0.75) + math.log(0.9)) - math.log(0.5) - math.log(0.6)
    )
    assert loss_of("ll_ct", ONE, {"delta": 0.3}, epoch=2) == pytest.approx(flipped / 6, rel=1e-5)


def test_ll_cp_turns_them_for_good():
    method = create_method("ll_cp", problem(ONE), {"delta": 0.15})
    rows = torch.tensor([0, 1])
    targets = []
    for epoch in (1, 2, 3, 3):
        batch = Batch(rows, epoch)
        targets.append(method.targets(batch))
        method.loss(Output(LOGITS), targets[-1], batch)
    assert torch.equal(targets[1], torch.tensor(ONE).float())
    assert targets[2].tolist() == [[1, 0, 0], [0, 1, 1]]
    assert targets[3].tolist() == [[1, 1, 0], [0, 1, 1]]
    fresh = create_method("ll_cp", problem(ONE), {"delta": 0.15})
    fresh.load_state(method.state())
    assert torch.equal(fresh.labels(), method.labels())


def test_g2netpl_weighs_easy_to_hard_and_moves_labels():
    options = {"draw": 0.5, "rate": 0.5, "kappa": 2.0, "ramp": 4, "warmup": 1}
    method = create_method("g2netpl", problem(ONE, expected_positives=1.5), options)
    # (1.5 - 1) / 2 = 0.25 for every unobserved label; weight (2 * 0.25)^kappa, kappa 2 then 1.5.
    batch = Batch(torch.tensor([0, 1]), 1)
    targets = method.targets(batch)
    assert targets.tolist() == [[1, 0.25, 0.25], [0.25, 0.25, 1]]
    unobserved = [P[0][1], P[0][2], P[1][0], P[1][1]]
    for epoch, weight in ((1, 0.5**2), (2, 0.5**1.5), (5, 1.0), (9, 1.0)):
        expected = -math.log(0.8) - math.log(0.9) + weight * sum(bce(p, 0.25) for p in unobserved)
        got = method.loss(Output(LOGITS), targets, Batch(batch.rows, epoch)).item()
        assert got == pytest.approx(expected / 6, rel=1e-5)
    method.after_step(Output(LOGITS), batch)
    assert torch.equal(method.labels(), targets), "labels rest during warm-up"
    method.after_step(Output(LOGITS), Batch(batch.rows, 2))
    # Answers 1/2 + (p - 1/2) / (1 - 0.5), clipped: 0.5 -> 0.5, 0.1 -> 0, 0.25 -> 0, 0.6 -> 0.7; half the way.
    wanted = [[1, 0.375, 0.125], [0.125, 0.475, 1]]
    assert torch.allclose(method.labels(), torch.tensor(wanted), atol=1e-6)


def test_asl_sums_over_known_labels():
    observed = [[1, 0, -1], [0, -1, 1]]
    positives = -(0.2 * math.log(0.8)) - (0.1 * math.log(0.9))
    negatives = -(0.05**4 * math.log(0.95)) - (0.55**4 * math.log(0.45))
    assert loss_of("asl", observed) == pytest.approx(positives + negatives, rel=1e-4)
    unknown = -(0.45**4 * math.log(0.55)) - (0.2**4 * math.log(0.8))
    assert loss_of("asl", observed, {"unknown_negative": True}) == pytest.approx(
        positives + negatives + unknown, rel=1e-4
    )


def test_asl_stays_finite_for_extreme_logits():
    logits = torch.tensor([[-200.0, 200.0, 200.0], [200.0, 200.0, -200.0]], requires_grad=True)
    method = create_method("asl", problem([[1, -1, -1], [-1, -1, 1]]))
    batch = Batch(torch.tensor([0, 1]), 1)
    loss = method.loss(Output(logits), method.targets(batch), batch)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


def test_bce_averages_over_observed_entries():
    everything = [[1, -1, -1], [-1, 1, 1]]
    all_terms = cells(lambda n, c: bce(P[n][c], float(everything[n][c] == 1)))
    assert loss_of("bce", everything) == pytest.approx(sum(all_terms) / 6, rel=1e-5)
    some = [[1, 0, -1], [0, 0, 0]]
    assert loss_of("bce", some) == pytest.approx((-math.log(0.8) - math.log(0.9)) / 2, rel=1e-5)


def test_bce_ls_smooths():
    everything = [[1, -1, -1], [-1, 1, 1]]
    terms = cells(lambda n, c: bce(P[n][c], 0.9 if everything[n][c] == 1 else 0.1))
    assert loss_of("bce_ls", everything) == pytest.approx(sum(terms) / 6, rel=1e-5)


@pytest.mark.parametrize("name", ["bce", "bce_ls"])
def test_bce_refuses_positives_alone(name):
    with pytest.raises(ValueError, match="negatives"):
        create_method(name, problem(ONE))


def test_registry_is_complete_and_names_what_it_knows():
    assert set(method_names()) == {
        "cdul", "soft", "an", "an_ls", "wan", "partial_bce", "epr", "role",
        "ll_r", "ll_ct", "ll_cp", "g2netpl", "asl", "sst", "sarb", "bce", "bce_ls",
    }  # fmt: skip
    for name in method_names():
        assert method_class(name).name == name
    with pytest.raises(ValueError, match=r"cdul.*got 'nope'"):
        method_class("nope")


def test_settings_are_read_and_checked():
    assert create_method("cdul", problem(ONE), {"sigma": "0.4", "warmup": "3"}).settings.warmup == 3
    with pytest.raises(ValueError, match=r"no setting 'sgma'.*sigma"):
        create_method("cdul", problem(ONE), {"sgma": 1})
    with pytest.raises(ValueError, match=r"must be int, got 1\.5"):
        create_method("cdul", problem(ONE), {"warmup": 1.5})
    with pytest.raises(ValueError, match="must be bool"):
        create_method("asl", problem(ONE), {"unknown_negative": "maybe"})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"sigma": 0}, "sigma"),
        ({"step": -1}, "step"),
        ({"sigma": 0.1, "step": 0.6}, "overshoot"),
        ({"interval": 0}, "interval"),
        ({"source": "x"}, "source"),
    ],
)
def test_cdul_refuses_settings_that_cannot_settle(options, named):
    with pytest.raises(ValueError, match=named):
        create_method("cdul", problem(ONE), options)
