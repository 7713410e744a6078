"""Small CLIP models with random weights, saved as users have them: folders and single files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

SIZE = 64
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 48, "heads": 4, "layers": 2}
VISION: dict[str, dict[str, Any]] = {
    "resnet": {"image_size": SIZE, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
    "vit": {"image_size": SIZE, "layers": 2, "width": 64, "head_width": 16, "patch_size": 16},
}


def model_config(kind: str, quick_gelu: bool | None = None) -> dict[str, Any]:
    """open_clip's configuration of a small model; without ``quick_gelu`` it does not speak of it."""
    config: dict[str, Any] = {"embed_dim": 96, "vision_cfg": VISION[kind], "text_cfg": TEXT}
    return config if quick_gelu is None else config | {"quick_gelu": quick_gelu}


def random_weights(kind: str) -> dict[str, torch.Tensor]:
    """Weights under which every layer counts and different views give clearly different embeddings."""
    import open_clip

    generator = torch.Generator().manual_seed(3)
    model = open_clip.CLIP(**model_config(kind)).eval()
    state = {name: _draw(name, value, generator) for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    # Take away most of what all views have in common, which in a random network is nearly everything; all of
    # it would leave little more than rounding in the ResNet.
    with torch.inference_mode():
        common = model.encode_image(views(32, seed=1)).mean(dim=0)
        if kind == "resnet":
            state["visual.attnpool.c_proj.bias"] -= 0.85 * common
        else:
            state["visual.ln_post.bias"] -= common @ torch.linalg.pinv(state["visual.proj"])
    return {name: value.contiguous() for name, value in state.items()}


def _draw(name: str, value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if not value.is_floating_point() or name == "logit_scale":
        return value
    noise = torch.randn(value.shape, generator=generator)
    if name.endswith("running_var"):
        return 0.5 + noise.abs()
    if value.ndim > 1:
        return noise * (2 / value[0].numel()) ** 0.5
    norm = any(part.startswith(("bn", "ln")) for part in name.split(".")[-2:-1])
    return noise * 0.1 + (1.0 if norm and name.endswith("weight") else 0.0)


def make_folder(folder: Path, kind: str, quick_gelu: bool | None = None) -> Path:
    """A folder as open_clip's hub models have it."""
    folder.mkdir(parents=True)
    content = {"model_cfg": model_config(kind, quick_gelu), "preprocess_cfg": {"mean": [0.5, 0.4, 0.3]}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    save_file(random_weights(kind), folder / "open_clip_model.safetensors")
    return folder


def views(count: int, seed: int = 0) -> torch.Tensor:
    """[count, 3, 64, 64]: stripes and blotches of many sizes, unlike each other as photos are."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    fine = torch.randn(count, 3, 16, 16, generator=generator)
    grow = torch.nn.functional.interpolate
    strength = torch.rand(count, 1, 1, 1, generator=generator)
    return (1 - strength) * grow(coarse, SIZE, mode="bilinear") * 2 + strength * grow(fine, SIZE)
