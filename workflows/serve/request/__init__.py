"""A request from HTTP body to settings: `schema` is the body, `resolve` fills in defaults, `messages` carry it on."""
