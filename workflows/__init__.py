"""Trains, evaluates, registers and serves diffusion models on Ray. `README.md` beside this file is the map."""

__version__ = "0.1.0"
