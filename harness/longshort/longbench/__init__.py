"""LongBench-E: the official metrics, the scorer of official predictions, the lm-eval tasks."""
