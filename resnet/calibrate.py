"""`python -m resnet.calibrate CONFIG.yaml --out DIR [--steps N] [--samples N] [--dotted.key value ...]`.

Measures how far apart honest peers' gradients are if they compute differently, while CONFIG's network trains a little;
derives tolerances for mixed hardware, and how often they would make an honest peer accuse another one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from btard.boundary import Parser, output_folder, positive, program
from btard.harness.settings import parse_command_line
from btard.harness.typed_yaml import ConfigError
from resnet.config import Config

PROGRAM = "python -m resnet.calibrate"


@program("the same command begins again")
def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, or 2 after one line about what is wrong."""
    parser = Parser(prog=PROGRAM, description=__doc__)
    parser.add_argument(
        "config", metavar="CONFIG.yaml", help="its steps and validators say what a rate means for a run"
    )
    parser.add_argument(
        "--out", type=output_folder, required=True, metavar="DIR", help="where the JSON file and the figure go"
    )
    parser.add_argument("--steps", type=int, default=100, help="training steps while measuring (default 100)")
    parser.add_argument("--samples", type=positive, default=40, help="public batches at each point (default 40)")
    parser.add_argument("--points", type=positive, default=5, help="steps at which is measured (default 5)")
    chosen, overrides = parser.parse_known_args(argv)
    if chosen.steps < 0:
        raise ConfigError(f"--steps must be at least 0, got {chosen.steps}")
    config, out = parse_command_line(Config, [chosen.config, "--out", str(chosen.out), *overrides], PROGRAM)
    from btard.harness.figures import save
    from btard.harness.tables import console
    from resnet.calibration import draw, measure, mixes, report, tables
    from resnet.data import load_dataset
    from resnet.numerics import numerics_here
    from resnet.training import check_batch

    data = load_dataset(config.data.name, config.data.path, label=config.data.label)
    check_batch(config, data)
    numerics, missing = numerics_here()
    pairs = measure(config, data, numerics, steps=chosen.steps, samples=chosen.samples, points=chosen.points)
    found = mixes(pairs, max(1, config.steps * config.validators), config.protocol.rounding)
    out.mkdir(parents=True, exist_ok=True)
    (out / "calibration.json").write_text(json.dumps(report(config, pairs, found, missing)) + "\n")
    save(draw(pairs, found), out / "calibration.png")
    lines = "\n\n".join(mix.yaml for mix in found if mix.proposal is not None) + "\n"
    (out / "tolerances.txt").write_text(lines)
    for item in tables(pairs, found, missing):
        console().print(item)
    print(f"\nfor the configuration, one of:\n\n{lines}")
    print(f"files: {out}/calibration.json, calibration.png, calibration.svg, tolerances.txt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
