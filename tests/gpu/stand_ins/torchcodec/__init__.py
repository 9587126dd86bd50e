"""In place of torchcodec on a machine whose torch it does not support (tests/gpu/bare_machine.py)."""
