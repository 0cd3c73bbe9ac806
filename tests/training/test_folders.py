"""The folders of btard.simulate: each file that is lost, cut or older is put back, or refused in a line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import btard
from btard.export.final import ExportError, read_final
from btard.harness.pieces import LEDGER, METRICS, RunFolderError
from btard.watch.folder import read_run
from tests.damage import DAMAGES, cut, files, gone


def simulate(out: Path, steps: int) -> btard.Run:
    """The same run, however often."""
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    task = btard.TorchTask(model, lambda model, batch: (model(batch[0]) - batch[1]).square().mean(), data, 4)
    return btard.simulate(
        task, peers=5, byzantine=1, attack="sign_flip", steps=steps, optimizer=torch.optim.Adam, out=out
    )


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of btard.simulate, the shorter one in `before`."""
    out = tmp_path_factory.mktemp("simulated")
    for name, steps in (("run", 6), ("before", 3)):
        assert simulate(out / name, steps).steps == steps
    return out


def test_a_file_of_a_simulated_run(simulated: Path, tmp_path: Path) -> None:
    """Whoever makes a model of it, goes on with it or looks at it is told."""
    whole = read_final(simulated / "run")
    assert whole.finished and whole.signed is not None
    for file in files(simulated / "run"):
        for how, damage in DAMAGES.items():
            folder = tmp_path / how / file.name / "run"
            shutil.copytree(simulated / "run", folder)
            if not damage(folder / file.relative_to(simulated / "run"), simulated / "before"):
                continue
            if file.name in (METRICS, LEDGER):
                assert any(f"{file.name}: is " in note for note in read_run(folder).notes)
            with pytest.raises((RunFolderError, ExportError), match=r"copy|delete") as refused:
                read_final(folder)
            assert str(folder) in str(refused.value)
            if file.name == "summary.json" and how == "gone":
                assert simulate(folder, 6).steps == 6
                assert (folder / file.name).read_bytes() == file.read_bytes()
                continue
            with pytest.raises(ValueError, match=r"copy the folder again|give another folder"):
                simulate(folder, 6)


@pytest.mark.parametrize("name", [METRICS, LEDGER, "evidence"])
def test_the_same_call_puts_back_what_its_checkpoint_has(name: str, simulated: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(simulated / "run", folder)
    (folder / "summary.json").unlink()
    if name == "evidence":
        gone(files(folder, "evidence/*")[0], folder)
        with pytest.raises(ValueError, match=r"evidence/.*: cannot be read .*: copy the folder again"):
            simulate(folder, 6)
        return
    cut(folder / name, folder)
    assert simulate(folder, 6).steps == 6
    for file in (name, "summary.json"):
        assert (folder / file).read_bytes() == (simulated / "run" / file).read_bytes()
