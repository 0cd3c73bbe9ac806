"""`python -m btard.export --check`: what nobody signs is not trusted, or it is said."""

from __future__ import annotations

import json
import re
import shutil
import string
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import btard
from btard.audit.attestation import Attestation
from btard.audit.settings import read_settings, write_settings
from btard.audit.vouching import FILES, digests
from btard.export.__main__ import main as export
from btard.export.card import code, plain
from btard.protocol.identity import Identity
from btard.protocol.ledger import Entry, Ledger
from btard.training.layout import MAX_MADE, LayoutError, Slot, check_places
from tests.training.test_export import Tied, loss

RUN = "x\x1b[1A\rok: signed by 16\n| [a](b) <b>"
"""The name of the run, by somebody who does not mean well."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(16, 1, 6, 6), torch.randint(4, (16,)))
    task = btard.TorchTask(Tied(), loss, data, 4)
    btard.simulate(task, optimizer=lambda p: torch.optim.SGD(p, 0.1), peers=3, steps=2, run_id=RUN, out=place / "run")
    assert export([str(place / "run"), "--out", str(place / "out")]) == 0
    return place / "out"


Tensors = dict[str, Tensor]
Slots = list[dict[str, Any]]


def hidden(tensors: Tensors, slots: Slots) -> None:
    """All numbers under a name of their own, the real names called untrained."""
    vector = torch.zeros(max(slot["offset"] + tensors[slot["name"]].numel() for slot in slots))
    for slot in slots:
        if slot["source"] == "parameters":
            vector.as_strided(slot["shape"], slot["stride"], slot["offset"]).copy_(tensors[slot["name"]])
            slot |= {"source": f"kept/{slot['name']}", "offset": 0}
            tensors[slot["name"]] = torch.full(tuple(slot["shape"]), 666.0)
    tensors["all"] = vector
    slots.append(asdict(Slot("all", (len(vector),), (1,), 0)))


def swapped(tensors: Tensors, slots: Slots) -> None:
    """Two parameters of one shape change names."""
    names = {"one.bias": "other.bias", "other.bias": "one.bias"}
    tensors |= {new: tensors[old].clone() for old, new in names.items()}
    for slot in slots:
        slot["name"] = names.get(slot["name"], slot["name"])


def alias(tensors: Tensors, slots: Slots) -> None:
    """The other name of a shared weight has other numbers."""
    tensors["other.weight"] = tensors["other.weight"] + 1


def stranger(tensors: Tensors, slots: Slots) -> None:
    tensors["classifier.\x1b[2Jweight"] = torch.ones(3)


def missing(tensors: Tensors, slots: Slots) -> None:
    del tensors["conv.bias"]


def wider(tensors: Tensors, slots: Slots) -> None:
    tensors["conv.bias"] = tensors["conv.bias"].double() * (1 + 1e-12)


def far(tensors: Tensors, slots: Slots) -> None:
    """Would take 8 GB."""
    slots[0]["offset"] = 2**31


def beyond(tensors: Tensors, slots: Slots) -> None:
    slots[0]["offset"] = 2**70


def twice(tensors: Tensors, slots: Slots) -> None:
    slots.append({**slots[0], "source": "kept/x"})


CHANGES: dict[Callable[[Tensors, Slots], None], str] = {
    hidden: "its names of parameters are not what the peers signed",
    swapped: "its names of parameters are not what the peers signed",
    alias: "other.weight has other numbers than another name of the same tensor",
    stranger: "classifier.\\x1b[2Jweight is no tensor of the run's model",
    missing: "conv.bias is missing",
    wider: "conv.bias is of torch.float64, not float32",
    far: "of the parameters is named by nobody",
    beyond: "damaged",
    twice: "stands there twice",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_no_name_stands_for_other_numbers_than_peers_signed(
    change: Callable[[Tensors, Slots], None], exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(exported, out)
    model = out / "proof/model.json"
    content, tensors = json.loads(model.read_text()), load_file(out / "model.safetensors")
    change(tensors, content["tensors"])
    save_file(tensors, out / "model.safetensors")
    model.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="2"):
        export(["--check", str(out)])
    said = capsys.readouterr().err
    assert CHANGES[change] in said and said.count("\n") == 1 and "\x1b" not in said


def test_what_nobody_signs_is_said(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    shutil.copytree(exported, out)
    (out / "pytorch_model.bin").write_bytes(b"")
    weights = load_file(out / "model.safetensors")
    save_file({**weights, "fixed.weight": weights["fixed.weight"] + 1}, out / "model.safetensors")
    assert export(["--check", str(out)]) == 0
    said = capsys.readouterr().out
    assert "not signed, and not checked: tensor fixed.weight" in said and "README.md, pytorch_model.bin" in said
    assert "\x1b" not in said and "\\x1b[1A" in said and len(said.splitlines()) == 3

    # Signatures of before peers signed names: the numbers are theirs, what they mean is not.
    end = Attestation.read(out / "proof")
    replace(end, layout=b"").write(out / "proof")
    assert export(["--check", str(out)]) == 1
    said = capsys.readouterr().out
    assert "NOT ENOUGH: signed by 0 of the 3" in said and "not signed: which name stands for which" in said


@pytest.mark.parametrize("whose", ["one peer's", "nobody's"])
def test_a_ledger_does_not_say_who_has_to_sign(
    whose: str, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other settings, by which nobody is Byzantine, and a ledger by which the signer alone is left."""
    proof = tmp_path / "out/proof"
    shutil.copytree(exported, tmp_path / "out")
    config, d, roster = read_settings(proof)
    config = replace(config, byzantine=0, probation=1)
    write_settings(proof, config, d, roster)
    signer, key = (1, Identity.from_seed(RUN, 1)) if whose == "one peer's" else (3, Identity.from_seed("nobody"))
    entries = [Entry(1, "silent", "public", i, (), (i,), about_step=1) for i in range(3) if i != signer]
    if signer == 3:
        evidence = key.public_key.hex()
        entries.insert(0, Entry(0, "join", "public", 3, (), (), about_step=0, evidence=evidence))
        entries.insert(1, Entry(0, "member", "public", 3, (), (), about_step=0))
        roster = roster.grown(key.public_key)
    ledger = Ledger()
    (proof / "ledger.jsonl").write_text("".join(ledger.append(entry) + "\n" for entry in entries))
    end = replace(Attestation.read(proof), head=ledger.head, signatures={})
    replace(end, signatures={signer: key.sign(end.digest(config, roster, d))}).write(proof)
    assert export(["--check", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().out
    assert f"NOT ENOUGH: signed by 1 of the 1 peers that were left: {signer}" in said
    assert "too few of the 3 peers of the start have signed" in said


def test_a_number_in_the_settings_allocates_nothing(exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(exported, out)
    config, _, roster = read_settings(out / "proof")
    write_settings(out / "proof", config, 2**32 - 1, roster)
    with pytest.raises(SystemExit, match="2"):
        export(["--check", str(out)])


def repeated(slots: Slots) -> None:
    """As many names for a tensor as fit into the file."""
    slots += [{**slots[0], "name": f"again {number}"} for number in range(100 * MAX_MADE)]


def widened(slots: Slots) -> None:
    kept = next(slot for slot in slots if slot["source"].startswith("kept/"))
    slots += [{**kept, "name": f"again {number}", "dtype": "float64"} for number in range(100 * MAX_MADE)]


def exotic(slots: Slots) -> None:
    """torch has it, safetensors does not."""
    slots[0]["dtype"] = "complex128"


def dimensions(slots: Slots) -> None:
    slots[0] |= {"shape": [2**47] * 10**5, "stride": [1] * 10**5}


@pytest.mark.parametrize("change", [repeated, widened, exotic, dimensions])
def test_a_small_file_of_names_does_not_make_a_large_model(
    change: Callable[[Slots], None],
    exported: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(exported.parent / "run", tmp_path / "run")
    model = tmp_path / "run/model.json"
    content = json.loads(model.read_text())
    change(content["tensors"])
    model.write_text(json.dumps(content))
    (tmp_path / "run/attestation.json").unlink()
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    summary[FILES] = digests(tmp_path / "run", tuple(summary[FILES]))
    (tmp_path / "run/summary.json").write_text(json.dumps(summary))
    monkeypatch.setattr(Slot, "of", lambda *_: pytest.fail("it is made"))
    with pytest.raises(SystemExit, match="2"):
        export([str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and ("tensors of" in said or "model.json: damaged (ValueError" in said)


def test_the_card_shows_a_strangers_words_and_obeys_none(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    assert r"# x\\x1b[1A" in card.replace(r"\[", "[") and "\x1b" not in card
    assert plain("<b>[x](y)|") == r"\<b\>\[x\](y)\|" and code("a`|b") == "`ab`"
    words = "_see_ ~~it~~ https://evil.example www.evil.example me@evil.example $x^2$ :smile: #1 !"
    assert not set(re.sub(r"\\.", "", plain(words))) & set(string.punctuation)
    assert plain("peer 3 (late, step 7)") == "peer 3 (late, step 7)"


@pytest.mark.parametrize(
    ("slots", "said"),
    [
        ([((2, 3), (3, 1), 0)], "names 6 parameters, the run has 7"),
        ([((2, 3), (3, 1), 0), ((2,), (1,), 5)], "entry 5 of the parameters is named twice"),
        ([((2, 3), (0, 1), 0), ((4,), (1,), 3)], "is no block of the vector"),
        ([((7,), (1,), 0), ((7, 1), (1, 1), 0)], "read the same numbers differently"),
        ([((3, 2), (1, 3), 0), ((1,), (9,), 6)], ""),
    ],
)
def test_each_parameter_has_one_place(slots: list[Any], said: str) -> None:
    layout = [Slot(f"s{number}", *place) for number, place in enumerate(slots)]
    if said:
        with pytest.raises(LayoutError, match=said):
            check_places(layout, 7)
    else:
        check_places(layout, 7)
