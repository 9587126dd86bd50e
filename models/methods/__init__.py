"""Methods: the loss of a batch of crops, and what each keeps between steps."""
