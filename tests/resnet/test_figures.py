"""Figures and tables from run folders that were written here: what they show is what the folders hold."""

from dataclasses import replace
from pathlib import Path

import pytest

from btard.harness.run_folder import RunFolder, RunFolderError
from btard.harness.sections import ProtocolSection
from resnet.config import AggregatorConfig, AttackConfig, Config
from resnet.curves import draw
from resnet.figures import main
from resnet.table import COLUMNS, bans_text, describe, read_run, row

QUIET = Config(steps=30, aggregator=AggregatorConfig(name="mean"))
ATTACKED = Config(steps=30, byzantine=2, attack=AttackConfig(name="sign_flip", start=10))
BANS = [
    {"peer": 5, "step": 14, "kind": "gradient", "accuser": 3, "byzantine": True},
    {"peer": 2, "step": 11, "kind": "aggregate", "accuser": None, "byzantine": True},
]


def write_run(path: Path, config: Config, bans: list[dict] | None = None, *, finished: bool = True) -> Path:
    folder = RunFolder(path, config)
    folder.start(0)
    for step in range(config.steps):
        measured = {"test_accuracy": (step + 1) / 40} if step % 10 == 9 else {}
        folder.log(step, {"step": step, "loss": 1.0, **measured}, {"gradients": 0.06, "report": 0.02})
    if finished:
        numbers = {"honest_banned": 0, "byzantine_banned": len(bans or [])}
        folder.write_summary({"test_accuracy": 0.75, "bans": bans or [], **numbers})
    folder.close()
    return path


@pytest.fixture
def folders(tmp_path):
    return [write_run(tmp_path / "quiet", QUIET), write_run(tmp_path / "attacked", ATTACKED, BANS)]


def test_curves_are_the_measured_accuracies(folders):
    axes = draw([read_run(folder) for folder in folders]).axes[0]
    curves = {line.get_label(): line for line in axes.get_lines()}
    quiet = curves["mean, no attack"]
    assert list(quiet.get_xdata()) == [10, 20, 30]
    assert list(quiet.get_ydata()) == pytest.approx([25, 50, 75])
    attacked = curves["btard, tau auto, sign flip by 2 of 16"]
    assert attacked.get_color() != quiet.get_color()
    assert attacked.get_linestyle() != quiet.get_linestyle()


def test_bans_stand_on_the_curve_at_their_steps(folders):
    axes = draw([read_run(folder) for folder in folders]).axes[0]
    (rings,) = [line for line in axes.get_lines() if line.get_label() == "a ban"]
    assert list(rings.get_xdata()) == [11, 14]
    assert list(rings.get_ydata()) == pytest.approx([27.5, 35])


def test_honest_ban_has_a_mark_of_its_own(tmp_path):
    folder = write_run(tmp_path / "r", ATTACKED, [*BANS, {**BANS[0], "peer": 9, "byzantine": False}])
    axes = draw([read_run(folder)]).axes[0]
    assert [list(line.get_xdata()) for line in axes.get_lines() if "honest" in line.get_label()] == [[14]]


def test_attack_start_is_marked_only_where_there_is_an_attack(folders):
    def starts(figure_axes) -> list[float]:
        return [line.get_xdata()[0] for line in figure_axes.get_lines() if len(set(line.get_xdata())) == 1]

    assert starts(draw([read_run(folders[0])]).axes[0]) == []
    assert starts(draw([read_run(folders[1])]).axes[0]) == [10]


def test_legend_lies_outside_the_axes(folders):
    figure = draw([read_run(folder) for folder in folders])
    figure.draw_without_rendering()
    assert not figure.legends[0].get_window_extent().overlaps(figure.axes[0].bbox)


def test_command_writes_both_files_the_same_each_time_and_prints_the_table(folders, tmp_path, capsys):
    words = [
        *map(str, folders),
        "--out",
        str(tmp_path / "new" / "a.png"),
        "--labels",
        "calm",
        "under attack",
        "--table",
    ]
    assert main([*words, "--markdown", str(tmp_path / "a.md")]) == 0
    printed = capsys.readouterr().out
    heading, calm, attacked = (
        next(line for line in printed.splitlines() if word in line) for word in ("run ", "calm", "under attack")
    )
    assert heading.index("test accuracy") < calm.index("75.0%") == attacked.index("75.0%")
    assert "under attack" in printed
    assert "step    11: peer  2 (Byzantine), aggregate\n" in printed
    assert "step    14: peer  5 (Byzantine), gradient, accused by 3\n" in printed
    first = {file.name: file.read_bytes() for file in (tmp_path / "new").iterdir()}
    assert first.keys() == {"a.png", "a.svg"}
    assert first["a.png"].startswith(b"\x89PNG")
    assert main(words) == 0
    assert {file.name: file.read_bytes() for file in (tmp_path / "new").iterdir()} == first
    assert (tmp_path / "a.md").read_text().startswith("| run | test accuracy |")


def test_rows_of_the_table(folders):
    quiet, attacked = (
        dict(zip((name.lstrip(">") for name in COLUMNS), row(read_run(folder)), strict=True)) for folder in folders
    )
    assert quiet["first ban"] == quiet["last ban"] == quiet["banned for"] == "-"
    assert quiet["Byzantine banned"] == "0 of 0"
    assert attacked == {
        "run": "btard, tau auto, sign flip by 2 of 16",
        "test accuracy": "75.0%",
        "steps/s": "12.50",
        "Byzantine banned": "2 of 2",
        "honest banned": "0",
        "first ban": "11",
        "last ban": "14",
        "banned for": "aggregate, gradient",
    }


def test_nobody_banned_is_said(folders):
    assert bans_text(read_run(folders[0])) == "nobody was banned"


def test_unfinished_run_shows_how_far_it_is(tmp_path):
    run = read_run(write_run(tmp_path / "r", replace(QUIET, steps=20), finished=False))
    assert row(run)[:3] == ("mean, no attack", "50.0% (step 20 of 20)", "-")
    assert draw([run]).axes


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (Config(), "btard, tau auto, no attack"),
        (Config(protocol=ProtocolSection(tau=1.0)), "btard, tau 1, no attack"),
        (Config(aggregator=AggregatorConfig(name="krum")), "krum, no attack"),
        (replace(ATTACKED, aggregator=AggregatorConfig(name="centered_clip", radius=float("inf"))),
         "centered clip, tau inf, sign flip by 2 of 16"),
    ],
)  # fmt: skip
def test_runs_are_named_after_their_settings(config, name):
    assert describe(config) == name


def test_mistakes_are_one_line(folders, tmp_path, capsys):
    out = ["--out", str(tmp_path / "a.png")]
    for words, message in (
        ([str(tmp_path), *out], "expected a run folder, found no config.yaml"),
        ([str(folders[0]), *out, "--labels", "a", "b"], "--labels: expected one per run, 1, got 2"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert message in error
    empty = RunFolder(tmp_path / "empty", QUIET)
    with pytest.raises(RunFolderError, match="no test accuracy was measured yet"):
        draw([read_run(empty.path)])
