"""What a report says of healing: figure and table from the files of runs alone, and from an export of them."""

from __future__ import annotations

import json
from pathlib import Path

from btard.harness.run_folder import read_metrics
from resnet.experiments.healing import COLUMNS, default_table, healing_figure, healing_table
from resnet.table import bans_text, read_run
from tests.resnet.sweeps import SETTINGS, ban, finish, make_grid, read, report

ATTACKS = {"no attack": {}, "ALIE": {"attack.name": "alie"}}
DEFENCES = {
    f"{words}, tau {tau}": {"protocol.tau": tau, "protocol.heal": heal}
    for words, heal in (("as it is", "off"), ("healed", "auto"))
    for tau in (1, 10)
}
GRID = make_grid(attacks=ATTACKS, defences=DEFENCES, experiments={"early": {"title": "Early", "seeds": [0, 1]}})
RETURNS = {13: 11, 22: 14}


def write(out: Path) -> Path:
    """A finished sweep: ALIE costs 30 points, and healed 2; healed runs went back twice."""
    out.mkdir()
    (out / "sweep.yaml").write_text(GRID.text)
    for cell in GRID.cells:
        healed, attacked = cell.config.protocol.heal == "auto", cell.config.attack.name is not None
        lost = (0.02 if healed else 0.3) * attacked
        folder = finish(out, cell, lambda step, lost=lost: 0.4 + step / 100 - lost)
        if healed and attacked:
            lines = read_metrics(folder)
            told = [line | ({"back_to": RETURNS[line["step"]]} if line["step"] in RETURNS else {}) for line in lines]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    return out


def test_a_row_for_each_attack_and_radius(tmp_path: Path) -> None:
    series = read(write(tmp_path / "sweep"), GRID).series(GRID.experiments[0])
    header, *rows = healing_table(series)
    assert tuple(header) == COLUMNS
    # Steps lost: 13 + 1 - 11, and 22 + 1 - 14.
    assert rows == [["ALIE", tau, "2", "50.0", "78.0", "80.0", "2.0 *", "2", "12"] for tau in ("1", "10")]


def test_auto_stands_beside_the_best_fixed_radius(tmp_path: Path) -> None:
    defences = {**DEFENCES, "default, not healed": {"protocol.heal": "off"}, "default": {}}
    grid = make_grid(
        settings={key: value for key, value in SETTINGS.items() if not key.startswith("protocol.")},
        attacks=ATTACKS,
        defences=defences,
        experiments={"early": {"title": "Early"}},
    )
    out = tmp_path / "sweep"
    out.mkdir()
    (out / "sweep.yaml").write_text(grid.text)
    better = {1.0: 0.02, 10.0: 0.05, "auto": 0.03}
    for cell in grid.cells:
        finish(out, cell, lambda step, gain=better[cell.config.protocol.tau]: 0.4 + step / 100 + gain)
    series = read(out, grid).series(grid.experiments[0])
    header, *rows = default_table(series)
    assert header == ["attack", "tau auto", "best fixed tau", "accuracy with it", "points below"]
    assert rows == [[attack, "83.0", "10", "85.0", "2.0"] for attack in ATTACKS]
    assert [row[1] for row in healing_table(series)[1:]] == ["1", "10", "auto"]
    figure = healing_figure(series)
    assert figure is not None
    (axes,) = (panel for panel in figure.axes if panel.get_visible())
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "10", "auto"]


def test_the_figure_has_both_curves_and_the_run_without_attack(tmp_path: Path) -> None:
    figure = healing_figure(read(write(tmp_path / "sweep"), GRID).series(GRID.experiments[0]))
    assert figure is not None
    (axes,) = (panel for panel in figure.axes if panel.get_visible())
    heights = {bars.get_label(): [round(float(y), 6) for y in bars[0].get_ydata()] for bars in axes.containers}
    assert heights == {"not healed": [50, 50], "healed": [78, 78]}
    assert [round(value, 6) for value in axes.get_lines()[0].get_ydata()] == [80, 80]


def test_without_runs_of_both_kinds_there_is_nothing(tmp_path: Path) -> None:
    grid = make_grid(
        attacks=ATTACKS, defences=DEFENCES, experiments={"a": {"title": "A", "defences": ["healed, tau 1"]}}
    )
    out = tmp_path / "sweep"
    out.mkdir()
    (out / "sweep.yaml").write_text(grid.text)
    for cell in grid.cells:
        finish(out, cell)
    series = read(out, grid).series(grid.experiments[0])
    assert healing_figure(series) is None and len(healing_table(series)) == 1


def test_an_export_gives_the_same_report(tmp_path: Path) -> None:
    whole = report(write(tmp_path / "sweep"), tmp_path / "one", "--export", str(tmp_path / "kept"))
    assert {"healing-early.png", "healing-early.svg", "healing-early.csv"} <= whole.keys()
    assert b"With and without healing" in whole["report.md"]
    assert report(tmp_path / "kept", tmp_path / "two") == whole


def test_the_list_of_bans_says_when_a_run_went_back(tmp_path: Path) -> None:
    cell = next(c for c in GRID.cells if c.config.attack.name and c.config.protocol.heal == "auto")
    folder = finish(tmp_path, cell, bans=[ban(3, 12)])
    lines = [line | ({"back_to": 11} if line["step"] == 13 else {}) for line in read_metrics(folder)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert bans_text(read_run(folder)).splitlines() == [
        "step    12: peer  3 (Byzantine), wrong_gradient, accused by 0",
        "step    13: back to step 11",
    ]
