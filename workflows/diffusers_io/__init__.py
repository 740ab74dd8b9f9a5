"""Pipelines of diffusers are read by `importing` and written by `exporting`."""
