"""The HTTP front: `ingress` has the routes, `guard` checks keys and sizes, `router` finds the model of a request."""
