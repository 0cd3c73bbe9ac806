"""ALBERT pre-trained by a swarm: data, model, peers that find each other through hivemind, attackers among them.

It may import `btard`; neither `btard` nor `resnet` may import anything from here.
"""

import btard as btard  # first: a program that is interrupted while it imports ends with one line
