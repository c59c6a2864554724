"""Benchmarks: one module each; every claim of speed comes from one of them."""
