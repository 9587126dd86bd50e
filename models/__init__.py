"""Networks, pretraining methods, and public weights: crops in, loss out."""
