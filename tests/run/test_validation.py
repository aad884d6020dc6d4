import pytest

from distill_jax.run.validation import changes, flat


@pytest.mark.parametrize("value", [False, 0, "", 0.5])
def test_an_option_that_was_left_at_its_default_and_is_now_written_out_is_a_change(value):
    """Its default may be True or 1: what a config leaves out does not say which."""
    old, new = {"name": "guided"}, {"name": "guided", "x": value}
    assert changes(flat(old), flat(new)) == [f"config.x: None there, {value} now"]
