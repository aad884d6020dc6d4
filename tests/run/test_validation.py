import pytest

from distill_jax.run.validation import changes
from distill_jax.runtime.trees import flat


@pytest.mark.parametrize("value", [False, 0, "", 0.5])
def test_writing_out_the_default_of_an_option_is_a_change(value):
    """The default may be True or 1: a config that leaves the option out does not say which."""
    old, new = {"name": "guided"}, {"name": "guided", "x": value}
    assert changes(flat(old), flat(new)) == [f"config.x: None there, {value} now"]
