"""Public weights: which there are, and how each file becomes a trunk of ours."""
