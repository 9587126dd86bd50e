"""What came out: results held against printed and recorded numbers."""
