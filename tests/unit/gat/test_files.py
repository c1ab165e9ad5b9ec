"""A file is there whole or not at all, whatever happens while it is written."""

import json

import pytest

from gat.files import write_json, write_text, written_whole


def test_what_is_written_is_there_when_the_block_ends(tmp_path):
    path = tmp_path / "table.json"
    with written_whole(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def fail_halfway(path, error):
    with written_whole(path) as temporary:
        temporary.write_text("ha")
        raise error


@pytest.mark.parametrize("error", [OSError("no space left on device"), KeyboardInterrupt()])
def test_what_was_there_before_stays_if_writing_fails(tmp_path, error):
    path = tmp_path / "state.pt"
    path.write_text("old")
    with pytest.raises(type(error)):
        fail_halfway(path, error)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_half_a_file_of_a_killed_process_is_in_nobodys_way(tmp_path):
    path = tmp_path / "page.html"
    path.with_name("page.html.tmp").write_text("half a pa")
    write_text(path, "page")
    assert path.read_text() == "page"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_read_by_people_too(tmp_path):
    write_json(tmp_path / "rows.json", {"rows": [1, 2]})
    text = (tmp_path / "rows.json").read_text()
    assert json.loads(text) == {"rows": [1, 2]}
    assert text.count("\n") > 3 and text.endswith("}\n")


def test_what_is_no_json_leaves_what_was_there(tmp_path):
    write_json(tmp_path / "rows.json", [1])
    with pytest.raises(TypeError):
        write_json(tmp_path / "rows.json", [object()])
    assert json.loads((tmp_path / "rows.json").read_text()) == [1]
