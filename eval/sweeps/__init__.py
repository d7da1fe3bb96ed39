"""The paper's figures and tables on any checkpoint: `python -m eval.sweeps KIND`."""
