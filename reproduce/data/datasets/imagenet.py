"""Facts about ImageNet (ILSVRC2012) that several parts of the code need."""

NUM_IMAGENET_CLASSES = 1000
NUM_IMAGENET_IMAGES = 1_281_167
"""Of the training split."""


def label_list_source(name: str) -> str:
    """Return in words where the list `name` of images with labels is from, by which networks are finetuned."""
    return f"SimCLR's list {name} (github.com/google-research/simclr, imagenet_subsets)"
