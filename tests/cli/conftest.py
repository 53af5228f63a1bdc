"""Checkpoints that several files give to commands."""

import pytest

from tests.cli.command import save_ours, save_published


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of ours."""
    return save_ours(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file of the published format."""
    return save_published(tmp_path_factory.mktemp("published") / "untrained.pt")
