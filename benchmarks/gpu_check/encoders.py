"""CLIP's image towers on the GPU: views a second, and the share of the measured matmul rate."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_check import gpu
from benchmarks.gpu_check.report import Row, has_module, not_measured
from benchmarks.gpu_check.stand_ins import SHAPES, Shape, build
from cdul_fast.execution.device_stream import CudaPlace

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# The least that RN50x64 is to reach of the measured matmul rate.
_GOALS = {("RN50x64", "compiled"): ">= 0.45"}


class TowerEncoder:
    """A tower in float16 as the device engine takes it."""

    parallel_calls, logit_scale, input_dtype = 2, 100.0, "float16"
    mean, std = MEAN, STD

    def __init__(self, shape: Shape, device: str = "cuda") -> None:
        self.name, tower = tower_of(shape)
        self.device = torch.device(device)
        self.image_size, self.dim, self.batch = shape.side, shape.dim, shape.batch
        layout = torch.channels_last if shape.is_resnet else torch.contiguous_format
        self.layout: Any = layout
        kind = torch.float16 if self.device.type == "cuda" else torch.float32
        self.input_dtype = "float16" if kind == torch.float16 else "float32"
        self.module: Any = tower.to(self.device, kind).to(memory_format=layout)
        self.report: dict[str, Any] = {}

    def embed_on_device(self, pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            chunks = torch.split(pixels, self.batch)
            return torch.cat([self.module(chunk.contiguous(memory_format=self.layout)) for chunk in chunks])


def tower_of(shape: Shape) -> tuple[str, nn.Module]:
    """open_clip's tower with random weights, or the stand-in, and which of them."""
    if not has_module("open_clip"):
        return f"{shape.name} (stand-in)", build(shape)
    import open_clip

    model = open_clip.create_model(shape.name, pretrained=None)
    return shape.name, model.visual.eval()


def flops_a_view(tower: nn.Module, shape: Shape) -> float:
    """Operations of one view, a multiply-add counted as two; counted on shapes alone."""
    from torch.utils.flop_counter import FlopCounterMode

    weight = next(tower.parameters())
    pixels = torch.randn(2, 3, shape.side, shape.side, device=weight.device, dtype=weight.dtype)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tower(pixels)
    return counter.get_total_flops() / 2


def rate(encoder: Any, shape: Shape) -> dict[str, Any]:
    """Views a second of a graph of one pass over random pixels."""
    count, kind = encoder.batch, getattr(torch, encoder.input_dtype)
    pixels = torch.randn(count, 3, shape.side, shape.side, device="cuda", dtype=kind)
    with torch.inference_mode():
        recorder = CudaPlace(torch.device("cuda")).recorder()
        replay = recorder.record(lambda: encoder.embed_on_device(pixels))
    timing = gpu.timed(lambda _: replay(), calls=10, warm_up=2)
    return {"views_per_second": count / timing["median"], "seconds": timing}


def variants(encoder: TowerEncoder, shape: Shape, deadline: float) -> list[tuple[str, Any, str]]:
    """(name, module or None, reason where None)."""
    found: list[tuple[str, Any, str]] = [("eager", encoder.module, "")]
    if time.monotonic() < deadline:
        found.append(("compiled", torch.compile(encoder.module, mode="max-autotune-no-cudagraphs"), ""))
    else:
        found.append(("compiled", None, "no time left for compiling"))
    if has_module("torch_tensorrt"):
        import torch_tensorrt

        pixels = torch.randn(shape.batch, 3, shape.side, shape.side, device="cuda", dtype=torch.float16)
        kinds = {torch.float16}
        module = torch_tensorrt.compile(encoder.module, inputs=[pixels], enabled_precisions=kinds)
        found.append(("torch-tensorrt", module, ""))
    else:
        found.append(("torch-tensorrt", None, "torch_tensorrt is not installed"))
    return found


def run(ceilings: dict[str, float], name: str, seconds: float) -> tuple[list[Row], dict[str, Any]]:
    """One model in all variants.

    Args:
        ceilings: As `gpu.ceilings` measured them.
        name: Of the model.
        seconds: What may pass before a variant that takes minutes to prepare is left out.
    """
    shape = SHAPES[name]
    deadline = time.monotonic() + seconds
    encoder = TowerEncoder(shape)
    flops = flops_a_view(encoder.module, shape)
    rows, details = [], {}
    for variant, module, reason in variants(encoder, shape, deadline):
        case = f"{encoder.name}, fp16, {variant}"
        if module is None:
            rows.append(not_measured("encoders", case, reason))
            continue
        encoder.module = module
        try:
            found = rate(encoder, shape)
        except Exception as error:
            rows.append(not_measured("encoders", case, f"{type(error).__name__}: {error}"[:120]))
            continue
        share = flops * found["views_per_second"] / ceilings["matmul_flops_per_second"]
        goal = _GOALS.get((name, variant), "")
        rows.append(
            Row("encoders", case, found["views_per_second"], "views/s", "measured matmul rate", share, goal)
        )
        details[case] = {**found, "flops_a_view": flops}
    return rows, {"encoders": details}


def run_tensorrt(ceilings: dict[str, float], name: str) -> tuple[list[Row], dict[str, Any]]:
    """One model as a TensorRT engine of random weights, built for this GPU."""
    from cdul_fast.encoders import create_encoder

    case, shape = f"{name}, fp16, TensorRT", SHAPES[name]
    absent = [module for module in ("open_clip", "onnx") if not has_module(module)]
    if not has_module("tensorrt") and not has_module("tensorrt_rtx"):
        absent.append("tensorrt or tensorrt_rtx")
    if absent:
        return [not_measured("encoders", case, f"not installed: {', '.join(absent)}")], {}
    with tempfile.TemporaryDirectory() as cache:
        encoder: Any = create_encoder(
            name, "none", backend="tensorrt", precision="fp16", device="cuda", cache_dir=cache
        )
        found = rate(encoder, shape)
    flops = flops_a_view(tower_of(shape)[1], shape)
    share = flops * found["views_per_second"] / ceilings["matmul_flops_per_second"]
    row = Row("encoders", case, found["views_per_second"], "views/s", "measured matmul rate", share)
    return [row], {"encoders": {case: {**found, "flops_a_view": flops}}}
