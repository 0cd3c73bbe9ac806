"""What programs share and the library never imports: settings, run folders, tables, figures, progress bars.

Its packages come with the extra btard[experiments], those of swarms with btard[swarm] too.
"""

from btard.extras import need

need("experiments", "rich", "yaml")
