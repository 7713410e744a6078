"""Slow, readable twins of the native ops, for tests and benchmarks to compare with."""
