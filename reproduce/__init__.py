"""The harness: configs, data, the training loop, and the plan, checks and report around them."""
