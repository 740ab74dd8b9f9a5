"""A model in memory: `model` loads a package, `guidance` and samplers go by name, `codec` maps pictures to data."""
