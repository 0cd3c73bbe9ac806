"""The golden record: the results of this code's runs, to the byte, so that a change of structure shows.

`python -m scripts.golden compare COMMIT` runs that commit's tree and this one side by side. Each tree records with its
own interfaces (`runs.py`); what they write down is the same: JSON objects of a run's name and its fields.
"""
