"""What the experiments around the library share: typed settings, run folders, progress bars.

The library itself imports nothing of it. It needs what requirements.txt brings and `pip install btard` does not.
"""
