"""Carrying out a plan: Snakemake walks the graph, `start` keeps one run's process, `supervise` watches over both."""
