"""The decode step in CUDA C++."""
