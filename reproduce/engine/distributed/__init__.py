"""Several processes: launch, collectives, preemption, worker processes."""
