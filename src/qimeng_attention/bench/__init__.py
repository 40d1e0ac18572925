"""Timing, peers and results of benchmarks."""
