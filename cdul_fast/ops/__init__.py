"""The checked Python face of the native ops, for NumPy arrays and torch tensors."""

from cdul_fast.ops._aggregate import AGGREGATORS, aggregate, aggregate_embeddings, cosines
from cdul_fast.ops._crop_resize import crop_resize, plan_crops, run_crop_plan
from cdul_fast.ops._label_step import check_label_step, label_step
from cdul_fast.ops._levels import best_cpu_level, cpu_level, force_cpu_level

__all__ = [
    "AGGREGATORS",
    "aggregate",
    "aggregate_embeddings",
    "best_cpu_level",
    "check_label_step",
    "cosines",
    "cpu_level",
    "crop_resize",
    "force_cpu_level",
    "label_step",
    "plan_crops",
    "run_crop_plan",
]
