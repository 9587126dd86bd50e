"""A run's folder: metrics, attempts, provenance, result, tracking."""
