"""Datasets, the multi-crop pipeline, and generated pictures."""
