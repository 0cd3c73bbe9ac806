"""A page says what the folder says: of a real run, of a swarm, of a long one, and of what is missing or damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import vl_convert

import btard
from btard.audit.files import proof_file, write_json
from btard.audit.report import MEASURED, RECOMPUTED, Finding, Report
from btard.harness.run_folder import RunFolderError, read_costs, read_timings
from btard.protocol import wire
from btard.protocol.ledger import Entry
from btard.protocol.messages import Claim, Claims
from btard.protocol.record import Transcript, to_json
from btard.watch.__main__ import main
from btard.watch.charts import COLUMNS
from btard.watch.commands import audited
from btard.watch.folder import read_run
from btard.watch.page import content_of
from btard.watch.story import MAX_STEPS
from btard.watch.words import MEANINGS, PHASES, meaning, phase_of
from tests.watch.runs import by_hand, swarm


def rows_of(spec: dict[str, Any], what: str) -> list[tuple[int, int]]:
    """(step, peer) of the marks of this name in the chart of the peers."""
    values = [row for layer in spec["layer"] for row in layer["data"]["values"]]
    return [(row["step"], row["peer"]) for row in values if row.get("what") == what and "step" in row]


def test_a_real_run_is_told_as_its_files_have_it(real_run: Path) -> None:
    content = content_of(read_run(real_run))
    summary = json.loads((real_run / "summary.json").read_text())
    removed = {peer["peer"]: peer["removed"] for peer in content["peers"] if peer["removed"] is not None}
    assert removed == {ban["peer"]: ban["step"] for ban in summary["bans"]} and removed
    assert [peer["peer"] for peer in content["peers"] if peer["attacks"]] == summary["byzantine"]
    assert (content["kind"], content["finished"], content["steps_done"]) == ("all peers in one process", True, 24)
    for entry in content["entries"]:
        if entry["kind"] != "wrong_gradient":
            continue
        (claim,) = entry["claims"]
        assert [claim["by"]] == entry["accusers"] and claim["kind"] == "wrong_gradient"
        assert claim["about"] == entry["about"] == entry["step"] - 1
        assert entry["decided"].startswith("Each voter recomputed") and entry["honest"] == []
        assert {vote["verdict"]: len(vote["judges"]) for vote in entry["votes"]}["guilty"] >= 4
        step = next(row for row in content["steps"] if row["step"] == entry["step"])
        assert entry["removed"][0] in step["accused"]
        assert step["messages"]["commit"]["senders"] == sorted(
            peer for peer, letter in enumerate(step["roles"]) if letter in "wvi"
        )
        before = next(row for row in content["steps"] if row["step"] == entry["step"] - 1)
        assert "messages" in before, "the proof has the step before, too"
    spent = sum(value for line in read_timings(real_run) for name, value in line.items() if name != "step")
    assert sum(row["seconds"] or 0 for row in content["totals"]) == pytest.approx(spent)
    sent = sum(sum(line["bytes"].values()) for line in read_costs(real_run))
    assert sum(row["bytes"] or 0 for row in content["totals"]) == sent > 0
    assert {row["phase"] for row in content["totals"]} <= {phase.title for phase in PHASES}


def test_the_chart_of_the_peers_has_every_role_of_every_step(real_run: Path) -> None:
    spec = content_of(read_run(real_run))["charts"]["peers"]
    lines = [json.loads(line) for line in (real_run / "metrics.jsonl").open()]
    told = {(line["step"], peer) for line in lines for peer, letter in enumerate(line["roles"]) if letter == "v"}
    assert set(rows_of(spec, "validated")) == told
    here = {(line["step"], peer) for line in lines for peer, letter in enumerate(line["roles"]) if letter in "wvi"}
    bars = next(layer["data"]["values"] for layer in spec["layer"] if layer["mark"]["type"] == "bar")
    drawn = {(step, bar["peer"]) for bar in bars for step in range(int(bar["from"] + 0.5), int(bar["to"] + 0.5))}
    assert drawn == here and all(bar["what"] == "here" for bar in bars)
    assert len(rows_of(spec, "removed")) == 2


def test_every_chart_can_be_drawn(real_run: Path) -> None:
    charts = content_of(read_run(real_run))["charts"]
    assert charts.keys() == {"loss", "accuracy", "peers", "seconds", "bytes"}
    for spec in charts.values():
        plain = json.loads(json.dumps(spec).replace('"--', '"#')) | {"width": 400}
        assert vl_convert.vegalite_to_svg(plain).startswith("<svg")


def test_an_audit_says_of_each_entry_what_it_checked(real_run: Path, tmp_path: Path) -> None:
    assert main([str(real_run), "--audit", "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    data = json.loads(page.partition('data-live="no">')[2].partition("</script>")[0])
    assert [entry["audit"] for entry in data["entries"]] == [
        RECOMPUTED if entry.kind == "wrong_gradient" else MEASURED for entry in read_run(real_run).entries
    ]
    assert data["audit"] == "in order"
    lines = (real_run / "ledger.jsonl").read_text().splitlines(keepends=True)
    forged = tmp_path / "forged"
    forged.mkdir()
    for name in ("config.yaml", "protocol_version", "metrics.jsonl", "protocol.json", "roster.json"):
        (forged / name).write_bytes((real_run / name).read_bytes())
    (forged / "evidence").mkdir()
    (forged / "ledger.jsonl").write_text(lines[0].replace("guilty", "public", 1))
    assert main([str(forged), "--audit"]) == 0
    assert "The audit refuses this run" in (forged / "page.html").read_text()
    assert any("its head does not follow" in note for note in read_run(forged).notes)


def test_a_swarm_counts_from_the_step_at_which_it_began(tmp_path: Path) -> None:
    content = content_of(read_run(swarm(tmp_path / "coordinator").parent))
    assert content["kind"].startswith("a swarm") and not content["finished"]
    first = content["entries"][0]
    assert (first["step"], first["about"], first["removed"]) == (102, 101, [2])
    spec = content["charts"]["peers"]
    assert rows_of(spec, "removed") == [(102, 2), (103, 1)] and rows_of(spec, "accused") == [(102, 2), (103, 1)]
    bars = next(layer["data"]["values"] for layer in spec["layer"] if layer["mark"]["type"] == "bar")
    assert [(b["from"], b["to"], b["what"]) for b in bars if b["peer"] == 3] == [
        (99.5, 100.5, "away"),
        (100.5, 103.5, "here"),
    ]
    assert [peer["attacks"] for peer in content["peers"]] == [False, False, True, False]
    assert content["attackers_by"] == "their own word"
    assert any("they are in the folders of its peers" in note for note in content["notes"])


def test_a_model_of_ones_own_is_watched_by_what_its_peers_agreed_on(tmp_path: Path) -> None:
    data = torch.utils.data.TensorDataset(torch.randn(32, 4), torch.zeros(32, dtype=torch.long))
    task = btard.TorchTask(
        torch.nn.Linear(4, 2), lambda model, x: torch.nn.functional.cross_entropy(model(x[0]), x[1]), data, batch_size=4
    )
    run = btard.simulate(
        task, peers=5, byzantine=1, attack="sign_flip", steps=3, optimizer=torch.optim.Adam, out=tmp_path / "r"
    )
    content = content_of(read_run(tmp_path / "r"))
    assert (content["steps_done"], content["finished"], len(content["peers"])) == (3, True, 5)
    assert content["steps"][0]["roles"] == "wwwww" and len(content["entries"]) == len(run.ledger)
    assert {peer["peer"] for peer in content["peers"] if peer["attacks"]} == run.attackers
    btard.simulate(task, peers=5, rule="mean", steps=2, optimizer=torch.optim.Adam, out=tmp_path / "served")
    served = content_of(read_run(tmp_path / "served"))
    assert (served["steps_done"], served["finished"], len(served["peers"])) == (2, True, 5)
    assert ["aggregation", "mean"] in [list(pair) for pair in served["facts"]]
    with pytest.raises(RunFolderError, match=r"holds 2 runs, name one of them, such as .*/r$"):
        read_run(tmp_path)
    (tmp_path / "r" / "protocol.json").write_text("x\n")
    with pytest.raises(RunFolderError, match="its content does not match its digest"):
        read_run(tmp_path / "r")


def test_what_a_folder_does_not_record_is_said(tmp_path: Path) -> None:
    metrics = [{"step": step, "loss": 1.0, "active": 3} for step in range(4)]
    entries = [Entry(1, "silent", "public", 2, (), (2,), 1)]
    folder = by_hand(tmp_path / "old", config={"peers": 3}, metrics=metrics, entries=entries)
    content = content_of(read_run(folder))
    notes = " ".join(content["notes"])
    for words in ("who worked, validated or was away", "bytes by phase", "seconds by phase", "kept no evidence"):
        assert words in notes
    assert "roles" not in content["steps"][0] and content["peers"][2]["attacks"] is None
    bars = next(x["data"]["values"] for x in content["charts"]["peers"]["layer"] if x["mark"]["type"] == "bar")
    assert [(bar["peer"], bar["to"]) for bar in bars] == [(0, 3.5), (1, 3.5), (2, 1.5)]
    assert {"loss", "peers"} == content["charts"].keys()
    assert content["entries"][0]["decided"] == "No vote: all peers saw it in the broadcasts."


def test_a_long_run_stays_a_page(tmp_path: Path) -> None:
    letters = "wvwwwwwwwwwwwwww"
    metrics = [
        {"step": step, "loss": 1 / (step + 1), "roles": letters[step % 16 :] + letters[: step % 16], "accused": []}
        for step in range(12_000)
    ]
    entries = [Entry(8_002, "gone", "public", 3, (), (3,), 8_002)]
    content = content_of(read_run(by_hand(tmp_path / "r", config={"peers": 16}, metrics=metrics, entries=entries)))
    steps = [row["step"] for row in content["steps"]]
    assert len(steps) <= MAX_STEPS + 3 and {8_001, 8_002, 8_003} <= set(steps) and content["every"] > 1
    drawn = sum(len(layer["data"]["values"]) for layer in content["charts"]["peers"]["layer"])
    assert drawn <= COLUMNS * 16 + 100
    curve = content["charts"]["loss"]["layer"][1]["data"]["values"]
    assert len(curve) == COLUMNS
    assert curve[0]["value"] == pytest.approx(sum(1 / (step + 1) for step in range(20)) / 20)


def test_damaged_lines_end_what_is_shown_and_are_named(tmp_path: Path) -> None:
    metrics = [{"step": step, "loss": 1.0} for step in range(5)]
    folder = by_hand(tmp_path / "r", config={"peers": 3}, metrics=metrics, entries=[])
    text = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join([*text[:3], "{nonsense\n", *text[3:]]))
    (folder / "ledger.jsonl").write_text('{"kind": 3}\n')
    run = read_run(folder)
    assert len(run.metrics) == 3
    assert any(note.startswith("metrics.jsonl: line 4 is damaged") for note in run.notes)
    assert any(note.startswith("ledger.jsonl line 1: ledger entry") for note in run.notes)
    (folder / "metrics.jsonl").write_text('{"step": 0, "loss": NaN, "lr": 1e999, "active": "x", "roles": [1]}\n')
    json.dumps(content_of(read_run(folder)), allow_nan=False)


@pytest.mark.parametrize(
    ("broken", "line"),
    [
        ("missing", "no such folder"),
        ("file", "expected the folder of a run, this is a file"),
        (
            "empty",
            "no run (no config.yaml, protocol.json, run.json in it); RUN_DIR is what a program was given as --out",
        ),
        ("sweep", "holds 1 runs, name one of them, such as"),
        ("older", "holds a run of protocol version 1, this is version"),
        ("none", "holds a run of protocol version none, this is version"),
        ("peers", "peers must be between 1 and 4096, got 5000"),
        ("yaml", "not valid YAML in line 1"),
        ("deep", "nested too deeply"),
        ("list", "expected a mapping of keys to values"),
        ("bomb", "an alias, which no run writes"),
        ("summary", "summary.json: damaged"),
        ("out", "cannot be written"),
    ],
)
def test_a_mistake_is_one_line(broken: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = by_hand(tmp_path / "r", config={"peers": 3}, metrics=[], entries=[])
    out: list[str] = []
    if broken in ("missing", "file"):
        folder = tmp_path / broken
        if broken == "file":
            folder.write_text("x")
    elif broken == "empty":
        folder = tmp_path / "e"
        folder.mkdir()
    elif broken == "sweep":
        folder = tmp_path
    elif broken == "older":
        (folder / "protocol_version").write_text("1\n")
    elif broken == "none":
        (folder / "protocol_version").unlink()
    elif broken == "summary":
        (folder / "summary.json").write_text("{")
    elif broken == "out":
        out = ["--out", str(folder / "config.yaml" / "page.html")]
    else:
        texts = {"peers": "peers: 5000", "yaml": "a: [", "deep": "[" * 2_000, "list": "- 1"}
        texts["bomb"] = f"a: &a [{', '.join(['x'] * 50)}]\nrun_id: [{', '.join(['*a'] * 50)}]\npeers: 3\n"
        (folder / "config.yaml").write_text(texts[broken])
    with pytest.raises(SystemExit) as stopped:
        main([str(folder), *out])
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and said.startswith("error: ") and line in said


def test_too_much_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = by_hand(tmp_path / "r", config={"peers": 3}, metrics=[{"step": 0}], entries=[])
    monkeypatch.setattr("btard.watch.folder.MAX_LINES", 3)
    with pytest.raises(RunFolderError, match="at most 3 bytes are read"):
        read_run(folder)


@pytest.mark.parametrize(
    ("line", "limit"), [('{"step":0}\n', "MAX_STEPS"), ('{"step":0,"a":[[],[],[],[]]}\n', "MAX_VALUES")]
)
def test_small_values_are_counted_before_they_are_decoded(
    line: str, limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = by_hand(tmp_path / "r", config={"peers": 3}, metrics=[], entries=[])
    (folder / "metrics.jsonl").write_text(line * 10)
    read_run(folder)
    monkeypatch.setattr(f"btard.watch.folder.{limit}", 9)
    monkeypatch.setattr("btard.watch.folder.lines_in", lambda raw: pytest.fail("it is decoded"))
    with pytest.raises(RunFolderError, match=r"10 lines and \d+ values, at most"):
        read_run(folder)


def test_lines_of_timings_are_found_wherever_they_are(tmp_path: Path) -> None:
    """Each step once read all lines for that: minutes of work for a small file."""

    class Read(dict[str, Any]):
        """A line that counts how often somebody asks for its step."""

        times = 0

        def __getitem__(self, name: str) -> Any:
            Read.times += name == "step"
            return super().__getitem__(name)

    metrics = [{"step": 10**6 + number} for number in range(300)]
    run = read_run(by_hand(tmp_path / "r", config={"peers": 3}, metrics=metrics, entries=[]))
    run.timings = [Read(step=7 * number, commit=1.0) for number in range(150_000)]
    assert [row["step"] for row in content_of(run)["steps"] if "seconds" in row] == list(
        range(10**6 + 6, 10**6 + 300, 7)
    )
    assert Read.times < 10 * len(run.timings)


def test_a_proof_is_read_once_whatever_the_ledger_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each entry once had all proof of its step read again: an hour for a folder of a few megabytes."""
    entries = [Entry(5, "misreport", "guilty", 1, (0,), (1,), 4, part=number) for number in range(300)]
    folder = by_hand(tmp_path / "r", config={"peers": 4}, metrics=[{"step": 5}], entries=entries)
    said = Claims(tuple(Claim(4, 1, "misreport", number % 300) for number in range(1000)))
    messages = {"accuse/0": {sender: ((wire.encode(said), b""),) for sender in (0, 2)}}
    step = Transcript(step=5, active=tuple(range(4)), assignments={}, previous_coin=b"", tau=1.0, messages=messages)
    write_json(proof_file(folder / "evidence", 5), {"now": to_json(step, Transcript), "before": None})
    decoded: list[bytes] = []
    decode = wire.decode
    monkeypatch.setattr(
        wire, "decode", lambda payload, *args, **more: decoded.append(payload) or decode(payload, *args, **more)
    )
    run = read_run(folder)
    told = content_of(run)["entries"]
    assert len(decoded) == 2, "a payload for each peer that accuses"
    claim = {"by": 0, "accused": 1, "kind": "misreport", "about": 4}
    assert [entry["claims"] for entry in told] == [
        [{**claim, "part": part}] * (4 if part < 100 else 3) for part in range(300)
    ]
    monkeypatch.setattr("btard.watch.story.MAX_STEPS", 10)
    content = content_of(run)
    assert content["entries"] == told[:10] and "the first 10 of 300 entries are listed" in content["notes"]


