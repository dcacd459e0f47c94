"""The text that every machine with Python has."""

from __future__ import annotations

from leveret.data.standard_library import LEFT_OUT, standard_library_documents


def test_it_is_megabytes_of_prose_and_code_in_a_fixed_order() -> None:
    documents = list(standard_library_documents())
    sources = [document.source for document in documents]
    assert sources == [document.source for document in standard_library_documents()]
    assert len(set(sources)) == len(sources) > 200
    assert sum(len(document.text) for document in documents) > 5_000_000
    assert "json/__init__.py" in sources and "help('while')" in sources
    assert all(document.text.strip() for document in documents)


def test_tests_tables_and_installed_packages_are_left_out() -> None:
    for document in standard_library_documents():
        assert not LEFT_OUT & set(document.source.split("/")[:-1]), document.source
        assert "pytest" not in document.source
