"""A toy problem: linear features of four classes, on which the methods' ideas can be seen to work."""

from __future__ import annotations

import numpy as np
import torch

from cdul_fast.training.methods import Batch, Problem, create_method
from cdul_fast.training.observe import observe

IMAGES, CLASSES, CHANNELS, CELLS = 256, 4, 16, 4
EPOCHS, BATCH = 24, 64


class Toy:
    """Train and test photos as feature maps; each class present adds its direction to one random cell."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        directions = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=generator)).Q[:CLASSES]
        self.truth, self.maps = {}, {}
        for split in ("train", "test"):
            truth = (torch.rand(IMAGES, CLASSES, generator=generator) < 0.35).float()
            empty = truth.sum(1) == 0
            truth[empty, torch.randint(CLASSES, (int(empty.sum()),), generator=generator)] = 1
            maps = 0.5 * torch.randn(IMAGES, CHANNELS, CELLS, generator=generator)
            where = torch.randint(CELLS, (IMAGES, CLASSES), generator=generator)
            place = torch.nn.functional.one_hot(where, CELLS).float() * truth[:, :, None]
            maps += 3.0 * torch.einsum("ncl,cd->ndl", place, directions)
            self.truth[split] = truth
            self.maps[split] = maps.reshape(IMAGES, CHANNELS, 2, 2)

    def soft(self, noise: float = 1.5, seed: int = 1) -> torch.Tensor:
        """Softmax scores that see the truth through noise, as CLIP's do: [N, C]."""
        generator = torch.Generator().manual_seed(seed)
        truth = self.truth["train"]
        return (3 * truth + noise * torch.randn(truth.shape, generator=generator)).softmax(1)

    def corrupted(self, share: float = 0.25, seed: int = 1) -> torch.Tensor:
        """Labels of 0.7 and 0.3 of which ``share`` tell the opposite of the truth: [N, C]."""
        generator = torch.Generator().manual_seed(seed)
        truth = self.truth["train"]
        wrong = (torch.rand(truth.shape, generator=generator) < share).float()
        return 0.3 + 0.4 * (truth - wrong).abs()

    def problem(self, budget: str, seed: int = 0, soft: torch.Tensor | None = None) -> Problem:
        """The training set under an annotation budget."""
        soft = self.soft() if soft is None else soft
        truth = self.truth["train"].numpy().astype(np.int8)
        observed = observe(budget, truth=truth, soft=soft.numpy(), seed=seed)
        count = float(truth.sum(1).mean())
        return Problem(soft, torch.from_numpy(observed), budget != "none", count)

    def train(self, name, budget, options=None, *, lr=0.03, epochs=EPOCHS, seed=0, soft=None):
        """Train a method with Adam; returns (test logits, method)."""
        torch.manual_seed(seed)
        method = create_method(name, self.problem(budget, soft=soft), options)
        see = fit(method, self.maps["train"], lr=lr, epochs=epochs)
        return see(self.maps["test"]).logits, method


def fit(method, maps, *, lr, epochs, batch_size=BATCH):
    """Train a method's head on feature maps with Adam; returns what gives its output for other maps."""
    head = method.build_head(maps.shape[1])
    parameters = list(head.parameters())
    if method.modules() is not None:
        parameters += list(method.modules().parameters())
    optimizer = torch.optim.Adam([p for p in parameters if p.requires_grad], lr)

    def see(inputs):
        return head(inputs if method.wants_maps else inputs.mean((2, 3)))

    def sweep():
        with torch.no_grad():
            for rows in torch.arange(len(maps)).split(batch_size):
                yield rows, see(maps[rows])

    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(len(maps)).split(batch_size):
            batch = Batch(rows, epoch)
            output = see(maps[rows])
            loss = method.loss(output, method.targets(batch), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            method.after_step(output, batch)
        method.after_epoch(epoch, sweep)
    return torch.no_grad()(see)


def mean_ap(scores: torch.Tensor, truth: torch.Tensor) -> float:
    """Macro average precision in percent, with scikit-learn."""
    from sklearn.metrics import average_precision_score

    return 100 * float(average_precision_score(truth.numpy(), scores.numpy(), average="macro"))
