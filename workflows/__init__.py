"""Trains, evaluates, registers and serves diffusion models on Ray. `README.md` beside this file is the map."""
