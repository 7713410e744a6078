"""Soft multi-label pseudo labels from CLIP for unlabelled photos, and classifiers trained on them.

The method is CDUL (ICCV 2023, arXiv 2307.16634). Everything public is imported on first use, so that
``import cdul_fast`` costs neither torch nor OpenVINO.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> the module that defines it.
_EXPORTS: dict[str, str] = {
    "CdulError": "cdul_fast.errors",
    "CompareConfig": "cdul_fast.training.compare_config",
    "ConfigError": "cdul_fast.errors",
    "ExportConfig": "cdul_fast.training.exporting",
    "LabelConfig": "cdul_fast.config",
    "LabelResult": "cdul_fast.pipeline",
    "LabelSettings": "cdul_fast.pseudo_labels",
    "PredictConfig": "cdul_fast.predict_config",
    "Run": "cdul_fast.data.run_dir",
    "TrainConfig": "cdul_fast.training.config",
    "compare_label_quality": "cdul_fast.scoring.label_comparison",
    "convert_run": "cdul_fast.data.conversion",
    "compare_methods": "cdul_fast.training.comparison",
    "evaluate_run": "cdul_fast.scoring.evaluation",
    "export_model": "cdul_fast.training.exporting",
    "label_images": "cdul_fast.pipeline",
    "open_run": "cdul_fast.data.run_dir",
    "predict_photos": "cdul_fast.training.predicting",
    "relabel_run": "cdul_fast.scoring.relabelling",
    "sweep": "cdul_fast.scoring.sweeps",
    "to_fiftyone": "cdul_fast.data.conversion",
    "train_on_run": "cdul_fast.training.runner",
    "write_report": "cdul_fast.reporting",
}
_SUBMODULES = ("data", "encoders", "ops", "reporting", "training")

__all__ = ["__version__", *_EXPORTS, *_SUBMODULES]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"cdul_fast.{name}")
    raise AttributeError(f"module 'cdul_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
