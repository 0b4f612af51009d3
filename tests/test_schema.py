import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from pipeline import words
from pipeline.schema import content_hash, document


@given(st.text(st.sampled_from("aB é\u00a0´ß½\u3000漢ｶﾞ\n\t\x1c"), max_size=60))
def test_a_documents_words_are_those_of_its_text(text: str):
    made = document([text], doc_id="a", source="s", heldout_fraction=0)
    assert made.text == unicodedata.normalize("NFC", text)
    assert (made.num_words, made.num_chars) == (words.count(made.text), len(made.text))


def test_case_forms_and_white_space_make_no_other_content():
    same = {
        content_hash(text)
        for text in ("Die Straße\n\nist ½ leer.", "DIE  STRASSE ist ½\u00a0leer.", "die straße ist 1⁄2 leer.")
    }
    assert len(same) == 1
    assert content_hash("Die Straße ist leer.") not in same
