"""Pretraining methods: the loss of a batch of crops, and the state between steps. Start at `swav`."""