def test_a_column_shows_the_rarest_state_and_each_line_is_looked_at_once(tmp_path: Path) -> None:
    """For each peer all lines were gone through: minutes for a file of a few megabytes."""

    class Roles(str):
        """Letters that count how often they are asked how many they are."""

        asked = 0

        def __len__(self) -> int:
            Roles.asked += 1
            return super().__len__()

    run = read_run(by_hand(tmp_path / "r", config={"peers": 500}, metrics=[{"step": 0}], entries=[]))
    run.metrics = [{"step": step, "roles": Roles(["wap", ".vi", "w.", "vwa", ".."][step % 5])} for step in range(3000)]
    spec = content_of(run)["charts"]["peers"]
    bars = next(layer["data"]["values"] for layer in spec["layer"] if layer["mark"]["type"] == "bar")
    assert [(bar["peer"], bar["what"], bar["from"], bar["to"]) for bar in bars] == [
        (peer, what, -0.5, 2999.5) for peer, what in enumerate(["here", "away", "away"])
    ]
    assert Roles.asked < 10 * len(run.metrics)


def test_what_an_audit_says_of_an_entry_is_fit_to_be_shown(real_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of a platform is the recording peer's."""
    run = read_run(real_run)
    report = Report(tuple(Finding(entry, "recorded on \x1b[2J") for entry in run.entries), "")
    monkeypatch.setattr("btard.watch.commands.audit", lambda *_: report)
    assert set(audited(run).values()) == {"recorded on \\x1b[2J"}


def test_steps_that_do_not_ascend_are_not_shown(tmp_path: Path) -> None:
    """A chart has as many columns as lie between the first step and the last one."""
    metrics = [{"step": step, "loss": 1.0} for step in (5, *range(10**6, 10**6 + 3000), 7, 10**6 + 3000, 6)]
    run = read_run(by_hand(tmp_path / "r", config={"peers": 3}, metrics=metrics, entries=[]))
    assert [line["step"] for line in run.metrics] == [5, *range(10**6, 10**6 + 3001)]
    assert len(content_of(run)["charts"]["loss"]["layer"][1]["data"]["values"]) <= COLUMNS


def test_every_kind_and_phase_has_words() -> None:
    sources = [file.read_text() for file in (Path(__file__).parents[2] / "btard/protocol").glob("*.py")]
    for kind in MEANINGS:
        assert any(f'"{kind}"' in text for text in sources), f"no {kind} in the protocol"
    assert meaning("malformed_commit") and not meaning("<script>")
    assert [phase_of(name) for name in ("vote/1", "coin_commit/0", "part", "new")] == [
        "accuse",
        "coin",
        "exchange",
        "new",
    ]
