"""The checked Python face of the native ops, for NumPy arrays and torch tensors."""

from cdul_fast.ops._levels import best_cpu_level, cpu_level, force_cpu_level

__all__ = ["best_cpu_level", "cpu_level", "force_cpu_level"]
