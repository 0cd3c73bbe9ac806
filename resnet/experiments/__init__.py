"""Many runs as one experiment: the grid that a file describes, its warm-ups, the workers, and the results.

`resnet.sweep` and `resnet.report` are the commands; everything here works on run folders and knows no protocol.
"""
