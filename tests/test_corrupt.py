"""Test of a run in a workdir that has one damaged file; benchmarks/corrupt_workdir.py has all."""

from benchmarks import corrupt_workdir as corrupt


def test_a_damaged_file_is_noticed_set_aside_or_harmless_whatever_it_is(tmp_path):
    """Every second file outside checkpoints, which storage/ tests, each with another damage."""
    corrupt.write_templates(tmp_path)
    expected = corrupt.results(tmp_path / corrupt.COMPLETE)
    files = [
        (name, file)
        for name, file in dict.fromkeys(case[:2] for case in corrupt.cases(tmp_path))
        if not {"states", "params"} & {*file.parts}
    ][::2]
    assert len(files) > 12
    damages = list(corrupt.DAMAGES)
    for number, file in enumerate(files):
        case = (*file, damages[number % len(damages)])
        happened, text = corrupt.outcome(tmp_path, case, expected)
        assert happened != corrupt.WRONG, (case, text)
