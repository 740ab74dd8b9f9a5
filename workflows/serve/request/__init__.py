"""A request and its answer: `schema` is the HTTP body, `resolve` fills in defaults, `messages` travel on."""
