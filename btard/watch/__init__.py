"""A page to watch a run: what each peer did in each step, who was removed and why, and where time and bytes went.

It reads the files of a run's folder and takes no part in the run. No other package of ours may import it.
"""

from btard.extras import need

need("watch", "vl_convert", "rich", "yaml")
