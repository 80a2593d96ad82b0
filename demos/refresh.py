"""Execute the demo notebooks, headless, and save them with their outputs.

    python demos/refresh.py                            execute all and save them in place
    python demos/refresh.py 01_first_object.ipynb      ... or only these

Needs the extra `test`.  What is saved holds no more noise than it must: no timings, no kernel versions, cell
ids as they are in the file.  A notebook that fails is not saved, and the exit code is 1.  The tests execute
the notebooks through `execute` too, so that both mean the same.
"""

from __future__ import annotations

import os
import pathlib
import signal
import sys
import tempfile
import time
import uuid
from unittest import mock

import nbclient
import nbformat
from traitlets.config import Config

__all__ = ["ProcessesLeft", "execute", "refresh", "tidy"]

DEMOS = pathlib.Path(__file__).resolve().parent
NOTEBOOK_TIMEOUT_S = 120
"""Each takes up to twenty seconds; one that takes this long is stuck."""
ENDING_S = 5
"""How long the processes of a notebook may take to end after its kernel has."""
MARK = "OBJSERVER_DEMO_RUN"


class ProcessesLeft(RuntimeError):
    """A notebook ended, but processes that it started did not.  They have been killed."""


def execute(notebook: pathlib.Path, directory: pathlib.Path) -> nbformat.NotebookNode:
    """Execute a copy of `notebook` in `directory`; the executed copy.

    Raises CellExecutionError if a cell fails, TimeoutError, or ProcessesLeft.  Whatever happens, no process
    that the notebook started outlives this call.  Nothing of the user's own is read or written: no kernelspec
    that might name another Python, no IPython profile, no matplotlibrc.  The kernel is reached through Unix
    sockets, so any number of notebooks may be executed at once.
    """
    content = nbformat.read(notebook, as_version=4)
    run = uuid.uuid4().hex
    deadline = time.monotonic() + NOTEBOOK_TIMEOUT_S
    with tempfile.TemporaryDirectory(prefix="nb-") as private:  # not in `directory`: socket paths are short
        environment = {
            MARK: run,
            "TMPDIR": str(directory),
            "IPYTHONDIR": private,
            "JUPYTER_CONFIG_DIR": private,
            "JUPYTER_DATA_DIR": private,
            "JUPYTER_RUNTIME_DIR": private,
            "JUPYTER_PLATFORM_DIRS": "1",
            "JUPYTER_PREFER_ENV_PATH": "1",
            "MATPLOTLIBRC": private,
        }
        with mock.patch.dict(os.environ, environment):
            client = nbclient.NotebookClient(
                content,
                kernel_name="python3",
                timeout_func=lambda cell: max(0.1, deadline - time.monotonic()),
                resources={"metadata": {"path": str(directory)}},
                record_timing=False,
                config=Config(KernelManager={"transport": "ipc", "ip": f"{private}/kernel"}),
            )
            try:
                client.execute()
            finally:
                left = _end_processes(run)
    if left:
        raise ProcessesLeft(f"{notebook.name} left {', '.join(left)}")
    return content


def _end_processes(run: str) -> list[str]:
    """Kill what is still there of a run after a moment; the command lines of those killed."""
    deadline = time.monotonic() + ENDING_S
    quiet = 0
    while quiet < 2:  # one that is just becoming another program has no environment to be known by
        found = _processes(run)
        quiet = 0 if found else quiet + 1
        if found and time.monotonic() >= deadline:
            break
        time.sleep(0.05)
    for process in found:
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return list(found.values())


def _processes(run: str) -> dict[int, str]:
    """The processes, by id, that have inherited the mark of a run."""
    wanted = f"{MARK}={run}".encode()
    found = {}
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # it has ended meanwhile, or belongs to somebody else
    return found


def tidy(content: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Take out of `content` what differs from machine to machine and tells the reader nothing."""
    content.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"file_extension": ".py", "name": "python"},
        }
    )
    content.nbformat, content.nbformat_minor = 4, 5
    for cell in content.cells:
        cell.metadata = nbformat.from_dict({})
        for output in cell.get("outputs", ()):
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
    return content


def refresh(notebook: pathlib.Path) -> None:
    """Execute `notebook` and save it in place."""
    with tempfile.TemporaryDirectory(prefix="objserver-demos-") as directory:
        content = tidy(execute(notebook, pathlib.Path(directory)))
    notebook.write_text(nbformat.writes(content).rstrip("\n") + "\n", "utf-8")


def main(names: list[str]) -> int:
    failed = 0
    for notebook in [DEMOS / name for name in names] or sorted(DEMOS.glob("*.ipynb")):
        began = time.monotonic()
        try:
            refresh(notebook)
        except (nbclient.exceptions.CellExecutionError, TimeoutError, ProcessesLeft) as problem:
            failed = 1
            print(f"{notebook.name} failed and was not saved: {problem}", file=sys.stderr)
        else:
            print(f"{notebook.name} executed in {time.monotonic() - began:.1f} s and saved")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
