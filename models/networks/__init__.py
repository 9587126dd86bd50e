"""Networks: images in, features or embeddings out."""
