"""Paths on the command line reach Hydra unchanged, whatever characters they contain."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from dlunet.overrides import override, quote_literals

ODD = ["in/Größe", "a=b", "copy (1)", "a[1]", "it's", 'say "x"', "a;b", "a,b", "a\\b", "a\\", "a\\'b", "'", "{x", "[x",
       "$x", "a: b", "100", "true", "1e5", " lead", "a#b", "日本", "é", "@x", "!", "-x", "%20"]  # fmt: skip


def values(argument, sweep=False):
    """Hydra's reading of an argument: its value, or the values of a sweep."""
    (quoted,) = quote_literals([argument], sweep)
    parsed = OverridesParser.create().parse_override(quoted)
    return list(parsed.sweep_string_iterator()) if parsed.is_sweep_override() else parsed.value()


@pytest.mark.parametrize("path", ODD)
@pytest.mark.parametrize("key", ["input", "+data.root", "++output", "floor", "batch"])
def test_a_path_is_taken_as_it_stands(key, path):
    assert values(f"{key}={path}") == path
    assert OverridesParser.create().parse_override(override("output", path)).value() == path


@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1))
def test_any_text_is_taken_as_it_stands(path):
    assert OverridesParser.create().parse_override(override("output", path)).value() == path


@pytest.mark.parametrize("path", [path for path in ODD if not {",", '"', "'"} & set(path) and path.strip() == path])
def test_paths_in_lists(path):
    assert values(f"input=[{path}, other, {path}]") == [path, "other", path]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ('input="a=b"', "a=b"),
        ("input='it\\'s'", "it's"),
        ("input=['a,b',\"c,d\",e]", ["a,b", "c,d", "e"]),
        ("data.names=[left kidney,Drüse]", ["left kidney", "Drüse"]),
        ("labels=null", None),
        ("seed=1", 1),
        ("data.names=[]", []),
    ],
)
def test_quotes_lists_and_other_settings(argument, expected):
    assert values(argument) == expected


def test_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/x")
    assert values("output=~/mine") == "/home/x/mine"
    assert values("input=[~/a,b~]") == ["/home/x/a", "b~"]
    assert values("input=a~b") == "a~b"


def test_what_looks_like_a_list_or_quoted_and_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("[a,b]", '"a"'):
        (tmp_path / name).mkdir()
        assert values(f"input={name}") == name


def test_a_sweep_over_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert values("data.root=a b,c;d", sweep=True) == ["'a b'", "'c;d'"]
    (tmp_path / "e,f").mkdir()
    assert values("data.root=e,f", sweep=True) == "e,f"


def test_flags_and_other_words_stay():
    words = ["-m", "--cfg", "job", "scale=tiny", "~data", "x", "experiment=a,b"]
    assert quote_literals(words, sweep=True) == words
