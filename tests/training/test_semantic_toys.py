"""SST and SARB on toy problems of their own, and each of their parts, broken, failing there.

Thresholds lie between what the right method and the wrong ones gave on seeds 0 to 2; those of SARB's score
and of the transfer within a photo on seed 0 alone, as the level there changes with the seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from toy import fit, mean_ap

from cdul_fast.training.methods import Problem, create_method, sarb, sst
from cdul_fast.training.methods.semantic import SemanticHead

IMAGES, CHANNELS = 256, 24


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def directions(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=generator)).Q[:count]


class PositivesAlone:
    """Four classes of which 30 % of the positives are known and no negative.

    What is known says yes to everything. Blends tell a photo's own feature from a known positive's: they are
    positive to the degree of the latter alone.
    """

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        marks = directions(4, generator)
        self.truth, self.maps = {}, {}
        for split in ("train", "test"):
            truth = (torch.rand(IMAGES, 4, generator=generator) < 0.35).float()
            noise = 0.6 * torch.randn(IMAGES, CHANNELS, generator=generator)
            self.truth[split], self.maps[split] = truth, (noise + 2 * truth @ marks)[:, :, None, None]
        known = torch.rand(IMAGES, 4, generator=generator) < 0.3
        self.observed = (known * self.truth["train"]).to(torch.int8)

    def blend(self, **weights: float) -> tuple[float, float, float]:
        """Train; test mAP, accuracy and mean number of predicted positives (there are 1.4)."""
        torch.manual_seed(0)
        problem = Problem(torch.full(self.observed.shape, 0.5), self.observed, True)
        options = {"rank": 4, "contrastive_weight": 0.0, "prototypes": 3, **weights}
        see = fit(create_method("sarb", problem, options), self.maps["train"], lr=0.02, epochs=30)
        logits, truth = see(self.maps["test"]).logits, self.truth["test"]
        accuracy = ((logits > 0).float() == truth).float().mean().item()
        return mean_ap(logits, truth), accuracy, logits.sigmoid().sum(1).mean().item()


PARTS = {
    "photos": {"prototype_weight": 0.0, "instance_weight": 4.0},
    "prototypes": {"instance_weight": 0.0, "prototype_weight": 4.0},
}


def sarb_learns(parts: dict[str, float]) -> bool:
    score, accuracy, count = PositivesAlone().blend(**parts)
    return score > 90.5 and accuracy > 0.51 and count < 2.9


@pytest.mark.parametrize("part", PARTS)
def test_sarb_learns_from_blends_with(part: str) -> None:
    assert sarb_learns(PARTS[part])


def test_sarb_without_blends_says_yes_to_nearly_everything() -> None:
    _, accuracy, count = PositivesAlone().blend(prototype_weight=0.0, instance_weight=0.0)
    assert accuracy < 0.47 and count > 3.1


REAL: dict[str, Any] = {
    "blends": sarb.Sarb._blends,
    "after_epoch": sarb.Sarb.after_epoch,
    "partners": sarb.draw_partners,
    "within": sst.within_image,
    "between": sst.between_images,
}


def with_itself(self, features, donors, share):
    return REAL["blends"](self, features, features, share)


def shares_exchanged(self, features, donors, share):
    return REAL["blends"](self, donors, features, share)


def backwards(self, features, donors, share):
    return REAL["blends"](self, -features, -donors, share)


def no_blends(self, features, donors, share):
    return REAL["blends"](self, features, donors, share) * 0


def of_the_next_class(self, epoch, sweep):
    REAL["after_epoch"](self, epoch, sweep)
    if self._centres is not None:
        self._centres = self._centres.roll(1, 0)


def never(self, epoch, sweep):
    return None


def anyone(observed, generator):
    partners, usable = REAL["partners"](observed, generator)
    return torch.randint(len(observed), partners.shape, generator=generator), usable


@pytest.mark.parametrize(
    ("part", "owner", "name", "wrong"),
    [
        *((part, sarb.Sarb, "_blends", with_itself) for part in PARTS),
        *((part, sarb.Sarb, "_blends", shares_exchanged) for part in PARTS),
        *((part, sarb.Sarb, "_blends", backwards) for part in PARTS),
        *((part, sarb.Sarb, "_blends", no_blends) for part in PARTS),
        ("photos", sarb, "draw_partners", anyone),
        ("prototypes", sarb.Sarb, "after_epoch", of_the_next_class),
        ("prototypes", sarb.Sarb, "after_epoch", never),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_wrong_sarb_fails(monkeypatch, part, owner, name, wrong) -> None:
    monkeypatch.setattr(owner, name, wrong)
    assert not sarb_learns(PARTS[part])


class Marks:
    """Cell c of a map is about class c: who it is, and its mark where the photo has the class.

    Attention is given, cell c to class c, so that what is seen is the transfer of labels.

    Args:
        together: Classes 0 and 1 are in the same photos; without it no class tells of another.
    """

    def __init__(self, together: bool = False) -> None:
        self.generator = torch.Generator().manual_seed(0)
        basis = directions(10, self.generator)
        self.truth, self.maps = {}, {}
        for split in ("train", "test"):
            truth = (torch.rand(IMAGES, 5, generator=self.generator) < 0.4).float()
            if together:
                truth[:, 1] = truth[:, 0]
            noise = 0.35 * torch.randn(IMAGES, 5, CHANNELS, generator=self.generator)
            cells = basis[:5] + noise + 2 * truth[:, :, None] * basis[5:]
            self.truth[split], self.maps[split] = truth, cells.transpose(1, 2)[..., None]

    def known(self, positives: float | torch.Tensor, negatives: float) -> torch.Tensor:
        """A share of the positives (of all classes, or [5]) and one of the negatives, int8 [N, 5]."""
        drawn, truth = torch.rand(IMAGES, 5, generator=self.generator), self.truth["train"]
        return torch.where(truth == 1, (drawn < positives).float(), -(drawn < negatives).float())

    def logits(self, observed: torch.Tensor, **options: float) -> torch.Tensor:
        """Train SST; logits of the test photos."""
        torch.manual_seed(0)
        problem = Problem(torch.full(observed.shape, 0.5), observed.to(torch.int8), True)
        method = create_method("sst", problem, {"rank": 8, "contrastive_weight": 0.0, **options})
        return fit(method, self.maps["train"], lr=0.02, epochs=20)(self.maps["test"]).logits


@pytest.fixture
def given_attention(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(SemanticHead, "attention", lambda _, cells: torch.eye(5).expand(len(cells), 5, 5))
    return monkeypatch


def nothing_within(pairs, observed):
    return torch.zeros_like(REAL["within"](pairs, observed))


def nothing_between(features, observed):
    return torch.zeros_like(REAL["between"](features, observed))


def between_learns() -> bool:
    """A twenty-fifth of the positives is known; photos that have a class look alike in its cell."""
    toy = Marks()
    logits, truth = toy.logits(toy.known(0.04, 0.1), margin=0.6), toy.truth["test"]
    right = (logits > 0).float() == truth
    return right[truth == 1].float().mean().item() > 0.95 and right.float().mean().item() > 0.95


def test_sst_takes_labels_from_photos_that_look_alike(given_attention) -> None:
    given_attention.setattr(sst, "within_image", nothing_within)
    assert between_learns()


def to_the_next_photo(features, observed):
    return REAL["between"](features, observed).roll(1, 0)


def to_the_next_class(features, observed):
    return REAL["between"](features, observed).roll(1, 1)


def from_negatives(features, observed):
    return REAL["between"](features, -observed)


@pytest.mark.parametrize("wrong", [nothing_between, to_the_next_photo, to_the_next_class, from_negatives])
def test_a_wrong_transfer_between_photos_fails(given_attention, wrong) -> None:
    given_attention.setattr(sst, "within_image", nothing_within)
    given_attention.setattr(sst, "between_images", wrong)
    assert not between_learns()


def within_learns() -> bool:
    """Class 1 is in all photos of class 0, whose positives are known; of its own only a twenty-fifth is."""
    toy = Marks(together=True)
    observed = toy.known(torch.tensor([0.9, 0.04, 0.5, 0.5, 0.5]), 0.1)
    logits, truth = toy.logits(observed, margin=0.8), toy.truth["test"]
    right = (logits > 0).float() == truth
    return right[truth[:, 1] == 1, 1].float().mean().item() > 0.9 and right.float().mean().item() > 0.92


def test_sst_takes_labels_from_classes_of_the_same_photo(given_attention) -> None:
    given_attention.setattr(sst, "between_images", nothing_between)
    assert within_learns()


def within_the_next_photo(pairs, observed):
    return REAL["within"](pairs, observed).roll(1, 0)


def within_the_next_class(pairs, observed):
    return REAL["within"](pairs, observed).roll(1, 1)


def within_negatives(pairs, observed):
    return REAL["within"](pairs, -observed)


@pytest.mark.parametrize(
    "wrong", [nothing_within, within_the_next_photo, within_the_next_class, within_negatives]
)
def test_a_wrong_transfer_within_a_photo_fails(given_attention, wrong) -> None:
    given_attention.setattr(sst, "between_images", nothing_between)
    given_attention.setattr(sst, "within_image", wrong)
    assert not within_learns()
