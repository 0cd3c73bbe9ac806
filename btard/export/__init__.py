"""The model that a run has trained: named parameters as safetensors, with a card that says who vouches for them.

Reads run folders and writes new ones; trains nothing and knows no model. No other package of the library imports it.
"""
