"""Generate, download, unpack, verify and shard datasets: the data commands, which runs do not need."""
