"""The sweep behind the training recipes: the same number of random trials for every method.

    python -m benchmarks.training_sweep configs/compare_voc12_photos.yaml --trials 16 --methods cdul,soft,an

Trials are judged on validation parts of the training photos, by truth; the test photos are not read. Linear
heads of all trials of a method are trained side by side, as one matrix product a step, which is the same
arithmetic as one by one at a fraction of the time.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import os
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import torch

from cdul_fast.cli import parse_config
from cdul_fast.training.comparison import Bench, CompareConfig, prepare, train_one
from cdul_fast.training.loop import Standardise, mean_average_precision
from cdul_fast.training.methods import Batch, Method, Output, create_method, method_class
from cdul_fast.training.optim import learning_rate_factor
from cdul_fast.training.recipes import Recipe

# Learning rates and decays of the first round, by how features are scaled; alike for all methods.
RATES = {
    "standardise": ((3e-4, 1e-3, 3e-3), (0.3, 1.0, 3.0, 10.0, 20.0)),
    "none": ((1e-3, 3e-3, 1e-2), (0.0, 0.03, 0.1, 0.3, 1.0, 3.0)),
}
# Own settings of each method; "scale" is the softmax scale of the soft labels, "epochs" the length of the
# training where it is not --epochs: semantic heads fit a tenth of the labels within a few.
SPACES: dict[str, dict[str, tuple]] = {
    "soft": {"scale": (20.0, 50.0, 100.0, 200.0)},
    "cdul": {
        "scale": (50.0, 100.0, 200.0),
        "sigma": (0.2, 0.3, 0.5),
        "step": (0.02, 0.05, 0.1, 0.25),
        "warmup": (5, 10, 20, 40),
    },
    "an_ls": {"smoothing": (0.05, 0.1, 0.2)},
    "bce_ls": {"smoothing": (0.05, 0.1, 0.2)},
    "wan": {"negative_weight": (0.0, 0.1, 0.3)},
    "partial_bce": {"known": (0.3, 0.5, 0.7, 0.9)},
    "epr": {"weight": (1.0, 10.0, 100.0)},
    "role": {"label_lr": (0.003, 0.01, 0.03, 0.1)},
    "ll_r": {"delta": (0.0005, 0.001, 0.002, 0.005)},
    "ll_ct": {"delta": (0.0005, 0.001, 0.002, 0.005)},
    "ll_cp": {"delta": (0.0005, 0.001, 0.002, 0.005)},
    "g2netpl": {"draw": (0.0, 0.2, 0.5), "rate": (0.03, 0.1, 0.3), "warmup": (2, 5, 10)},
    "asl": {"gamma_negative": (0.0, 1.0, 2.0, 4.0), "margin": (0.0, 0.05), "unknown_negative": (False, True)},
    "sst": {
        "epochs": (4, 8),
        "start": (2, 3, 5),
        "width": (64, 256),
        "cooccurrence_weight": (0.1, 1.0, 10.0),
        "margin": (0.7, 0.8, 0.9, 0.95),
    },
    "sarb": {
        "epochs": (4, 8),
        "start": (2, 3, 5),
        "width": (64, 256),
        "contrastive_weight": (0.0, 0.05),
        "instance_weight": (0.1, 1.0),
        "prototype_weight": (0.1, 1.0),
    },
}
LEAST = 5


def draw_trials(method: str, count: int, epochs: int, scaling: str, seed: int = 0) -> list[Recipe]:
    """Distinct random points of a method's space; learning rates and decays are drawn alike for all."""
    lrs, decays = RATES[scaling]
    generator = np.random.default_rng(seed)
    space = SPACES.get(method, {})
    trials: list[Recipe] = []
    while len(trials) < count:
        lr, decay = (float(generator.choice(values)) for values in (lrs, decays))
        own = {name: values[int(generator.integers(len(values)))] for name, values in space.items()}
        scale = own.pop("scale", 100.0)
        trial = Recipe(lr, decay, scale, own.pop("epochs", epochs), own)
        if not _allowed(method, trial):
            continue
        if trial not in trials or not space:
            trials.append(trial)
        if not space:
            trials = list({json.dumps(dataclasses.asdict(t)): t for t in trials}.values())
            if len(trials) == len(lrs) * len(decays):
                break
    return trials


