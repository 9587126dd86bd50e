"""The process that forks for each run of a plan on a CPU (`reproduce.forking`), with the libraries that take time.

The harness starts it: python -m reproduce.engine.runs.fork_server DESCRIPTOR_OF_A_LISTENING_SOCKET
"""

import gc
import socket
import sys

import hydra  # noqa: F401
import sklearn.svm  # noqa: F401
import torch
import torch._dynamo  # noqa: F401 - the first optimizer imports it
import torchvision  # noqa: F401
import wandb  # noqa: F401

from reproduce.forking import serve

if __name__ == "__main__":
    gc.collect()
    gc.freeze()  # a collection in a fork would touch, and so copy, every page of these libraries' objects
    serve(socket.socket(fileno=int(sys.argv[1])))
