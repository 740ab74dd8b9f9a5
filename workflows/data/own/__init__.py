"""A user's own captioned images: from records to the parts of a data artifact.

`records` says what can be used, `pieces` imports a piece of the input, `counts` and `rejected` say what was found,
`parts` writes the two splits, and `importing` leads from one to the next.
"""
