"""The configuration of a job: `schema` declares it, `load` reads files and `--set`, `presets` are the built-in ones."""
