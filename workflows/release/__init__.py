"""Which version is served: `gate` decides, `comparison` measures both versions, `promote` moves the alias."""
