"""The training loop and what it stands on; nothing here knows a method or a dataset."""
