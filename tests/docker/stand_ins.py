"""Two git repositories of the shape of apex and Detectron2, with tiny CUDA extensions, served on the loopback."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXTENSION = r"""
#include <Python.h>
__global__ void twice(float *x) { x[threadIdx.x] *= 2; }
extern "C" void launch(float *x) { twice<<<1, 32>>>(x); }
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "NAME", 0, -1, 0};
PyMODINIT_FUNC PyInit_NAME(void) { return PyModule_Create(&definition); }
"""
SETUP_OF_APEX = """
import sys
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CUDAExtension

ext_modules = []
if {"--cpp_ext", "--cuda_ext"} <= set(sys.argv):  # they come with the build only, not when pip asks for the name
    sys.argv = [word for word in sys.argv if word not in ("--cpp_ext", "--cuda_ext")]
    ext_modules = [CUDAExtension(name, [f"{name}.cu"]) for name in ("apex_C", "amp_C", "syncbn")]
    ext_modules.append(CUDAExtension("too_old", ["gone.cu"]))

setup(
    name="apex", version="0.1", packages=["apex"], ext_modules=ext_modules, cmdclass={"build_ext": BuildExtension}
)
"""
SETUP_OF_DETECTRON2 = """
import os
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CUDAExtension

assert os.environ["FORCE_CUDA"] == "1"
setup(
    name="detectron2", version="0.6", packages=["detectron2"], cmdclass={"build_ext": BuildExtension},
    ext_modules=[CUDAExtension("detectron2._C", ["_C.cu"])],
)
"""


def _repository(folder: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    author = ["-c", "user.name=stand-in", "-c", "user.email=stand-in@localhost"]
    for command in (["init", "--quiet"], ["add", "."], [*author, "commit", "--quiet", "--message", "A stand-in"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    head = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return head.stdout.strip()


def _extension(name: str) -> str:
    return EXTENSION.replace("NAME", name)


@contextmanager
def served(folder: Path) -> Iterator[dict[str, str]]:
    """Make both stand-ins below `folder` and serve them; yield the build arguments that name them."""
    apex = {f"{name}.cu": _extension(name) for name in ("apex_C", "amp_C", "syncbn")}
    apex |= {"setup.py": SETUP_OF_APEX, "apex/__init__.py": "", "apex/parallel.py": ""}
    detectron2 = {"setup.py": SETUP_OF_DETECTRON2, "_C.cu": _extension("_C")}
    detectron2 |= {"detectron2/__init__.py": "", "detectron2/layers.py": ""}
    commits = {name: _repository(folder / name, files) for name, files in (("apex", apex), ("detectron2", detectron2))}
    with served_mirrors(folder) as repositories:
        yield repositories | {f"{name.upper()}_COMMIT": commit for name, commit in commits.items()}


@contextmanager
def served_mirrors(folder: Path) -> Iterator[dict[str, str]]:
    """Serve the git repositories `apex` and `detectron2` in `folder` on the loopback; yield build arguments.

    Each may be a bare mirror (also one named `apex.git`) or a checkout.
    """
    with socket.create_server(("127.0.0.1", 0)) as any_free:
        port = any_free.getsockname()[1]
    options = ["--export-all", "--verbose", "--listen=127.0.0.1", f"--port={port}", f"--base-path={folder}"]
    trust = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}  # any owner's
    with subprocess.Popen(
        ["git", "daemon", *options], stderr=subprocess.PIPE, text=True, start_new_session=True, env=os.environ | trust
    ) as server:
        try:
            assert server.stderr is not None
            assert "Ready to rumble" in server.stderr.readline()
            address = f"git://127.0.0.1:{port}"
            yield {f"{name.upper()}_REPOSITORY": f"{address}/{name}" for name in ("apex", "detectron2")}
        finally:
            server.terminate()
