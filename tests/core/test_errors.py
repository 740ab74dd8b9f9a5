"""The error tree: small, documented, built-in kinds, and able to travel between processes."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from diffusion_core import errors
from diffusion_core.errors import NonFinite, RaverseError

CORE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]
LEAVES = [kind for kind in CORE if kind is not RaverseError]


def test_every_error_is_one_of_the_tree():
    assert len(LEAVES) >= 10
    assert all(issubclass(kind, RaverseError) and issubclass(kind, ValueError) for kind in LEAVES)


@pytest.mark.parametrize("kind", CORE)
def test_the_tree_in_the_docstring_names_it(kind):
    drawn = {line.strip(" ├└─│").split()[0] for line in (errors.__doc__ or "").splitlines() if line.strip()}
    assert kind.__name__ in drawn and kind.__doc__


FIELDS = {NonFinite: {"rows": (2, 3)}}
"""What the constructors take after the message."""


def by_position(kind: type[RaverseError]) -> RaverseError:
    return kind("the message", *FIELDS.get(kind, {}).values())


def by_keyword(kind: type[RaverseError]) -> RaverseError:
    return kind("the message", **FIELDS.get(kind, {}))


@pytest.mark.parametrize("kind", CORE)
def test_no_field_is_forgotten_here(kind):
    own = [
        name
        for name in inspect.signature(kind.__init__).parameters
        if name not in {"self", "args", "kwargs", "message"}
    ]
    assert own == list(FIELDS.get(kind, {}))


@pytest.mark.parametrize("make", [by_position, by_keyword])
@pytest.mark.parametrize("kind", CORE)
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_survives_pickling(kind, make, protocol):
    """Ray carries errors between processes; one with fields of its own does not unpickle by itself."""
    error = make(kind)
    for twin in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):
        assert type(twin) is kind
        assert (str(twin), twin.args, vars(twin)) == (str(error), error.args, vars(error))


def test_a_plain_error_with_fields_does_not_survive():
    """Negative control: what the test above would find."""
    error = Careless("message", rows=(1,))
    with pytest.raises(TypeError, match="rows"):
        pickle.loads(pickle.dumps(error))


class Careless(ValueError):
    def __init__(self, message: str, *, rows: tuple[int, ...]) -> None:
        super().__init__(message)
        self.rows = rows


def test_non_finite_names_its_rows():
    error = pickle.loads(pickle.dumps(NonFinite("found NaN", rows=(3, 5))))
    assert error.rows == (3, 5) and str(error) == "found NaN"
    assert NonFinite("found NaN").rows == ()
