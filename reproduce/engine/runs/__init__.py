"""The folder of a run: metrics, attempts, provenance, result, tracking."""
