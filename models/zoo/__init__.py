"""Public weights: which ones exist, and how each file becomes one of our trunks."""
