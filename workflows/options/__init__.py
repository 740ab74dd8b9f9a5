"""The tables of what users choose from: guidance, samplers, noise schedules, networks, sources of data.

Configuration, command line, HTTP schema, page, evaluation, sweep and pyfunc are made from these tables. Importing them
loads no torch.
"""
