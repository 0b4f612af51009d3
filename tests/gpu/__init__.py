"""Checks on a bare machine with one GPU: does Cloze work there, and how fast is it.

Here, once:  make gpu-pack                (builds build/gpu: wheels, a small corpus; copy it along with the repository)
There:       make gpu                     (without make: python3 -m tests.gpu --out build/gpu-out; no .venv, no network)
"""
