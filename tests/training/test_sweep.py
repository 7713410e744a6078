"""The sweep behind the recipes: its heads, trained side by side, are those that training makes one by one."""

from __future__ import annotations

import pytest
import torch

from benchmarks.training_sweep import RATES, draw_trials, refine_trials, standardised, train_side_by_side
from cdul_fast.training.heads import train_head
from cdul_fast.training.loop import LoopSettings
from cdul_fast.training.methods import Problem, create_method
from cdul_fast.training.recipes import Recipe


@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize(
    ("method", "options"), [("soft", [{}, {}]), ("cdul", [{"warmup": 1, "step": 0.3}, {"warmup": 2}])]
)
def test_side_by_side_equals_one_by_one(method, options, standardise):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(50, 8, generator=generator) * torch.logspace(-1, 1, 8)
    soft = torch.rand(50, 4, generator=generator)
    problem = Problem(soft, torch.zeros(50, 4, dtype=torch.int8))
    trials = [
        Recipe(lr, decay, 100.0, 3, own)
        for lr, decay, own in zip((1e-2, 3e-2), (0.0, 0.5), options, strict=True)
    ]
    seen = standardised(features, torch.arange(50).numpy()) if standardise else features
    methods = [create_method(method, problem, trial.options) for trial in trials]
    weights, biases = train_side_by_side(seen, methods, trials, 16, seed=5)
    for place, trial in enumerate(trials):
        settings = LoopSettings(epochs=3, batch_size=16, lr=trial.lr, weight_decay=trial.weight_decay, seed=5)
        alone = train_head(features, problem, method, trial.options, settings, standardise=standardise)
        head = alone.loop.network.head.linear
        assert torch.allclose(weights[place], head.weight, atol=1e-4)
        assert torch.allclose(biases[place], head.bias, atol=1e-4)
        assert torch.allclose(methods[place].labels(), alone.loop.method.labels(), atol=1e-4)


@pytest.mark.parametrize("scaling", list(RATES))
def test_every_method_has_as_many_trials(scaling):
    lrs, decays = RATES[scaling]
    for method in ("cdul", "soft", "an_ls"):
        trials = draw_trials(method, 14, 60, scaling)
        assert len(trials) == 14 and len({str(trial) for trial in trials}) == 14
        assert {trial.lr for trial in trials} <= set(lrs) and {t.weight_decay for t in trials} <= set(decays)
        more = refine_trials(method, trials[0], trials, 6)
        assert len(more) == 6 and not [trial for trial in more if trial in trials]
    assert len(draw_trials("bce", 100, 60, scaling)) == len(lrs) * len(decays), "its whole grid"