def refine_trials(method: str, best: Recipe, known: list[Recipe], count: int, seed: int = 1) -> list[Recipe]:
    """New points around the best so far: every number times 1/2, 1 or 2, drawn alike for all methods."""
    generator = np.random.default_rng(seed)
    space = SPACES.get(method, {})
    trials: list[Recipe] = []
    for _ in range(50 * count):

        def near(value: float) -> float:
            return float(value * generator.choice((0.5, 1.0, 2.0)))

        own = {}
        for name, value in best.options.items():
            if isinstance(value, bool) or value == 0:
                own[name] = space[name][int(generator.integers(len(space[name])))]
            elif isinstance(value, int):
                own[name] = max(1, round(near(value)))
            else:
                # Shares and smoothing stay below 1.
                own[name] = min(near(value), max(0.95, value)) if max(space[name]) < 1 else near(value)
        epochs = max(2, round(near(best.epochs))) if "epochs" in space else best.epochs
        trial = Recipe(near(best.lr), near(best.weight_decay), near(best.label_scale), epochs, own)
        if "scale" not in space:
            trial = dataclasses.replace(trial, label_scale=best.label_scale)
        if trial not in trials and trial not in known and _allowed(method, trial):
            trials.append(trial)
        if len(trials) == count:
            break
    return trials


def _allowed(method: str, trial: Recipe) -> bool:
    """Whether the label step can settle (the method refuses what cannot) and unknown labels are used."""
    own = trial.options
    settles = method != "cdul" or own["step"] < 2 * own["sigma"] * math.sqrt(2 * math.pi)
    return settles and own.get("start", 1) <= trial.epochs


