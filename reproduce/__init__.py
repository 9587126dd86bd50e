"""The harness: configs, data, the training loop, and the plan, checks and report around them."""

import time

IMPORT_STARTED = time.time()
"""When this process began to import the code, before any other module of it."""
