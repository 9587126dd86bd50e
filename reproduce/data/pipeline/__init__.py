"""From a file to a batch: decode, sample, crop, augment, collate."""
