"""What to run: the graph of runs behind the asked cells, and its cost."""
