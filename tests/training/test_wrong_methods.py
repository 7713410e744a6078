"""The toy problem tells right from wrong: each method, broken in a plausible way, fails its test there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import test_methods_learn as learn
import torch
from test_methods_learn import trainer
from toy import Toy

from cdul_fast.training.latent import LatentLabels
from cdul_fast.training.methods import asl, epr, g2netpl, ll, method_class, partial_bce, role, sst
from cdul_fast.training.methods.base import entropy_terms
from cdul_fast.training.methods.semantic import SemanticHead

RIGHT: dict[str, Any] = {
    "move": LatentLabels.move,
    "suspects": ll.LlR.suspects,
    "asymmetric": asl.asymmetric_terms,
    "lowest": partial_bce.lowest_as_negatives,
    "after_step": g2netpl.G2NetPl.after_step,
}


@pytest.fixture(scope="module")
def toy():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Toy()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def right(toy):
    return trainer(toy)


def unweighted(self, output, targets, batch):
    return entropy_terms(output.logits, targets).mean()


def unknown_as_positive(self, batch):
    return (self.problem.observed[batch.rows] != -1).float()


def known_as_positive(self, batch):
    return (self.problem.observed[batch.rows] != 0).float()


def of_another_photo(self, batch):
    return self.problem.soft[(batch.rows + 1) % len(self.problem.soft)]


def smoothed_downwards(self, batch):
    return (self.problem.observed[batch.rows] == 1).float() * (1 - self.settings.smoothing)


def exchanged(logits, targets, *rest):
    return RIGHT["asymmetric"](logits, 1 - targets, *rest)


def everywhere_alike(self, cells):
    return torch.full((len(cells), self.weight.shape[0], cells.shape[1]), 1.0 / cells.shape[1])


def rest(self, *_, **__):
    return None


def away(self, rows, logits, *, sigma, step):
    RIGHT["move"](self, rows, -logits, sigma=sigma, step=step)


def to_the_wrong_photos(self, rows, logits, *, sigma, step):
    RIGHT["move"](self, rows, logits.flip(0), sigma=sigma, step=step)


def smallest(self, terms, batch):
    return RIGHT["suspects"](self, -terms, batch)


def none_of_them(self, terms, batch):
    return torch.zeros_like(terms, dtype=torch.bool)


def opposite(self, output, batch):
    from cdul_fast.training.methods import Output

    RIGHT["after_step"](self, Output(-output.logits), batch)


def no_penalty(logits, expected):
    return logits.sum() * 0


def the_more_the_better(logits, expected):
    return logits.sigmoid().sum(1).mean() * -0.1


def certain(self, batch):
    return (self.problem.observed[batch.rows] == 1).float()


def highest(observed, soft, share):
    return RIGHT["lowest"](observed, -soft, share)


SMOOTH = learn.test_bce_ls_learns_and_never_becomes_certain
SOFT = learn.test_soft_learns_more_than_the_top_class
SURE = learn.test_partial_bce_learns_from_sure_negatives
SEMANTIC = learn.test_semantic_methods_read_the_cell
LARGE = learn.test_large_losses_are_missed_positives
MENDS = learn.test_cdul_mends_labels_and_beats_them_fixed
CASES: list[tuple[str, Any, str, Any, Callable[..., None], tuple[str, ...]]] = [
    ("bce", method_class("bce"), "targets", known_as_positive, learn.test_bce_learns, ()),
    ("bce", method_class("bce"), "loss", unweighted, learn.test_bce_learns, ()),
    ("bce_ls", method_class("bce_ls"), "targets", certain, SMOOTH, ()),
    ("an", method_class("an"), "targets", unknown_as_positive, learn.test_an_learns_the_top_class, ()),
    ("soft", method_class("soft"), "targets", of_another_photo, SOFT, ()),
    (
        "an_ls",
        method_class("an_ls"),
        "targets",
        smoothed_downwards,
        learn.test_an_ls_never_becomes_certain,
        (),
    ),
    ("wan", method_class("wan"), "loss", unweighted, learn.test_wan_predicts_more_positives_than_an, ()),
    ("epr", epr, "count_penalty", no_penalty, learn.test_epr_holds_the_count, ()),
    ("epr", epr, "count_penalty", the_more_the_better, learn.test_epr_holds_the_count, ()),
    ("partial_bce", partial_bce, "lowest_as_negatives", highest, SURE, ()),
    ("role", role.Role, "after_step", rest, learn.test_role_learns_the_labels, ()),
    ("role", role, "count_penalty", no_penalty, learn.test_role_learns_the_labels, ()),
    ("ll_r", ll.LlR, "suspects", smallest, LARGE, ("ll_r",)),
    ("ll_ct", ll.LlR, "suspects", none_of_them, LARGE, ("ll_ct",)),
    ("ll_cp", ll.LlR, "suspects", smallest, LARGE, ("ll_cp",)),
    ("g2netpl", g2netpl.G2NetPl, "after_step", rest, learn.test_g2netpl_finds_the_labels, ()),
    ("g2netpl", g2netpl.G2NetPl, "after_step", opposite, learn.test_g2netpl_finds_the_labels, ()),
    ("asl", asl, "asymmetric_terms", exchanged, learn.test_asl_learns_from_a_tenth, ()),
    ("sst", SemanticHead, "attention", everywhere_alike, SEMANTIC, ()),
    ("sst", sst, "asymmetric_terms", exchanged, SEMANTIC, ()),
    ("sarb", SemanticHead, "attention", everywhere_alike, SEMANTIC, ()),
    ("cdul", LatentLabels, "move", rest, MENDS, ("toy",)),
    ("cdul", LatentLabels, "move", away, MENDS, ("toy",)),
    ("cdul", LatentLabels, "move", to_the_wrong_photos, MENDS, ("toy",)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[2]}")
def test_a_wrong_implementation_fails(toy, right, monkeypatch, case):
    name, owner, attribute, wrong, check, more = case
    broken = trainer(toy)
    monkeypatch.setattr(owner, attribute, wrong)

    def result(method, *given, **options):
        # What a method is compared with is sound, for the breakage does not reach it, and is trained once.
        sound = method in ("an", "soft", "bce") and method != name
        return (right if sound else broken)(method, *given, **options)

    with pytest.raises(AssertionError):
        check(result, *(toy if one == "toy" else one for one in more))
