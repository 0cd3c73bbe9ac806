"""`python -m albert.workspace PROJECT [--entity TEAM]`: charts for the swarms in a project of Weights & Biases.

Saves a workspace whose first chart is the loss with the bans; then come peers, bans by kind, the phases of a step,
speed and network. It shows the runs that `--wandb PROJECT` has put into the project, and those that come later.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from btard.boundary import Parser, program
from btard.harness.typed_yaml import ConfigError
from btard.swarm.tags import SECTIONS, Chart
from btard.swarm.tracking import explain, log_in

VERSION = "wandb-workspaces>=0.4.13,<0.5"
COMMAND = "python -m albert.workspace"
X_AXIS = "step"


def make_workspace(project: str, entity: str, name: str) -> Any:
    """The workspace as an object of wandb-workspaces, not yet saved. ConfigError if that is not installed."""
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError:
        raise ConfigError(f"{COMMAND}: wandb-workspaces is not installed; pip install '{VERSION}'") from None

    def panel(chart: Chart) -> Any:
        if chart.prefix is not None:
            return wr.LinePlot(title=chart.title, x=X_AXIS, metric_regex=f"^{chart.prefix}")
        return wr.LinePlot(title=chart.title, x=X_AXIS, y=list(chart.tags))

    return ws.Workspace(
        name=name,
        entity=entity,
        project=project,
        sections=[
            ws.Section(
                name=title,
                panels=[panel(chart) for chart in charts],
                is_open=True,
                layout_settings=ws.SectionLayoutSettings(columns=len(charts), rows=1),
                panel_settings=ws.SectionPanelSettings(x_axis=X_AXIS),
            )
            for title, charts in SECTIONS.items()
        ],
        settings=ws.WorkspaceSettings(x_axis=X_AXIS),
    )


def save(project: str, entity: str | None, name: str) -> str:
    """Save the workspace, and return its address. ConfigError if that cannot be."""
    wandb = log_in(COMMAND)
    if wandb.setup().settings.mode not in ("online", "shared"):
        raise ConfigError(
            f"{COMMAND}: a workspace is kept by the server of Weights & Biases, and WANDB_MODE says to send nothing; "
            "unset it, or run this where there is a network"
        )
    try:
        entity = entity or wandb.Api().default_entity
        if not entity:
            raise ConfigError(f"{COMMAND}: the account has no default entity; name a user or team by --entity")
        workspace = make_workspace(project, entity, name)
        workspace.save()
    except ConfigError:
        raise
    except Exception as error:  # whatever client and server say: it has no common class
        raise ConfigError(
            f"{COMMAND}: {project} of {entity or 'the default entity'} at {wandb.setup().settings.base_url} did not "
            f"take the workspace ({explain(error)}); expected a project that you may change: check its name, --entity, "
            "key (`wandb login`) and network"
        ) from None
    return str(workspace.url)


@program("the same command begins again")
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog=COMMAND, description=__doc__)
    parser.add_argument("project", metavar="PROJECT")
    parser.add_argument("--entity", metavar="TEAM", help="user or team; by default that of the key")
    parser.add_argument("--name", default="BTARD swarm", help="what the workspace is called (%(default)s)")
    arguments = parser.parse_args(argv)
    address = save(arguments.project, arguments.entity, arguments.name)
    print(f"workspace: {address}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
