"""Pictures of what a pretraining has learned: nearest neighbors, an atlas of prototypes, a map of features."""
