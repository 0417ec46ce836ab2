"""The nearest known name, for messages about unknown ones."""

from springroll.errors import nearest, suggestion


def test_the_nearest_name_is_suggested():
    assert suggestion("dmo", ["demo", "bigram"]) == "; did you mean demo?"
    assert suggestion("dmo", ["demo", "bigram"], quoted=True) == "; did you mean 'demo'?"
    assert suggestion("xyz", ["demo", "bigram"]) == ""
    assert suggestion("xyz", ["demo"], otherwise="there is demo") == "; there is demo"


def test_how_near_it_must_be_is_a_choice():
    assert nearest("xyz", ["demo", "y"]) is None
    assert nearest("xyz", ["demo", "y"], cutoff=0.0) == "y"
