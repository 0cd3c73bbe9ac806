"""ResNet-18 on small images, trained by simulated peers: the model, its data, per-peer gradients and the experiment.

It may import `btard`; neither `btard` nor `albert` may import anything from here.
"""

import os

# Before torch is imported: on few cores, threads that wait busily for work take the cores from those that have some.
# Even a spin of 20,000 turns, a tenth faster on a quiet machine, halved the speed of small runs beside another program.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
