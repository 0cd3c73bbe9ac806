"""What programs share: settings, run folders, tables, figures, progress bars.

The library imports nothing of it but for `btard.swarm`, `btard.export` and `btard.watch`. Its packages come with the
extra btard[experiments], those of swarms with btard[swarm] too.
"""

from btard.extras import need

need("experiments", "rich", "yaml")