def split(count: int, seed: int, share: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit on and rows to validate on."""
    order = np.random.default_rng((1234, seed)).permutation(count)
    cut = round(count * share)
    return np.sort(order[cut:]), np.sort(order[:cut])


def train_side_by_side(
    features: torch.Tensor, methods: list[Method], trials: list[Recipe], batch_size: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Train one linear head per trial on the same batches.

    Returns:
        Weights [T, C, D] and biases [T, C].
    """
    count, channels = features.shape
    classes, total = methods[0].problem.classes, len(trials)
    torch.manual_seed(seed)
    start = torch.nn.Linear(channels, classes)
    weights = start.weight.detach().expand(total, -1, -1).clone()
    biases = start.bias.detach().expand(total, -1).clone()
    leaves = [(torch.nn.Parameter(weights[t]), torch.nn.Parameter(biases[t])) for t in range(total)]
    optimizer = torch.optim.AdamW(
        [
            {"params": list(pair), "lr": trial.lr, "base": trial.lr, "weight_decay": trial.weight_decay}
            for pair, trial in zip(leaves, trials, strict=True)
        ],
        fused=True,
    )

    def logits_of(inputs: torch.Tensor) -> torch.Tensor:
        flat = torch.addmm(biases.flatten(), inputs, weights.view(total * classes, channels).T)
        return flat.view(len(inputs), total, classes).transpose(0, 1)

    epochs = trials[0].epochs
    steps = epochs * -(-count // batch_size)
    done = 0
    for epoch in range(1, epochs + 1):
        order = torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(count))
        for rows in order.split(batch_size):
            inputs, batch = features[rows], Batch(rows, epoch)
            with torch.no_grad():
                logits = logits_of(inputs).contiguous()
            logits.requires_grad_()
            outputs = [Output(logits[t]) for t in range(total)]
            losses = [m.loss(o, m.targets(batch), batch) for m, o in zip(methods, outputs, strict=True)]
            torch.stack(losses).sum().backward()
            with torch.no_grad():
                gradients = torch.einsum("tbc,bd->tcd", logits.grad, inputs)
                for t, (weight, bias) in enumerate(leaves):
                    weight.grad, bias.grad = gradients[t], logits.grad[t].sum(0)
                factor = learning_rate_factor("cosine", done / steps)
                for group in optimizer.param_groups:
                    group["lr"] = group["base"] * factor
                optimizer.step()
                for m, o in zip(methods, outputs, strict=True):
                    m.after_step(o, batch)
            done += 1
        with torch.no_grad():
            everything = logits_of(features)
        for t, method in enumerate(methods):
            method.after_epoch(epoch, functools.partial(_one_batch, Output(everything[t])))
    return weights, biases


def _one_batch(output: Output):
    return iter([(torch.arange(len(output.logits)), output)])


def standardised(features: torch.Tensor, fit: np.ndarray) -> torch.Tensor:
    """Features scaled as the loop scales them, by the rows that are fitted on."""
    scaling = Standardise(features.shape[1])
    scaling.fit(features[fit])
    return scaling(features)


def sweep_method(bench: Bench, name: str, trials: list[Recipe], splits: list[int]) -> list[dict]:
    """Validation mAP of every trial on every split."""
    truth = bench.train.truth
    judged = (bench.test.truth == 1).sum(0) >= 10  # the classes of the table, by count alone
    scores = np.full((len(trials), len(splits)), np.nan)
    for place, seed in enumerate(splits):
        fit, held = split(len(truth), seed)
        targets = np.where(judged, truth[held], 0)
        if method_class(name).wants_maps:
            for t, trial in enumerate(trials):
                result = train_one(bench, name, trial, seed, rows=fit)
                scores[t, place] = result.test(bench.features(name)[held], targets, LEAST)[0]
            continue
        features = bench.features(name).float()
        if bench.standardise:
            features = standardised(features, fit)
        methods = [
            create_method(name, bench.problem(name, trial.label_scale, seed, fit), trial.options)
            for trial in trials
        ]
        weights, biases = train_side_by_side(features[fit], methods, trials, 64, seed)
        for t in range(len(trials)):
            logits = features[held] @ weights[t].T + biases[t]
            scores[t, place] = mean_average_precision(logits.sigmoid().numpy(), targets, LEAST)[0]
    return [
        {**dataclasses.asdict(trial), "validation": [round(float(v), 2) for v in row]}
        for trial, row in zip(trials, scores, strict=True)
    ]


def _recipe(row: dict) -> Recipe:
    return Recipe(**{key: value for key, value in row.items() if key != "validation"})


def _rank(row: dict) -> float:
    return -float(np.mean(row["validation"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--refine", type=int, default=12, help="trials of the second round")
    parser.add_argument("--methods", default="all")
    parser.add_argument("--splits", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--feature-scaling", choices=tuple(RATES), help="without it as the config says")
    parser.add_argument("--out", help="without it benchmarks/results/training_sweep[_unscaled].json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    flags = ["--config", given.config]
    if given.feature_scaling:
        flags += ["--feature-scaling", given.feature_scaling]
    config = parse_config(CompareConfig, "training_sweep", flags)
    scaling = config.feature_scaling
    names = config.method_list() if given.methods == "all" else tuple(given.methods.split(","))
    bench = prepare(config)
    suffix = "" if scaling == "standardise" else "_unscaled"
    out = Path(given.out or f"benchmarks/results/training_sweep{suffix}.json")
    stored = json.loads(out.read_text()) if out.is_file() else {"methods": {}}
    for name in names:
        splits = [int(s) for s in given.splits.split(",")]
        known = stored["methods"].get(name, {"seconds": 0.0, "trials": []})
        for count, refine in ((given.trials, False), (given.refine, True)):
            if not count or (known["trials"] and not refine):
                continue
            start = time.perf_counter()
            points = [_recipe(row) for row in known["trials"]]
            if refine:
                points = refine_trials(name, points[0], points, count)
            else:
                points = draw_trials(name, count, given.epochs, scaling)
            rows = sorted(known["trials"] + sweep_method(bench, name, points, splits), key=_rank)
            seconds = round(known["seconds"] + time.perf_counter() - start, 1)
            # A round that has ended is kept, whatever becomes of the next.
            known = {"seconds": seconds, "trials": rows}
            stored["methods"][name] = known
            stored["command"] = shlex.join(["python", "-m", "benchmarks.training_sweep", *sys.argv[1:]])
            stored["feature_scaling"] = scaling
            stored["torch"] = torch.__version__
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(stored, indent=1))
        best = known["trials"][0]
        print(f"{name:12} {np.mean(best['validation']):.2f} {best} ({known['seconds']} s)", flush=True)


if __name__ == "__main__":
    main()
