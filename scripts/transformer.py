"""`python -m scripts.transformer --out DIR`: which clipping radius fits a small transformer that Adam trains.

Sixteen peers learn to predict the next letter of generated text, with healing on. Seven of them attack from step 35 of
110, under each attack on gradients, at the radius `auto` and at three fixed ones. Then the loss is multiplied by 0.001
and by 1000, which Adam does not notice, and the attack begins with the first step. DIR gets `results.json` and
`table.md`. The same command goes on where it was interrupted.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from btard.boundary import Parser, output_folder, program
from btard.files import write_file
from btard.harness.progress import track
from btard.harness.tables import markdown, show

if TYPE_CHECKING:
    import torch
    from torch import nn

PEERS, BYZANTINE, STEPS, START, BATCH, RATE = 16, 7, 110, 35, 4, 0.005
LETTERS = "abcdefghijklmnopqrstuvwxyz "
WINDOW = 32
"""Letters that the model sees before the one that it predicts."""
RADII: tuple[str | float, ...] = ("auto", 0.1, 1.0, 10.0)
SCALES = (0.001, 1000.0)
FIRST = ("no attack", "sign flip", "IPM 0.6", "ALIE", "Min-Max", "ROP")
"""The attacks that begin with the first step."""
ATTACKS: Mapping[str, tuple[str | None, dict[str, Any]]] = {
    "no attack": (None, {}),
    "sign flip": ("sign_flip", {}),
    "random direction": ("random_direction", {}),
    "label flip": ("label_flip", {}),
    "delayed gradient": ("delayed_gradient", {"delay": START}),
    "IPM 0.1": ("ipm", {"epsilon": 0.1}),
    "IPM 0.6": ("ipm", {"epsilon": 0.6}),
    "ALIE": ("alie", {}),
    "noise": ("noise", {}),
    "zero": ("zero", {}),
    "copy": ("copy", {}),
    "Min-Max": ("min_max", {}),
    "Min-Sum": ("min_sum", {}),
    "ROP": ("rop", {}),
}


def text(words: int, seed: int) -> np.ndarray:
    """Numbers of letters: words of one lexicon, each of which may be followed by three others."""
    language, draws = np.random.default_rng(0), np.random.default_rng([1, seed])
    lexicon = [language.integers(26, size=language.integers(2, 7)).tolist() for _ in range(40)]
    followers = language.integers(len(lexicon), size=(len(lexicon), 3))
    said, word = [], 0
    for _ in range(words):
        said += [*lexicon[word], LETTERS.index(" ")]
        word = followers[word, draws.integers(3)]
    return np.array(said)


def windows(words: int, seed: int) -> list[torch.Tensor]:
    """Stretches of `text` that overlap, each with the letter after it."""
    import torch

    codes = torch.from_numpy(text(words, seed))
    return [codes[start : start + WINDOW + 1] for start in range(0, len(codes) - WINDOW, 5)]


def make_model(seed: int) -> nn.Module:
    """A causal transformer of two layers without dropout."""
    import torch
    from torch import nn

    class Transformer(nn.Module):
        def __init__(self, width: int = 32) -> None:
            super().__init__()
            self.letters, self.places = nn.Embedding(len(LETTERS), width), nn.Embedding(WINDOW, width)
            layer = partial(nn.TransformerEncoderLayer, width, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
            self.layers = nn.ModuleList(layer() for _ in range(2))
            self.out = nn.Linear(width, len(LETTERS))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
            state = self.letters(x) + self.places.weight[: x.shape[1]]
            for layer in self.layers:
                state = layer(state, src_mask=mask, is_causal=True)
            out: torch.Tensor = self.out(state)
            return out

    torch.manual_seed(seed)
    return Transformer()


def next_letter(model: nn.Module, batch: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """The cross entropy of the next letters of `batch` [n, WINDOW + 1], times `scale`."""
    from torch.nn import functional as F

    return scale * F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def train(attack: str, tau: str | float, *, scale: float, start: int, seed: int) -> dict[str, Any]:
    """Train the model; what became of it."""
    import torch

    from btard.training.simulation import simulate
    from btard.training.torch_task import TorchTask

    torch.set_num_threads(1)
    model, (name, options) = make_model(seed), ATTACKS[attack]
    loss = partial(next_letter, scale=scale)
    poison = partial(torch.sub, torch.tensor(len(LETTERS) - 1))  # the last letter for the first, and so on
    task = TorchTask(model, loss, windows(4000, seed=0), BATCH, collate=torch.stack, poison=poison)
    run = simulate(
        task,
        optimizer=partial(torch.optim.Adam, lr=RATE, eps=1e-12),
        steps=STEPS,
        peers=PEERS,
        byzantine=BYZANTINE,
        attack=name,
        attack_options={"start": start, **options} if name else None,
        seed=seed,
        tau=tau,  # type: ignore[arg-type]
        heal="auto",
    )
    with torch.no_grad():
        held_out = float(next_letter(model.eval(), torch.stack(windows(600, seed=1))))
    return {
        "loss": held_out,
        "banned": len({ban.peer for ban in run.bans if ban.attacker}),
        "honest_banned": len(run.honest_banned),
        "returns": [list(back) for back in run.returns],
        "radii": run.radii[:: STEPS // 10],
    }


def cases(seeds: int) -> list[dict[str, Any]]:
    """All runs, as arguments of `train`."""
    found = [
        {"attack": attack, "tau": tau, "scale": 1.0, "start": START, "seed": seed}
        for seed, attack, tau in product(range(seeds), ATTACKS, RADII)
    ]
    return found + [
        {"attack": attack, "tau": tau, "scale": scale, "start": 0, "seed": seed}
        for seed, scale, attack, tau in product(range(seeds), SCALES, FIRST, ("auto",))
    ]


def tables(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, list[str], list[list[str]]]]:
    """The losses on held-out text, means over the seeds: (first attacked step, columns, a row per attack and scale).

    A row with fixed radii ends with how far `auto` is above the best of them.
    """
    found: dict[tuple[int, str, float], dict[Any, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        case = row["case"]
        found[case["start"], case["attack"], case["scale"]][case["tau"]].append(row["loss"])
    late, early = [], []
    for (start, attack, scale), losses in found.items():
        means = {tau: sum(values) / len(values) for tau, values in losses.items()}
        fixed = [means[tau] for tau in RADII if tau != "auto" and tau in means]
        if start and fixed:
            above = f"{means['auto'] - min(fixed):.2f}"
            late.append([attack, *(f"{means[tau]:.2f}" if tau in means else "" for tau in RADII), above])
        elif not start:
            early.append([attack, f"{scale:g}", f"{means['auto']:.2f}"])
    return [
        (START, ["attack", *(f"tau {tau}" for tau in RADII), "auto above the best"], late),
        (0, ["attack", "loss times", "tau auto"], early),
    ]


@program("the same command goes on with what is missing")
def main() -> None:
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=output_folder, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    file = args.out / "results.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
    finished = [row["case"] for row in rows]
    for case in track([case for case in cases(args.seeds) if case not in finished], "transformer", unit="runs"):
        rows.append({"case": case, **train(**case)})
        write_file(file, json.dumps(rows, indent=1) + "\n")
    texts = []
    for start, columns, lines in tables(rows):
        texts.append(f"From step {start} of {STEPS}:\n\n{markdown(columns, lines)}\n")
        show(f"from step {start}", columns, lines)
    write_file(args.out / "table.md", "\n".join(texts))


if __name__ == "__main__":
    sys.exit(main())
