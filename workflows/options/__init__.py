"""What users choose from, each in one table: kinds of guidance with their settings, samplers, spacings.

Configuration, command line, HTTP schema, page, evaluation, sweep and pyfunc are made from these tables. Importing them
loads no torch.
"""
