"""Every module of the harness can be imported first: a circle through a package's `__init__` shows only there."""

import subprocess
import sys

from reproduce.system import REPO_ROOT

IMPORT_EACH_FIRST = """
import importlib, pathlib, sys

ROOMS = ("reproduce/cli", "reproduce/config", "reproduce/harness")
paths = [path for room in ROOMS for path in sorted(pathlib.Path(room).rglob("*.py"))]
for path in paths:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("reproduce", "models")]:
        del sys.modules[name]
    importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
assert "torch" not in sys.modules
print(len(paths))
"""


def test_every_module_of_the_harness_can_be_imported_first() -> None:
    command = [sys.executable, "-W", "error", "-c", IMPORT_EACH_FIRST]
    done = subprocess.run(command, cwd=REPO_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50
