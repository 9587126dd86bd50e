"""What to run: the graph of runs behind the requested cells, and its cost."""
