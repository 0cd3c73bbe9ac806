"""What a report says follows by hand from the files that were written here."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from albert.experiments import plots, results, tables
from albert.experiments.grid import BASELINE, Grid
from albert.experiments.results import Swarm, read_swarms
from albert.report import main
from tests.albert.experiments.conftest import write_swarm


@pytest.fixture
def series(grid: Grid, tmp_path: Path) -> Path:
    """All swarms of the grid; in one of them an honest peer is removed."""
    out = tmp_path / "series"
    for cell in grid.cells:
        write_swarm(cell, out, honest=0 if cell.name == "ipm-from-40-btard-seed-1" else None)
    return out


@pytest.fixture
def swarms(series: Path) -> list[Swarm]:
    return read_swarms(series)


def named(swarms: list[Swarm], name: str) -> Swarm:
    return next(swarm for swarm in swarms if swarm.name == name)


def test_a_swarm_is_what_its_files_say(swarms: list[Swarm]) -> None:
    assert len(swarms) == 13
    swarm = named(swarms, "ipm-from-40-btard-seed-1")
    assert (swarm.attack, swarm.defence, swarm.start, swarm.seed) == ("IPM (epsilon 0.6)", "BTARD", 40, 1)
    assert (swarm.bans, swarm.honest_removed) == ([42, 45], [59])
    assert swarm.series("active") == (list(range(30, 60)), [5] * 12 + [4] * 3 + [3] * 14 + [2])
    calm = named(swarms, BASELINE)
    assert (calm.attack, calm.start, calm.bans) == ("no attack", None, [])


def test_an_unfinished_swarm_is_left_out_and_none_at_all_is_an_error(series: Path, tmp_path: Path) -> None:
    (series / BASELINE / "coordinator/summary.json").unlink()
    assert BASELINE not in [swarm.name for swarm in read_swarms(series)]
    with pytest.raises(results.RunFolderError, match="holds no swarm that came to its end"):
        read_swarms(tmp_path / "elsewhere")


def test_the_loss_is_drawn_for_each_attack_and_start_with_attack_and_bans(swarms: list[Swarm]) -> None:
    figure = plots.loss_figure(swarms)
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert list(panels) == [f"{a} from step {s}" for s in (20, 40) for a in ("IPM (epsilon 0.6)", "sign flip")]
    axes = panels["IPM (epsilon 0.6) from step 40"]
    lines = {tuple(line.get_xdata()): line for line in axes.lines}
    rings = [line for line in axes.lines if line.get_marker() == "o"]
    assert [list(ring.get_xdata()) for ring in rings] == [[42, 45]]
    assert len(axes.collections) == 1  # the range of the two seeds
    assert [list(line.get_xdata()) for line in axes.lines if line.get_marker() == "x"] == [[59]]
    assert [line for line in axes.lines if list(line.get_xdata()) == [40, 40]]  # the attack begins
    assert tuple(range(60)) in lines  # the baseline
    first = rings[0]
    assert list(first.get_ydata()) == [9 - 42 / 20, 9 - 45 / 20]
    assert (axes.get_xlim(), axes.get_ylim()[1]) == ((29, 60), pytest.approx(8.5 * plots.TOP))  # the first one's start
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "BTARD, no attack", "BTARD (2 seeds)", "mean", "an attacker is banned", "an honest peer is removed",
    ]  # fmt: skip


def test_where_all_go_back_is_drawn(swarms: list[Swarm]) -> None:
    swarm = named(swarms, "sign-flip-from-20-btard-seed-0")
    metrics = [row | ({"back_to": 18} if row["step"] in (23, 26) else {}) for row in swarm.metrics]
    figure = plots.loss_figure([replace(swarm, metrics=metrics)])
    [marks] = [line for line in figure.axes[0].lines if line.get_marker() == "<"]
    assert list(marks.get_xdata()) == [23, 26]


def test_a_loss_that_runs_away_is_cut_off(swarms: list[Swarm]) -> None:
    figure = plots.loss_figure(swarms)
    axes = next(axes for axes in figure.axes if axes.get_title() == "sign flip from step 20")
    wild = next(line for line in axes.lines if line.get_color() == plots.VERMILION)
    assert list(wild.get_xdata()) == list(range(10, 21))  # 9 + 20 is more than twice the limit already


def test_peers_and_speed_are_drawn(swarms: list[Swarm]) -> None:
    alive = plots.peers_figure(swarms).axes[0]
    assert [min(line.get_ydata()) for line in alive.lines if len(line.get_xdata()) == 30] == [3, 5]
    speed = plots.speed_figure(swarms).axes[0]
    calm = next(line for line in speed.lines if len(line.get_xdata()) == 60)
    assert calm.get_ydata()[30] == 130


def test_the_validation_loss_is_drawn_at_the_checkpoints(swarms: list[Swarm]) -> None:
    calm = named(swarms, BASELINE)
    every = calm.config["checkpoint_every"]
    line = next(line for line in plots.validation_figure(swarms).axes[0].lines if line.get_linestyle() == "--")
    assert list(line.get_xdata()) == list(range(every - 1, 60, every)) and line.get_ydata()[-1] == 10 - 59 / 20
    nothing = replace(calm, metrics=[{"step": 0, "loss": 9.0}])
    assert not any(len(line.get_xdata()) for line in plots.validation_figure([nothing]).axes[0].lines)


def test_where_the_time_goes_is_drawn_for_each_kind_of_swarm(swarms: list[Swarm]) -> None:
    axes = plots.phases_figure(swarms).axes[0]
    ipm = ["IPM (epsilon 0.6), BTARD", "IPM (epsilon 0.6), mean"]
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown == ["no attack, BTARD", ipm[0], "sign flip, BTARD", ipm[1], "sign flip, mean"]
    assert [bars.get_label() for bars in axes.containers] == ["gradients", "commit", "accuse", "all others"]
    tops = [bar.get_y() for bar in axes.containers[0]]
    assert tops[3] - tops[2] > tops[2] - tops[1] == pytest.approx(1)  # the mean's stand apart
    widths = {bars.get_label(): bars[0].get_width() for bars in axes.containers}
    assert widths == pytest.approx({"gradients": 0.2, "commit": 0.1, "accuse": 0.05, "all others": 0})


def test_tables_count_over_the_seeds(swarms: list[Swarm]) -> None:
    lines = [line for line in tables.results_table(swarms).splitlines() if line.startswith("| IPM")]
    assert lines == [
        "| IPM (epsilon 0.6) | 20 | BTARD | 2 | 4 of 4 | 5 | 0 | 7.05 | 8.05 | +0.00 | 3.9% | 124 |",
        "| IPM (epsilon 0.6) | 20 | mean | 1 | 0 of 2 | - | 0 | 48.00 | 49.00 | +40.95 | 3.9% | 124 |",
        "| IPM (epsilon 0.6) | 40 | BTARD | 2 | 4 of 4 | 5 | 1 | 6.05 | 7.05 | +0.00 | 5.9% | 144 |",
        "| IPM (epsilon 0.6) | 40 | mean | 1 | 0 of 2 | - | 0 | 68.00 | 69.00 | +61.95 | 5.9% | 144 |",
    ]
    assert "| sign flip | BTARD | 1 | 20 | 22, 25 (2 of 2) | 0 | 7.05 |" in tables.bans_table(swarms)


def test_the_ledger_is_shown_in_steps_of_the_run(swarms: list[Swarm]) -> None:
    swarm = named(swarms, "sign-flip-from-20-btard-seed-0")
    one, two = swarm.summary["byzantine"]
    assert tables.ledger_table(swarm).splitlines()[2:] == [
        f"| 22 | wrong_gradient | {one} | 0 | {one} | 2 guilty | `abababababab` |",
        f"| 25 | wrong_gradient | {two} | 0 | {two} | 2 guilty | `abababababab` |",
    ]
    nobodys = {"accused": -1, "accusers": [], "peers": [], "votes": {}}
    healed = {**swarm.ledger[0], **nobodys, "kind": "heal", "step": 16, "about_step": 5}
    table = tables.ledger_table(replace(swarm, ledger=[*swarm.ledger, healed]))
    assert table.splitlines()[-1] == "| 26 | heal, back to step 15 | nobody | - | nobody | - | `abababababab` |"
    assert "nobody was accused" in tables.ledger_table(named(swarms, BASELINE))


def test_the_report_is_made_again_from_what_it_exports(
    series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = tmp_path / "exported"
    assert main([str(series), "--out", str(exported), "--export"]) == 0
    assert "sign flip" in capsys.readouterr().out
    for figure in ("loss", "validation", "peers", "speed", "phases"):
        assert (exported / f"{figure}.png").exists() and (exported / f"{figure}.svg").exists()
    packed = zipfile.ZipFile(exported / "swarms.zip")
    kept = yaml.safe_load(packed.read("ipm-from-40-btard-seed-1/config.yaml"))
    assert not {"network", "data", "start_from", "wandb"} & kept.keys()
    assert not any(b"/home/somebody" in packed.read(name) for name in packed.namelist())
    assert len(packed.namelist()) == 13 * 5
    assert sum(file.is_file() for file in exported.rglob("*")) == 1 + 2 * 5 + 2  # the archive, figures, tables
    again = read_swarms(exported)
    assert (exported / "results.md").read_text() == tables.results_table(again)
    assert (exported / "bans.md").read_text() == tables.bans_table(again)
    before = (exported / "swarms.zip").read_bytes()
    assert main([str(exported), "--out", str(exported), "--export"]) == 0  # over itself
    assert (exported / "swarms.zip").read_bytes() == before
    first, second = (plots.loss_figure(found) for found in (read_swarms(series), again))
    for one, two in zip(first.axes, second.axes, strict=True):
        assert [list(line.get_ydata()) for line in one.lines] == [list(line.get_ydata()) for line in two.lines]


def test_a_folder_without_swarms_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path)])
    assert caught.value.code == 2
    assert "holds no swarm that came to its end; python -m albert.experiments makes some" in capsys.readouterr().err
