"""Turn stored images into batches: sample, decode, crop, augment, collate."""
