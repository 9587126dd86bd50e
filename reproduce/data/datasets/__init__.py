"""Read datasets from disk, without torch: image lists, labels, boxes and manifests."""
