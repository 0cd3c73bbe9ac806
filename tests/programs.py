"""Every program of the repository with words that make it do something small, for tests that start them anywhere.

`{out}` stands for the place of the result, `{base}` for a folder with what programs read (`make_inputs`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import yaml

from resnet.sweep import main as sweep
from resnet.train import main as train
from tests.source import ROOT, programs

DIGITS = str(ROOT / "configs/resnet/digits.yaml")
SMALL = ["--peers=4", "--test_samples=20", "--model.width=1", "--batch_size=2", "--threads=1"]
RUN = [
    *SMALL,
    "--byzantine=1",
    "--steps=4",
    "--eval_every=2",
    "--checkpoint_every=2",
    "--attack.name=sign_flip",
    "--attack.start=1",
]
TEXT = "".join(
    f" = Town {i} = \n\n Town {i} lies on a river . It has {i} bridges . Boats pass .\n\n" for i in range(30)
)
TINY = {
    "run_id": "tiny",
    "peers": 4,
    "steps": 1,
    "threads": 1,
    "data": {"path": "{base}/data"},
    "model": {"layers": 1, "hidden": 16, "heads": 2, "intermediate": 16, "embedding": 8},
    "batch": {"total": 8, "per_device": 2},
    "deadlines": {"compute": 20, "phase": 4, "message": 0.2, "uplink": 1, "give_up": 0.5, "gather": 0.5},
}
SWARM = {"run_id": "one's own", "peers": 4, "steps": 1, "deadlines": TINY["deadlines"]}
OWN_SWARM = "{base}/own.yaml --task=tests.swarm.quadratic:make --out={out}"
NOWHERE = "--network.initial_peers=/ip4/127.0.0.1/tcp/9/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"
PARTS = {"scripts.benchmarks.one_case", "scripts.benchmarks.ranks"}
"""Parts of another program."""
NOT_WRAPPED = {"btard.swarm", *PARTS}
"""They do not end at the boundary themselves: the first calls what is wrapped."""


def digest(*files: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def nothing(out: Path) -> str:
    return ""


def of_run(out: Path) -> str:
    return digest(*(out / name for name in ("metrics.jsonl", "ledger.jsonl")))


def of_file(suffix: str = "") -> Callable[[Path], str]:
    return lambda out: digest(Path(f"{out}{suffix}"))


class Program(NamedTuple):
    """The module with the program's `main`, words, what the result is known by, the code without any surroundings.

    `slow`: it takes more than a second or two.
    """

    module: str
    words: str
    result: Callable[[Path], str] = nothing
    code: int = 0
    slow: bool = False


PROGRAMS = {
    "resnet.train": Program("resnet.train", " ".join([DIGITS, "--out {out}", *RUN]), of_run),
    "resnet.figures": Program("resnet.figures", "{base}/run --out {out}.png --table", of_file(".png")),
    "resnet.sweep": Program("resnet.sweep", "{base}/grid.yaml --out {out} --plan"),
    "resnet.report": Program("resnet.report", "{base}/sweep --out {out}", slow=True),
    "resnet.calibrate": Program(
        "resnet.calibrate", " ".join([DIGITS, "--out {out} --steps 1 --samples 2 --points 1 --byzantine=0", *SMALL])
    ),
    "resnet.radii": Program("resnet.radii", " ".join([DIGITS, "--out {out}.json --widths 1 --byzantine=0", *SMALL])),
    "albert.prepare": Program(
        "albert.prepare",
        "--source={base}/text --out={out} --train-tokenizer --vocab-size=90 --sequence-length=24",
        lambda out: json.loads((out / "data.json").read_text())["digest"],
    ),
    "albert.prepare --check": Program("albert.prepare", "--check {base}/data"),
    "albert.coordinator": Program("albert.coordinator", "{base}/albert.yaml --out {out}", code=2),
    "albert.trainer": Program("albert.trainer", "{base}/albert.yaml --out {out}", code=2),
    "albert.swarm": Program("albert.swarm", "{base}/albert.yaml --out {out} --peer 1", code=2),
    "albert.calibrate": Program("albert.calibrate", "{base}/albert.yaml --out {out} --steps 1 --samples 1"),
    "albert.evaluate": Program("albert.evaluate", "{base}/run --data {base}/data", code=2),
    "albert.export": Program("albert.export", "{base}/run --out {out}", code=2),
    "albert.report": Program("albert.report", f"{ROOT}/results/albert/seeds --out {{out}}", slow=True),
    "albert.experiments": Program(
        "albert.experiments.__main__", f"{ROOT}/configs/albert/experiments/seeds.yaml --out {{out}} --plan"
    ),
    "albert.cloud": Program("albert.cloud.__main__", "status {base}/none.yaml", code=2),
    "albert.workspace": Program("albert.workspace", "--entity", code=2),
    "btard.attacks": Program("btard.attacks.__main__", ""),
    "btard.audit": Program("btard.audit.__main__", "{base}/run"),
    "btard.export": Program("btard.export.__main__", "{base}/run --out {out}", of_file("/model.safetensors")),
    "btard.watch": Program("btard.watch.__main__", "{base}/run --out {out}.html", slow=True),
    "btard.swarm.identity": Program("btard.swarm.identity", "{out}"),
    "btard.swarm coordinator": Program("btard.swarm.commands", f"coordinator {OWN_SWARM}", code=2),
    "btard.swarm trainer": Program("btard.swarm.commands", f"trainer {OWN_SWARM} {NOWHERE}", code=2, slow=True),
    "scripts.adaptive": Program("scripts.adaptive", "--out {out} --runs 1 --limit 4", code=2, slow=True),
    "scripts.api_docs": Program("scripts.api_docs", "--out {out}", of_file()),
    "scripts.ban_times": Program(
        "scripts.ban_times", "--out {out} --runs 1 --peers 6 --byzantine 2 --validators 1", slow=True
    ),
    "scripts.benchmark": Program("scripts.benchmark", "--out {out} --report", code=2),
    "scripts.benchmarks.profile_step": Program("scripts.benchmarks.profile_step", "--d 1000 --steps 1"),
    "scripts.conformance": Program("scripts.conformance.__main__", "--out {base}/file", code=2),
    "scripts.golden": Program("scripts.golden.__main__", "check --match no-such-row --jobs 1"),
    "scripts.gpu_check": Program("scripts.gpu_check", "--cpu --out {out} --only all", code=2),
    "scripts.hunt": Program("scripts.hunt.__main__", "--jobs 0 --out {out}", code=2),
    "scripts.settings_docs": Program("scripts.settings_docs", "--out {out}", of_file()),
    "scripts.soak": Program("scripts.soak", "--runs 1 --jobs 1 --largest 6 --out {out}", slow=True),
    "scripts.step_scheme": Program("scripts.step_scheme", "--out {out}"),
    "scripts.swarm_rounds": Program("scripts.swarm_rounds", "--out {out}.json --cases 0x0", code=2),
    "scripts.sybil_price": Program("scripts.sybil_price", "--out {out} --lives 1 --seeds 1", slow=True),
    "scripts.threat_model": Program("scripts.threat_model", "--out {base}/none.md --seeds 1", code=1),
    "scripts.transformer": Program("scripts.transformer", "--out {out} --seeds 0"),
    "scripts.wire": Program("scripts.wire", "--out {out} --seeds 0", code=2),
    "scripts.wire_albert": Program("scripts.wire_albert", "configs/albert/tiny.yaml --out {out} --seeds 0", code=2),
    "scripts.traffic": Program("scripts.traffic", "--out {out} --d 1000 --peers 4", code=1, slow=True),
}


def modules() -> set[str]:
    """The modules of the repository that `python -m` can run, by the name that is given there."""
    names = (".".join(file.relative_to(ROOT).with_suffix("").parts) for file in programs())
    return {name.removesuffix(".__main__") for name in names}


def make_inputs(base: Path) -> None:
    """What programs read: a finished run, a text, a grid and its sweep, settings of swarms."""
    assert train([DIGITS, "--out", str(base / "run"), *RUN]) == 0
    (base / "text").mkdir()
    (base / "text/train.txt").write_text(TEXT)
    grid = {"settings": {"peers": 4, "steps": 4, "data.name": "digits", "model.width": 1}, "attacks": {"no attack": {}}}
    grid["settings"] |= {"test_samples": 20, "batch_size": 2, "threads": 1}
    grid |= {"defences": {"BTARD": {"aggregator.name": "btard"}}, "experiments": {"all": {}}}
    (base / "grid.yaml").write_text(json.dumps(grid))
    (base / "own.yaml").write_text(yaml.safe_dump(SWARM))
    (base / "albert.yaml").write_text(yaml.safe_dump(TINY).replace("{base}", str(base)))


def make_sweep(base: Path) -> None:
    """The sweep that a report is made of."""
    assert sweep([str(base / "grid.yaml"), "--out", str(base / "sweep")]) == 0
