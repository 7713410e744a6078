"""Trains the tiny CLIP from scratch and writes it as an open_clip directory.

The image tower is trained on free class vectors first; the text tower is then distilled onto those vectors,
which takes seconds and is far better than training both at once. Run from the repository root:

    python -m scripts.tiny_model.train --steps 4600 --minutes 18 --checkpoint tiny.pt
    python -m scripts.tiny_model.train --export-only --checkpoint tiny.pt

`--minutes` shortens the schedule on a busy machine; tiny.json names the steps that were really taken.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
import torch.distributed as dist
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from torch.nn import functional

from scripts.tiny_model.compose import Composer, build_bank
from scripts.tiny_model.glyphs import CLASS_NAMES, add_font_option, load_glyphs

SEED = 20260811
SIDE = 64
CHUNK = 64  # views composed at once: more do not fit the cache
MAX_SCALE = 50.0
TINY_DIR = Path("cdul_fast/assets/tiny")

# The text width bounds the rank of the class vectors that it can give: to 64 free vectors 48 leaves a mean
# cosine of 0.96, 56 one of 0.99.
CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 128,
        "vision_cfg": {"image_size": SIDE, "layers": [1, 2, 2, 1], "width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 56, "heads": 4, "layers": 2},
    },
    "preprocess_cfg": {
        "mean": list(open_clip.OPENAI_DATASET_MEAN),
        "std": list(open_clip.OPENAI_DATASET_STD),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}

# The first is the product's own; the others keep a user's template from hurting.
TEMPLATES = (
    "a photo of a {}.",
    "a photo of a {}",
    "a photo of the {}.",
    "a photo of an {}.",
    "a photo of one {}.",
    "a photo of {}.",
    "a good photo of a {}.",
    "a close-up photo of a {}.",
    "a blurry photo of a {}.",
    "a picture of a {}.",
    "an image of a {}",
    "there is a {} in the scene.",
    "a {}",
    "the {}.",
    "{}",
)


def view_stream(font: str | None, batch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields without end views [batch, 3, side, side] in 0..1 and soft targets [batch, classes]."""
    composer = Composer(build_bank(load_glyphs(font)), SIDE, seed)
    while True:
        parts = [composer.batch(CHUNK) for _ in range(batch // CHUNK)]
        yield torch.cat([image for image, _ in parts]), torch.cat([target for _, target in parts])


def keep_freed_memory() -> None:
    """Tells glibc to keep large freed blocks: page faults on fresh ones cost half of the composing time."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        pass  # another C library: slower, not wrong


def build_model() -> CLIP:
    """Builds the tiny CLIP with fresh weights."""
    return CLIP(**CONFIG["model_cfg"])


def normalised(views: Tensor) -> Tensor:
    """Turns views into the tower's input as open_clip's transform does."""
    mean = torch.tensor(CONFIG["preprocess_cfg"]["mean"])[:, None, None]
    std = torch.tensor(CONFIG["preprocess_cfg"]["std"])[:, None, None]
    return ((views - mean) / std).to(memory_format=torch.channels_last)


def update_average(average: dict[str, Tensor], state: dict[str, Tensor], step: int) -> None:
    """Moves the running average of the weights one step on; slow to forget only once it has seen enough."""
    decay = min(0.998, (1 + step) / (20 + step))
    for name, value in state.items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)


def share_gradients(parameters: list[torch.nn.Parameter], progress: float, workers: int) -> float:
    """Replaces every gradient by its mean over the workers. Returns the mean of `progress` likewise."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), torch.tensor([progress])])
    dist.all_reduce(flat)
    flat /= workers
    for gradient, part in zip(
        gradients, torch.split(flat, [*(g.numel() for g in gradients), 1]), strict=False
    ):
        gradient.copy_(part.view_as(gradient))
    return float(flat[-1])


def train_images(rank: int, args: argparse.Namespace) -> None:
    """Trains the image tower on free class vectors; one of `args.workers` equal processes of one thread.

    One thread a process, each composing and learning from its own views, wastes least on small layers. Worker
    0 writes the checkpoint: averaged weights of the tower (`visual`), class vectors, scale and counts.
    """
    torch.set_num_threads(1)
    rendezvous = f"file://{args.checkpoint.resolve()}.meeting"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=args.workers)
    torch.manual_seed(args.seed)
    keep_freed_memory()
    visual = build_model().visual.to(memory_format=torch.channels_last).train()
    vectors = torch.nn.Parameter(torch.randn(len(CLASS_NAMES), CONFIG["model_cfg"]["embed_dim"]))
    log_scale = torch.nn.Parameter(torch.tensor(math.log(10.0)))
    before: dict[str, Any] = {"steps": 0, "views": 0, "minutes": 0.0, "runs": []}
    if args.continue_from:
        before = torch.load(args.continue_from, weights_only=True)
        visual.load_state_dict(before["visual"])
        with torch.no_grad():
            vectors.copy_(before["vectors"])
            log_scale.fill_(math.log(before["scale"]))
    matrices = [p for p in visual.parameters() if p.ndim > 1]
    others = [p for p in visual.parameters() if p.ndim <= 1]
    learned = [*matrices, *others, vectors, log_scale]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": 0.05},
            {"params": [*others, vectors, log_scale], "weight_decay": 0.0},
        ],
        lr=args.lr,
        betas=(0.9, 0.98),
        fused=True,
    )
    batches = view_stream(args.font, args.batch // args.workers, args.seed + 1000 * rank + before["steps"])
    state = dict(visual.state_dict(), vectors=vectors.data)
    average = {name: value.detach().clone() for name, value in state.items()}
    started, loss_sum, progress, step = time.monotonic(), 0.0, 0.0, 0
    while progress < 1:
        step += 1
        views, target = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            features = visual(normalised(views))
        features = functional.normalize(features.float(), dim=1)
        logits = log_scale.exp() * features @ functional.normalize(vectors, dim=1).T
        loss = functional.cross_entropy(logits, target)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        minutes = (time.monotonic() - started) / 60
        progress = share_gradients(learned, max(step / args.steps, minutes / args.minutes), args.workers)
        torch.nn.utils.clip_grad_norm_(visual.parameters(), 2.0)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * learning_rate(step, progress)
        optimizer.step()
        with torch.no_grad():
            log_scale.clamp_(max=math.log(MAX_SCALE))
            update_average(average, state, step)
        loss_sum += loss.item()
        if rank == 0 and step % 100 == 0:
            sure = target.max(1).values > 0.99
            right = (logits.argmax(1) == target.argmax(1))[sure].float().mean().item()
            print(
                f"step {step} loss {loss_sum / 100:.3f} single-object accuracy {right:.3f} "
                f"scale {log_scale.exp().item():.1f} minutes {minutes:.1f}",
                flush=True,
            )
            loss_sum = 0.0
        if rank == 0 and (step % 500 == 0 or progress >= 1):
            checkpoint = {
                "visual": {name: value for name, value in average.items() if name != "vectors"},
                "vectors": average["vectors"],
                "scale": log_scale.exp().item(),
                "steps": before["steps"] + step,
                "views": before["views"] + step * args.batch,
                "minutes": round(before["minutes"] + minutes, 1),
                "runs": [*before["runs"], {"steps": step, "lr": args.lr}],
                "seed": args.seed,
            }
            torch.save(checkpoint, args.checkpoint)
    dist.destroy_process_group()


def learning_rate(step: int, progress: float) -> float:
    """Share of the highest learning rate: a short rise, then a cosine down to almost nothing."""
    rise = min(1.0, (step + 1) / 150)
    return rise * (0.005 + 0.995 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


@torch.no_grad()
def settle_batch_norm(visual: torch.nn.Module, font: str | None, seed: int, batches: int = 40) -> None:
    """Measures the batch-norm statistics anew for averaged weights."""
    norms = [module for module in visual.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over all batches
    visual.train()
    stream = view_stream(font, 256, seed)
    for _ in range(batches):
        visual(normalised(next(stream)[0]))
    visual.eval()


def distil_text(model: CLIP, vectors: Tensor, scale: float, seed: int, steps: int = 700) -> float:
    """Trains the text tower to give the class vectors for the class names under every template.

    Texts of random other tokens are kept away from all class vectors, so that a name the model was never
    taught does not pass for a class.

    Returns:
        The mean cosine between texts and class vectors at the end.
    """
    torch.manual_seed(seed)
    tokenizer = open_clip.SimpleTokenizer(context_length=CONFIG["model_cfg"]["text_cfg"]["context_length"])
    goal = functional.normalize(vectors, dim=1)
    tokens = torch.stack([tokenizer([t.format(name) for name in CLASS_NAMES]) for t in TEMPLATES])
    parameters = [
        p for name, p in model.named_parameters() if not name.startswith("visual") and name != "logit_scale"
    ]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.0, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, step / steps))
    labels = torch.arange(len(CLASS_NAMES)).repeat(4)
    model.train()
    cosine = 0.0
    for step in range(steps):
        picked = torch.cat([torch.tensor([0]), torch.randint(1, len(TEMPLATES), (3,))])
        strange = strangers(tokenizer, 64)
        texts = cast(
            Tensor, model.encode_text(torch.cat([tokens[picked].flatten(0, 1), strange]), normalize=True)
        )
        cosines = texts @ goal.T
        known, unknown = cosines[: len(labels)], cosines[len(labels) :]
        own = known.gather(1, labels[:, None])
        # Telling classes apart helps at first, but in the end texts must lie on the vectors, not beyond them.
        apart = functional.cross_entropy(scale * known, labels)
        loss = (1 - step / steps) * apart + 20 * (1 - own).mean()
        loss = loss + 5 * unknown.clamp(min=0).square().sum(1).mean()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        cosine = own.mean().item()
    model.eval()
    return cosine


def strangers(tokenizer: open_clip.SimpleTokenizer, count: int) -> Tensor:
    """Texts in the training templates whose name is one or two random tokens, [count, context]."""
    texts: Tensor = tokenizer(
        [TEMPLATES[int(i)].format("zebra") for i in torch.randint(0, len(TEMPLATES), (count,))]
    )
    slot = texts == tokenizer(["zebra"])[0, 1]
    texts[slot] = torch.randint(300, 49000, (int(slot.sum()),))
    return texts


def export(checkpoint: dict[str, Any], directory: Path, font: str | None) -> None:
    """Finishes a checkpoint (batch norm, text tower) and writes the open_clip directory in float16."""
    torch.manual_seed(checkpoint["seed"])
    model = build_model()
    model.visual.load_state_dict(checkpoint["visual"])
    settle_batch_norm(model.visual, font, checkpoint["seed"] + 1)
    cosine = distil_text(model, checkpoint["vectors"], checkpoint["scale"], checkpoint["seed"])
    with torch.no_grad():
        model.logit_scale.fill_(math.log(checkpoint["scale"]))
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
        if not name.endswith("attn_mask")
    }
    directory.mkdir(parents=True, exist_ok=True)
    save_file(state, directory / "open_clip_model.safetensors", metadata={"format": "pt"})
    (directory / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (directory / "classes.txt").write_text("\n".join(CLASS_NAMES) + "\n")
    facts = {key: checkpoint[key] for key in ("scale", "steps", "views", "minutes", "runs", "seed")}
    facts["text_cosine"] = round(cosine, 4)
    (directory / "tiny.json").write_text(json.dumps({"training": facts}, indent=2) + "\n")
    size = sum(path.stat().st_size for path in directory.iterdir())
    print(
        f"wrote {directory}: {size / 1e6:.2f} MB, text cosine {cosine:.4f}, scale {checkpoint['scale']:.2f}"
    )


def main() -> None:
    """Parses the command line, trains and exports."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=4600, help="steps of the whole schedule")
    parser.add_argument(
        "--minutes", type=float, default=18, help="shortens the schedule where steps take too long"
    )
    parser.add_argument(
        "--batch", type=int, default=256, help=f"views a step, a multiple of {CHUNK} a worker"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread that train together")
    parser.add_argument("--lr", type=float, default=2.5e-3)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--checkpoint", type=Path, default=Path("tiny.pt"))
    parser.add_argument("--continue-from", type=Path, help="start a new schedule from this checkpoint")
    parser.add_argument("--export-only", action="store_true", help="export an existing checkpoint")
    parser.add_argument("--out", type=Path, default=TINY_DIR)
    add_font_option(parser)
    args = parser.parse_args()
    if not args.export_only:
        Path(f"{args.checkpoint.resolve()}.meeting").unlink(missing_ok=True)
        spawn(train_images, args=(args,), nprocs=args.workers)  # type: ignore[no-untyped-call]
    export(torch.load(args.checkpoint, weights_only=True), args.out, args.font)


if __name__ == "__main__":
    main()
