"""ResNet-18 on small images, trained by simulated peers: the model, its data, per-peer gradients and the experiment.

It may import `btard`; neither `btard` nor `albert` may import anything from here.
"""
