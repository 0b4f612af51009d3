import codecs

import pytest
from pydantic import TypeAdapter, ValidationError

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.text.character_encodings import Encoding, decode
from tests.paths import DATA

FRENCH = "Où est passé l’été ? Il a été à la forêt, près du chêne, là où naît la rivière où l’on pêchait. " * 3
GERMAN = "Als Gregor Samsa eines Morgens aus unruhigen Träumen erwachte, fand er sich größer, schöner, müder. "
FINNISH = "Hän käveli hiljaa metsän läpi ja näki vähän ennen yötä pienen mökin järven rannalla. "
PORTUGUESE = "As nações e os corações não são senão ilusões; não há razão, à noite, para três canções tão más. "
OTHERS = {
    "iso-8859-2": [
        "Zażółć gęślą jaźń, rzekła ślimakowi żaba, gdyż było już późno. ",
        "Árvíztűrő tükörfúrógép volt az erdőben, és a hős őrült nőként nevetett. ",
        "Příliš žluťoučký kůň úpěl ďábelské ódy na tmavé střeše. ",
    ],
    "cp1250": ["Zażółć gęślą jaźń, rzekła ślimakowi żaba, gdyż było już późno. "],
    "cp1251": ["В начале было слово, and the rest of this long line is English, so that only a few letters are not. "],
    "cp1254": ["Işığı söndürdü ve yavaşça dışarı çıktı; gökyüzü çoğu zaman böyleydi. "],
    "cp850": ["Als Gregor Samsa aus unruhigen Träumen erwachte, größer, schöner, müder. "],
    "mac-roman": [FRENCH],
    "cp437": [FRENCH.replace("’", "'")],
}


@pytest.mark.parametrize("text", [FRENCH, GERMAN, FINNISH, PORTUGUESE])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_text_with_a_declared_or_certain_encoding_is_decoded(text: str, encoding: str):
    assert decode(text.encode(encoding), "x") == text


@pytest.mark.parametrize(("encoding", "text"), [(encoding, text) for encoding in OTHERS for text in OTHERS[encoding]])
def test_text_in_an_uncertain_encoding_is_refused_unless_the_encoding_is_set(encoding: str, text: str):
    data = (text * 3).encode(encoding)
    with pytest.raises(UserError, match=r"shelf/x\.txt: is not UTF-8 \(byte 0x.. at \d+\).*set the source's encoding"):
        decode(data, "shelf/x.txt")
    assert decode(data, "x", encoding) == text * 3


@pytest.mark.parametrize(
    ("said", "encoding"),
    [
        ("ISO-8859-1", "cp1252"),
        ("ISO Latin-1", "cp1252"),
        ("ISO-8859-2", "iso-8859-2"),
        ("Windows Code Page 1251", "cp1251"),
        ("CP-1250", "cp1250"),
        ("Codepage-1252", "cp1252"),
        ("Big5", "big5"),
    ],
)
def test_a_declared_encoding_is_honoured(said: str, encoding: str):
    word = {"cp1251": "слово", "big5": "中文"}.get(encoding, "café")
    text = f"Title: One\n\nCharacter set encoding: {said}\n\n{word}"
    assert decode(text.replace("\n", "\r\n").encode(encoding), "x") == text


def test_utf_8_that_declares_another_encoding_is_utf_8():
    assert decode("Character set encoding: ISO-8859-1\n\ncafé".encode(), "x").endswith("café")


@pytest.mark.parametrize(
    ("data", "encoding", "said"),
    [
        (b"caf\xe9 au lait", "", "is not UTF-8 (byte 0xe9 at 3)"),
        (b"Character set encoding: base64\n\xe9", "", "is not UTF-8 (byte 0xe9 at 31)"),
        (b"caf\xe9", "utf-8", "is not utf-8 (byte 0xe9 at 3)"),
        (b"caf\xe9", "ascii", "is not ascii (byte 0xe9 at 3)"),
        (codecs.BOM_UTF16_LE + b"a\x00b", "", "is not utf-16"),
        (b"Character set encoding: ISO-8859-1\n\n\x81", "", "declares cp1252 and is not (byte 0x81 at 36)"),
        ("No mark stands before this text, sadly.".encode("utf-16-le"), "", "set encoding: utf-16-le"),
        ("No mark stands before this text, sadly.".encode("utf-16-be"), "", "set encoding: utf-16-be"),
        (b"a\x00b", "", "zero bytes"),
        (b"%PDF-1.4", "", "a PDF"),
        (b"PK\x03\x04", "", "EPUB"),
    ],
)
def test_errors_name_the_problem(data: bytes, encoding: str, said: str):
    with pytest.raises(UserError, match=r"^shelf/x\.txt: ") as error:
        decode(data, "shelf/x.txt", encoding)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["utf8", "cp1252", "Shift_JIS", ""])
def test_known_encodings_can_be_set(name: str):
    assert TypeAdapter(Encoding).validate_python(name) == name


@pytest.mark.parametrize("name", ["klingon", "hex", "zlib", "punycode", "undefined", "iso2022_kr"])
def test_an_unknown_encoding_cannot_be_set(name: str):
    with pytest.raises(ValidationError, match="is not an encoding"):
        TypeAdapter(Encoding).validate_python(name)


def test_western_articles_come_back_from_windows_1252_or_are_refused():
    """Dutch and English as people wrote them, with what a few letters beyond ASCII leave certain."""
    seen = 0
    for path in sorted((DATA / "gold").glob("*.txt")):
        text = path.read_text(encoding="utf-8")
        try:
            data = text.encode("cp1252")
        except UnicodeEncodeError:
            continue
        try:
            assert decode(data, "x") == text
            seen += 1
        except UserError:
            continue
    assert seen
