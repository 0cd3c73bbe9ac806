"""The swarm on AWS: what it would cost, starting it, watching it, and removing all of it again.

Runs on the caller's machine, which needs boto3 but neither torch nor hivemind: nothing here may import them, nor
`resnet`. What runs on the started machines is in `machine/`.
"""

from btard.extras import need

need("experiments", "boto3", "rich", "yaml")
