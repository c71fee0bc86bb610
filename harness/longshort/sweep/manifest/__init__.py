"""Manifests: which checkpoints to evaluate, with which settings."""
