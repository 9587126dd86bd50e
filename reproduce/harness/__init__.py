"""From tables to verdicts: plan the runs, start them as processes, judge their results. Never imports torch."""
