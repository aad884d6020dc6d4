import pytest

from tests.data.pictures import write_folder, write_tfds


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of classes."""
    return write_folder(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A data_dir in which TFDS prepared the dataset "pictures"."""
    return write_tfds(tmp_path_factory.mktemp("tfds"))
