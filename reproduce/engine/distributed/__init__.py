"""Several processes: launch, collectives, preemption."""
