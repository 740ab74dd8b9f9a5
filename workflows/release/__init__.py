"""A release gives a model a version and the alias that is served: `register`, `gate`, `promote`, `card`, `pyfunc`."""
