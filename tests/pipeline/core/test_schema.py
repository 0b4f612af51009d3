import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.schema import parquet_errors
from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract.document import content_hash, document
from cloze.pipeline.text import words

NO_TEXT = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid")


@given(st.text(st.sampled_from("aB é\u00a0´ß½\u3000漢ｶﾞ\n\t\x1c"), max_size=60))
def test_a_documents_words_are_those_of_its_text(text: str):
    made = document([text], doc_id="a", source="s", heldout_fraction=0)
    assert made.text == unicodedata.normalize("NFC", text)
    assert (made.num_words, made.num_chars) == (words.count_words(made.text), len(made.text))


def test_case_forms_and_white_space_make_no_other_content():
    same = {
        content_hash(text)
        for text in ("Die Straße\n\nist ½ leer.", "DIE  STRASSE ist ½\u00a0leer.", "die straße ist 1⁄2 leer.")
    }
    assert len(same) == 1
    assert content_hash("Die Straße ist leer.") not in same


@pytest.mark.parametrize("error", [pa.ArrowInvalid("bad\npage"), OSError("bad\npage"), NO_TEXT])
def test_a_damaged_parquet_file_raises_one_line_with_the_fix(error: Exception):
    with pytest.raises(UserError) as raised, parquet_errors(Location("x")):
        raise error
    problem = str(error).partition("\n")[0]
    assert str(raised.value) == f"x: cannot be read ({problem}); delete it and run again: other files are kept"
    with pytest.raises(UserError) as raised, parquet_errors(Location("x"), "is damaged ({}); write it again"):
        raise error
    assert str(raised.value) == f"x: is damaged ({str(error).partition(chr(10))[0]}); write it again"


def test_a_disk_that_fails_is_no_damaged_parquet_file():
    with pytest.raises(OSError, match="Input/output error"), parquet_errors(Location("x")):
        raise OSError(5, "Input/output error")
