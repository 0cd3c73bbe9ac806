"""ResNet-18 on small images, trained by simulated peers: the model, its data, per-peer gradients and the experiment.

It may import `btard`; neither `btard` nor `albert` may import anything from here.
"""

import os

# Before torch is imported: on few cores, threads that wait busily for work take the cores from those that have some. A
# short spin (well under a millisecond) spares the many small operations of a step the cost of waking a thread.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
