"""Several processes: launch, collectives, worker processes."""
