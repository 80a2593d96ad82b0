"""The demo notebooks run as they stand, leave no process behind, and are committed with their outputs."""

import importlib.util
import pathlib

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "demos").glob("*.ipynb"))
SPEC = importlib.util.spec_from_file_location("refresh", ROOT / "demos" / "refresh.py")
assert SPEC is not None
assert SPEC.loader is not None
refresh = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(refresh)

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: pathlib.Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def write_notebook(path: pathlib.Path, *sources: str) -> pathlib.Path:
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_there_are_notebooks_to_run() -> None:
    assert {path.name for path in NOTEBOOKS} >= {
        "01_first_object.ipynb",
        "02_activation_policies.ipynb",
        "03_threads.ipynb",
        "04_clients.ipynb",
        "05_failures.ipynb",
        "06_object_server.ipynb",
        "07_clusters.ipynb",
    }


@each_notebook
def test_a_notebook_runs_and_leaves_no_process_behind(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    executed = refresh.execute(path, tmp_path)
    assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code")


@each_notebook
def test_the_file_holds_one_run_from_top_to_bottom_without_complaints(path: pathlib.Path) -> None:
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error"] == []
    assert [output for output in outputs if output.get("name") == "stderr"] == []


@each_notebook
def test_every_plot_is_in_the_file(path: pathlib.Path) -> None:
    plots = [cell for cell in code_cells(path) if "plt.show()" in cell.source]
    assert plots
    for cell in plots:
        assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.source


@each_notebook
def test_the_file_is_valid_and_tidy(path: pathlib.Path) -> None:
    content = nbformat.read(path, as_version=4)
    nbformat.validate(content)
    assert refresh.tidy(nbformat.from_dict(content)) == nbformat.read(path, as_version=4)


def test_a_wrong_claim_in_a_notebook_fails(tmp_path: pathlib.Path) -> None:
    notebook = write_notebook(tmp_path / "wrong.ipynb", "assert 1 == 2")
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="assert 1 == 2"):
        refresh.execute(notebook, tmp_path)


def test_a_notebook_that_leaves_a_process_behind_fails(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "import subprocess; subprocess.Popen(['setsid', '--fork', 'sleep', '60']).wait()"
    notebook = write_notebook(tmp_path / "careless.ipynb", source)
    monkeypatch.setattr(refresh, "ENDING_S", 0.2)
    with pytest.raises(refresh.ProcessesLeft, match="sleep 60"):
        refresh.execute(notebook, tmp_path)


def test_a_notebook_that_is_stuck_is_ended(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = write_notebook(tmp_path / "stuck.ipynb", "import threading; threading.Event().wait()")
    monkeypatch.setattr(refresh, "NOTEBOOK_TIMEOUT_S", 3)
    with pytest.raises(TimeoutError):
        refresh.execute(notebook, tmp_path)
