"""The experiment runner: data sets, training, evaluation and pictures.

It imports emcaps, never the reverse.
"""
