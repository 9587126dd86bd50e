"""Datasets on disk, the input pipeline, and the preparation of datasets."""
