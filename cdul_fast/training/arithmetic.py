"""What ``--precision auto`` and an open ``--channels-last`` come to on this machine with this network."""

from __future__ import annotations

import torch
from torch import nn

from cdul_fast.training.config import Precision


def features_precision(precision: str) -> str:
    """The arithmetic of inference on the CPU: ``auto`` is bf16 where the processor has it, else fp32."""
    if precision != "auto":
        return precision
    from cdul_fast.encoders.openvino_clip import has_bf16

    return "bf16" if has_bf16() else "fp32"


def training_precision(precision: Precision, device: torch.device, *, frozen: bool) -> Precision:
    """The arithmetic of training.

    Args:
        precision: fp32, bf16, fp16, or auto for what is fastest without loss of range: bf16 where the device
            computes in it, fp16 (with a scaled loss) on older GPUs, else fp32.
        device: Where the network is.
        frozen: Whether a head alone is trained; it is small, and auto leaves it in fp32.
    """
    if precision != "auto":
        return precision
    if frozen:
        return "fp32"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if features_precision("auto") == "bf16" else "fp32"


def likes_channels_last(network: nn.Module) -> bool:
    """Whether convolutions are much of a network: at least a quarter of its layers with weights.

    A vision transformer has one, for its patches, among dozens of linear layers; a ConvNeXt, whose pointwise
    convolutions are linear layers, has two in five.
    """
    convolutions = sum(isinstance(module, nn.Conv2d) for module in network.modules())
    linear = sum(isinstance(module, nn.Linear) for module in network.modules())
    return convolutions * 3 >= max(linear, 1)
