"""ResNet-18 on small images, trained by simulated peers: the model, its data, per-peer gradients and the experiment.

It may import `btard`; neither `btard` nor `albert` may import anything from here.
"""

import os

from btard.extras import need

need("experiments", "PIL", "rich", "sklearn", "torchvision", "yaml")

# Before torch is imported: on few cores, threads that wait busily for work take the cores from those that have some.
# Not even a short spin (GOMP_SPINCOUNT): it gains a tenth on a quiet machine and makes small runs beside another busy
# program several times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
