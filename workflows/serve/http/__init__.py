"""The HTTP front in OpenAI's shape: `ingress` holds the routes, `guard` limits and keys, `dispatch` finds a replica."""
