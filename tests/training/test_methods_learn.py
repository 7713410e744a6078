"""Each method does on a toy problem what it exists for; thresholds lie well inside what three seeds gave.

The problem (toy.py) has 1.6 positives per photo of 4 classes. On seeds 0 to 2, assuming negatives gives test
mAP 88-89 from CLIP-like top classes and 90-91 from one true label, with 1.05 positives predicted per photo.
"""

from __future__ import annotations

import pytest
import torch
from toy import Toy, mean_ap


@pytest.fixture(scope="module")
def toy():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Toy()
    torch.set_num_threads(threads)


def trainer(toy):
    """Trains once per setting: test mAP, mean predicted positives, accuracy at 0.5, label mAP, the method,
    and the mean of 2 |p - 1/2|."""
    known = {}

    def train(name, budget, soft=None, **options):
        key = (name, budget, soft is None, tuple(sorted(options.items())))
        if key not in known:
            logits, method = toy.train(name, budget, options, soft=soft)
            truth = toy.truth["test"]
            known[key] = (
                mean_ap(logits, truth),
                logits.sigmoid().sum(1).mean().item(),
                ((logits > 0).float() == truth).float().mean().item(),
                mean_ap(method.labels(), toy.truth["train"]),
                method,
                (2 * logits.sigmoid() - 1).abs().mean().item(),
            )
        return known[key]

    return train


@pytest.fixture(scope="module")
def result(toy):
    return trainer(toy)


def test_bce_learns(result):
    assert result("bce", "all")[0] > 94.5
    assert result("bce", "all")[2] > 0.9
    assert result("bce", "10%")[0] > 85, "unknown labels are no negatives"


def test_bce_ls_learns_and_never_becomes_certain(result):
    assert result("bce_ls", "all")[0] > 94.5
    assert result("bce_ls", "all")[5] < result("bce", "all")[5] - 0.05


def test_an_learns_the_top_class(result):
    assert result("an", "none")[0] > 86
    assert result("an", "none")[1] == pytest.approx(1.0, abs=0.2), "one positive a photo is all it is told"


def test_cdul_mends_labels_and_beats_them_fixed(result, toy):
    corrupted = toy.corrupted(0.3)
    fixed = result("soft", "none", soft=corrupted)
    moved = result("cdul", "none", soft=corrupted, sigma=0.4, step=0.3, warmup=4)
    assert fixed[3] < 56, "the labels start bad"
    assert moved[3] > 85, "the label step mends them"
    assert moved[0] > fixed[0] + 2
    assert moved[2] > fixed[2] + 0.015


def test_cdul_without_a_label_step_is_soft(result, toy):
    corrupted = toy.corrupted(0.3)
    fixed = result("soft", "none", soft=corrupted)
    rested = result("cdul", "none", soft=corrupted, warmup=100)
    assert rested[0] == pytest.approx(fixed[0], abs=0.2)
    assert rested[3] == pytest.approx(fixed[3], abs=1e-6)


def test_cdul_labels_move_as_far_from_logits_already_seen(result, toy):
    corrupted = toy.corrupted(0.3)
    seen = result("cdul", "none", soft=corrupted, sigma=0.4, step=0.3, warmup=4, source="seen")
    assert seen[3] > 85


def test_soft_learns_more_than_the_top_class(result):
    assert result("soft", "none")[0] > result("an", "none")[0] + 1


def test_an_ls_never_becomes_certain(result):
    assert result("an_ls", "none")[0] > 86
    assert result("an_ls", "none")[1] > result("an", "none")[1] + 0.1


def test_wan_predicts_more_positives_than_an(result):
    an, wan = result("an", "none"), result("wan", "none")
    assert wan[0] > an[0] + 1.5
    assert wan[2] > an[2] + 0.04


def test_epr_holds_the_count(result):
    held, free = result("epr", "none"), result("epr", "none", weight=0.0)
    assert free[1] > 3.2, "positives alone say yes to nearly everything"
    assert held[1] < 2.4 and held[0] > 90


def test_partial_bce_learns_from_sure_negatives(result):
    assert result("partial_bce", "none")[0] > result("an", "none")[0] + 3


def test_role_learns_the_labels(result):
    role = result("role", "none", label_lr=0.2)
    assert role[3] > 90 > 80 > result("an", "none")[3]
    assert role[0] > result("an", "none")[0] + 2
    assert role[1] < 2.4


@pytest.mark.parametrize("name", ["ll_r", "ll_ct", "ll_cp"])
def test_large_losses_are_missed_positives(result, name):
    an, found = result("an", "one"), result(name, "one", delta=0.01)
    assert found[0] > an[0] + 1.5
    assert found[1] > an[1] + 0.3


def test_ll_cp_turns_mostly_true_positives(result, toy):
    method = result("ll_cp", "one", delta=0.01)[4]
    truth = toy.truth["train"]
    unknown = method.problem.observed == 0
    base = truth[unknown].mean().item()
    assert truth[method.flipped].mean().item() > base + 0.2


def test_g2netpl_finds_the_labels(result):
    found = result("g2netpl", "one")
    assert found[3] > 93
    assert found[0] > result("an", "one")[0] + 2


def test_asl_learns_from_a_tenth(result):
    assert result("asl", "10%")[0] > 88


def test_semantic_methods_read_the_cell(result):
    """Pooled features reach 91 from a tenth and 94 from 30 % of the labels; a class's own cell says more."""
    assert result("sst", "10%")[0] > 91
    assert result("sarb", "30%")[0] > 88
    assert result("sarb", "all")[0] > 97
    assert result("sst", "all")[0] > 97
