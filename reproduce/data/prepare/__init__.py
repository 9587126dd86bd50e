"""Make, download, unpack, verify and shard datasets."""
