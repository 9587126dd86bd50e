"""Training loop, checkpoints, distributed training, and the folders of runs.

Nothing here knows a method or an evaluation. Of data, only `engine.runs.run` knows something: a run checks that its
dataset is there and records which splits it read.
"""
