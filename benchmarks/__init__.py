"""Microbenchmarks of the head and its kernels: `python -m benchmarks`."""
