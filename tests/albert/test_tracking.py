"""Where the coordinator's metrics go: files, TensorBoard and Weights & Biases, of one swarm with an attacker."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from albert.config import Config
from albert.coordinator import main
from albert.workspace import make_workspace
from btard.harness.run_folder import read_metrics, read_timings
from btard.harness.typed_yaml import ConfigError
from btard.protocol.ledger import Entry
from btard.protocol.messages import NOBODY
from btard.swarm import tags
from btard.swarm.config import AttackConfig
from btard.swarm.coordinator import Coordinator
from btard.swarm.tracking import WANDB_ID, TensorBoard, WeightsAndBiases
from btard.swarm.view import News
from tests.albert.trainers import SOURCE, tiny
from tests.albert.watched import Watched
from tests.wandb_files import records

STEPS, START = 30, 3
MEASURED = [f"{what}_{number}" for what in ("masked_word", "sentence_order") for number in ("loss", "accuracy")]
HEALING = {tags.TAGS["loss_at_healing"], tags.TAGS["back_to"]}
"""What a run has no values of in which nobody goes back."""
KEY = "0123456789" * 4


@dataclass
class Seen:
    """What is left of a swarm that was watched."""

    out: Path
    attacker: int
    summary: dict[str, Any]
    lines: list[str]
    metrics: list[dict[str, Any]]
    config: Any

    @property
    def ban(self) -> dict[str, Any]:
        (ban,) = self.summary["bans"]
        return ban


@pytest.fixture(autouse=True)
def _nobody_logged_in(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    wandb.teardown()  # what it has read of the environment before
    yield
    wandb.teardown()


@pytest.fixture(scope="module")
def seen(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Five peers with keys of their own, one of which was started as an attacker: no number says which."""
    import wandb

    out = tmp_path_factory.mktemp("watched")
    attack = AttackConfig(name="sign_flip", start=START)
    config = tiny(
        data,
        run_id="watched",
        peers=5,
        byzantine=1,
        protocol=replace(Config().protocol, validators=2),
        steps=STEPS,
        checkpoint_every=10,
        attack=attack,
        wandb="a-project",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_API_KEY", KEY)
        wandb.teardown()
        swarm = Watched(config, out)
        joins = {f"peer_{n}": {"attack": replace(attack, join=n == 2), "wandb": None} for n in range(5)}
        summary = swarm.run(**joins)
    attacker = swarm.trainers.trainers[2].peer.id
    folder = out / "coordinator"
    return Seen(folder, attacker, summary, swarm.lines, read_metrics(folder), config)


def test_the_summary_says_who_was_started_as_an_attacker(seen: Seen) -> None:
    assert seen.summary["byzantine"] == [seen.attacker]
    assert (seen.summary["byzantine_banned"], seen.summary["honest_banned"]) == (1, 0)
    assert (seen.ban["peer"], seen.ban["kind"]) == (seen.attacker, "wrong_gradient") and seen.ban["accusers"]
    status = json.loads((seen.out / "status.json").read_text())
    assert [peer["peer"] for peer in status["peers"] if peer["attacks"]] == [seen.attacker]


def test_a_coordinator_that_is_started_again_still_knows_who_attacked(seen: Seen, tmp_path: Path) -> None:
    again = tmp_path / "coordinator"
    shutil.copytree(seen.out, again)
    assert Coordinator(seen.config, again, SOURCE).view.attackers() == {seen.attacker}
    (again / "status.json").unlink()  # the newest checkpoint has it, too
    assert Coordinator(seen.config, again, SOURCE).view.attackers() == {seen.attacker}


def test_metrics_show_the_attack_and_the_ban(seen: Seen) -> None:
    assert [row["step"] for row in seen.metrics] == list(range(STEPS))
    for row in seen.metrics:
        banned = row["step"] >= seen.ban["step"]
        assert row["attacking"] == (row["step"] >= START and not banned)
        assert row["removed"] == banned and row.get("bans/wrong_gradient", 0) == banned
        assert row.get("loss_at_ban") == (row["loss"] if row["step"] == seen.ban["step"] else None)
        # Of as many as had reported: on a slow machine that may be the majority, which the coordinator waits for.
        assert round(row["sent"] / row["sent_per_peer"], 6) in (3, 4, 5)
    assert any("validation_loss" in row for row in seen.metrics)
    assert any(f"step {seen.ban['step']}: peer {seen.attacker}, wrong_gradient, accused by" in s for s in seen.lines)


def test_who_goes_back_is_in_words_and_removes_nobody(seen: Seen, tmp_path: Path) -> None:
    lines: list[str] = []
    coordinator = Coordinator(seen.config, tmp_path, SOURCE, say=lines.append)
    coordinator.first = 100
    coordinator.folder.start(0)
    coordinator.trackers.append(TensorBoard(tmp_path / "tb", 100))
    back = Entry(9, "heal", "public", NOBODY, (), (), 4, evidence="ab", losses={"4": 0.27, "9": 1.25})
    stay = Entry(19, "heal", "public", NOBODY, (), (), 19, evidence="ab", losses={"10": 1.0, "19": 0.9})
    unknown = Entry(29, "heal", "public", NOBODY, (), (), 29)
    entries = (back, stay, unknown)
    written = tuple(coordinator.view.ledger.append(entry) for entry in entries)
    coordinator.view.learn = lambda now: News(False, entries, written)  # type: ignore[method-assign]
    coordinator._note_ledger()
    coordinator.folder.close()
    coordinator.trackers[0].finish(None)
    said = [
        "step 109: back to step 104, loss 1.25 to 0.27",
        "step 119: no earlier state is clearly better",
        "step 129: too few peers have the same earlier states to compare them",
    ]
    assert lines == said
    texts = EventAccumulator(str(tmp_path / "tb")).Reload().Tensors("healings/text_summary")
    assert [(text.step, text.tensor_proto.string_val[0].decode()) for text in texts] == list(
        zip([109, 119, 129], said, strict=True)
    )
    assert coordinator.view.bans() == [] and len(coordinator.view.active()) == seen.config.peers


def test_checkpoints_are_of_exactly_the_steps_that_were_asked_for(seen: Seen) -> None:
    steps = [int(file.stem.removeprefix("step-")) for file in sorted((seen.out / "checkpoints").iterdir())]
    assert steps == [10, 20, STEPS]


def expected(seen: Seen) -> dict[str, list[tuple[int, float]]]:
    """Tag -> its curve, from the files."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row, timing in zip(seen.metrics, read_timings(seen.out), strict=True):
        phases = {phase: spent for phase, spent in timing.items() if phase != "step"}
        for tag, value in tags.scalars(row, phases, MEASURED).items():
            curves.setdefault(tag, []).append((row["step"], value))
    return curves


def check_curves(found: dict[str, list[tuple[int, float]]], seen: Seen) -> None:
    curves = expected(seen)
    assert found.keys() == curves.keys()
    for tag, curve in curves.items():
        assert [step for step, _ in found[tag]] == [step for step, _ in curve], tag
        values = [value for _, value in found[tag]]
        assert values == pytest.approx([value for _, value in curve], rel=1e-5, abs=1e-3), tag


def test_tensorboard_has_what_the_files_have(seen: Seen) -> None:
    events = EventAccumulator(str(seen.out / "tb")).Reload()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    check_curves(found, seen)
    always = set(tags.TAGS.values()) - HEALING | {tags.VALIDATION + name for name in MEASURED}
    assert always | {"bans/wrong_gradient", "time/gradients", "time/commit"} <= found.keys()
    (text,) = events.Tensors("bans/text_summary")
    (line,) = text.tensor_proto.string_val
    accusers = ", ".join(map(str, seen.ban["accusers"]))
    assert text.step == seen.ban["step"]
    assert line.decode() == f"step {text.step}: peer {seen.attacker}, wrong_gradient, accused by {accusers}"


def test_tensorboards_first_custom_chart_is_the_loss_with_the_bans(seen: Seen) -> None:
    events = EventAccumulator(str(seen.out / "tb")).Reload()
    (content,) = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val
    layout = layout_pb2.Layout.FromString(content)
    first = layout.category[0].chart[0]
    written = events.Tags()["scalars"]

    def drawn(pattern: str) -> list[str]:
        return [tag for tag in written if re.compile(pattern).match(tag)]  # as TensorBoard's plugin does

    assert [tag for pattern in first.multiline.tag for tag in drawn(pattern)] == [
        tags.TAGS["loss"],
        tags.TAGS["loss_at_ban"],
    ]
    assert [c.title for c in layout.category] == [
        "Loss", "Peers", "Bans", "Time", "Speed", "Network", "Optimizer", "Healing",
    ]  # fmt: skip
    charts = [chart for category in layout.category for chart in category.chart]
    patterns = [pattern for chart in charts for pattern in chart.multiline.tag]
    shown = {pattern: drawn(pattern) for pattern in patterns}
    assert {pattern for pattern, match in shown.items() if not match} == {re.escape(tag) + "$" for tag in HEALING}
    assert sorted(tag for match in shown.values() for tag in match) == sorted(written)


def logged(seen: Seen) -> list[Any]:
    (file,) = (seen.out / "wandb").glob("offline-run-*/*.wandb")
    return records(file)


def items(update: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in update}


def test_weights_and_biases_has_what_the_files_have(seen: Seen) -> None:
    kept = logged(seen)
    run = [record.run for record in kept if record.WhichOneof("record_type") == "run"][-1]
    assert (run.project, run.display_name, run.run_group) == ("a-project", "watched", "BTARD, tau auto")
    assert run.run_id == (seen.out / WANDB_ID).read_text().strip()
    assert sorted(run.tags) == ["BTARD, tau auto", "sign_flip"]
    assert items(run.config.update)["attack"]["start"] == START
    found: dict[str, list[tuple[int, float]]] = {}
    table = {}
    for record in kept:
        if record.WhichOneof("record_type") != "history":
            continue
        row = items(record.history.item)
        table |= {key: row[key] for key in row if key.startswith("removed peers")}
        for tag in row.keys() - table.keys():
            if not tag.startswith("_") and tag != "step":
                assert row["_step"] == row["step"]
                found.setdefault(tag, []).append((row["step"], row[tag]))
    check_curves(found, seen)
    metrics = {
        record.metric.name or record.metric.glob_name: record.metric
        for record in kept
        if record.metric.name or record.metric.glob_name
    }
    assert metrics["*"].step_metric == "step"
    (file,) = seen.out.glob("wandb/offline-run-*/files/media/table/*.table.json")
    content = json.loads(file.read_text())
    accusers = ", ".join(map(str, seen.ban["accusers"]))
    assert content["columns"] == ["step", "peer", "kind", "accusers", "attacker"]
    assert content["data"] == [[seen.ban["step"], seen.attacker, "wrong_gradient", accusers, True]]
    summary = {}
    for record in kept:
        if record.WhichOneof("record_type") == "summary":
            summary |= items(record.summary.update)
    assert (summary["byzantine_banned"], summary["honest_banned"]) == (1, 0)
    assert any(line.startswith("Weights & Biases: offline, `wandb sync ") for line in seen.lines)


def test_the_workspaces_panels_show_what_was_logged(seen: Seen) -> None:
    pytest.importorskip("wandb_workspaces")
    written = list(expected(seen))
    workspace = make_workspace("a-project", "a-team", "swarms")
    assert [section.name for section in workspace.sections] == list(tags.SECTIONS)
    panels = [panel for section in workspace.sections for panel in section.panels]
    assert panels[0].y == [tags.TAGS["loss"], tags.TAGS["loss_at_ban"], tags.TAGS["loss_at_healing"]]
    shown = []
    for panel in panels:
        assert panel.x == "step"
        matched = [tag for tag in written if panel.metric_regex and re.search(panel.metric_regex, tag)]
        assert bool(matched) != bool(panel.y), panel.title
        shown += [*panel.y, *matched]
    assert sorted(shown) == sorted([*written, *HEALING])


def test_the_key_is_in_no_file_and_no_line(seen: Seen) -> None:
    import wandb

    wandb.teardown()
    files = [file for file in seen.out.rglob("*") if file.is_file()]
    assert len(files) > 10 and not [file for file in files if KEY.encode() in file.read_bytes()]
    assert KEY not in "\n".join(seen.lines)


def test_a_coordinator_that_is_started_again_goes_on_with_its_run(
    seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = []
    for folder in ("first", "first", "second"):
        (tmp_path / folder).mkdir(exist_ok=True)
        tracker = WeightsAndBiases(seen.config, tmp_path / folder, lambda line: None)
        ids.append(tracker._run.id)
        assert tracker._run.resumed is False  # only the server could tell
        tracker.finish(None)
    assert ids[0] == ids[1] != ids[2]


def test_a_hiccup_later_is_said_once_and_ends_nothing(
    seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    said: list[str] = []
    tracker = WeightsAndBiases(seen.config, tmp_path, said.append)
    tracker.log(0, {"loss/validation": 1.0})
    with monkeypatch.context() as broken:

        def fail(*_: Any, **__: Any) -> None:
            raise BrokenPipeError(f"the service\n is gone, key {KEY}")

        broken.setattr(type(tracker._run), "log", fail)
        tracker.log(1, {"loss/validation": 2.0})
        tracker.log(2, {"loss/validation": 3.0})
    tracker.log(3, {"loss/validation": 4.0})
    tracker.finish(seen.summary)
    assert said[1:] == [
        "Weights & Biases: the service is gone, key ***; the run continues, and what is missing there is in "
        f"{tmp_path}/metrics.jsonl"
    ]
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    rows = [items(r.history.item) for r in records(file) if r.WhichOneof("record_type") == "history"]
    assert [row["loss/validation"] for row in rows if "loss/validation" in row] == [1.0, 4.0]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("not installed", r"wandb: the package wandb is not installed; pip install 'wandb>="),
        (
            "not logged in",
            r"wandb: not logged in to Weights & Biases; run `wandb login`, or set WANDB_API_KEY; WANDB_MO",
        ),
        ("a wrong key", r"wandb: WANDB_API_KEY invalid: .*; `wandb login` with a key"),
    ],
)
def test_what_cannot_work_is_said_in_one_line_before_the_swarm_starts(
    seen: Seen,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    what: str,
    message: str,
) -> None:
    if what == "not installed":
        monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    if what == "a wrong key":
        monkeypatch.setenv("WANDB_API_KEY", "short")
    coordinator = Coordinator(seen.config, tmp_path / "out", SOURCE)
    with pytest.raises(ConfigError, match=message):
        coordinator.run()
    assert not (tmp_path / "out" / "address.txt").exists()
    with pytest.raises(SystemExit) as ended:
        main([str(seen.out / "config.yaml"), "--out", str(tmp_path / "main")])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and re.match(f"error: {message}", said) and said.count("\n") == 1
