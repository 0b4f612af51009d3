import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze.pipeline.extract.gutenberg import Chapter, LineSpan, read_book, split_by_sentences
from cloze.pipeline.text.sentences import split_sentences

PARAGRAPH = (
    "It was a bright cold day, and the clocks were striking\nthirteen; she looked up, as one does, and said that it\n"
    "would not do at all."
)
JOINED = PARAGRAPH.replace("\n", " ")


def book(*blocks: str) -> str:
    return "\n\n".join(blocks)


def chapter_of(*paragraphs: str) -> Chapter:
    return Chapter("", list(paragraphs), [LineSpan(2 * n, 2 * n + 1) for n in range(len(paragraphs))])


HEADER = (
    "The Project Gutenberg EBook of A Tale, by Jane Doe\n\nThis eBook is for the use of anyone anywhere at no cost and "
    "with\nalmost no restrictions whatsoever.\n\nTitle: A Tale\n       Of Two Things\n\nAuthor: Jane Doe\n\n"
    "Language: English\n\n"
)
STARTS = [
    "*** START OF THIS PROJECT GUTENBERG EBOOK A TALE ***",
    "***START OF THE PROJECT GUTENBERG EBOOK A TALE***",
    "*** START OF THE PROJECT GUTENBERG EBOOK A TALE\nOF TWO THINGS ***",
    "*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*",
    "*END THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.07/27/01*END*",
]
ENDS = [
    "*** END OF THIS PROJECT GUTENBERG EBOOK A TALE ***",
    "***END OF THE PROJECT GUTENBERG EBOOK A TALE***",
    "End of the Project Gutenberg EBook of A Tale, by Jane Doe",
    "End of Project Gutenberg's A Tale, by Jane Doe",
    "End of The Project Gutenberg Etext of A Tale",
    "End Project Gutenberg's A Tale",
    "*** START: FULL LICENSE ***",
]


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("end", ENDS)
def test_header_and_footer_go_in_every_wording(start: str, end: str):
    text = book(HEADER + start, "Produced by Judith Boss and David Widger", "\n\nCHAPTER I", PARAGRAPH, "THE END", end)
    found = read_book(text + "\n\n\nSection 1. General Terms of Use: the licence goes on.\n")
    assert (found.title, found.author, found.language) == ("A Tale Of Two Things", "Jane Doe", "English")
    assert [chapter[:2] for chapter in found.chapters] == [("CHAPTER I", [JOINED])]


def test_a_header_without_marker_is_dropped_too():
    found = read_book(book(HEADER + "Produced by Nobody", "\n\n\nCHAPTER I", PARAGRAPH))
    assert [chapter[:2] for chapter in found.chapters] == [("CHAPTER I", [JOINED])]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("CHAPTER I", "CHAPTER II"),
        ("CHAPTER I.\nThe Beginning", "CHAPTER II.\nThe End"),
        ("Chapter 1", "Chapter 2"),
        ("Chapter One", "Chapter Twenty-Two"),
        ("CHAPTER THE FIRST", "CHAPTER THE SECOND"),
        ("STAVE ONE", "STAVE TWO"),
        ("LETTER 1st", "LETTER 2nd"),
        ("BOOK I", "PART SECOND"),
        ("ADVENTURE I. A SCANDAL", "ADVENTURE II. THE LEAGUE"),
        ("PREFACE", "EPILOGUE"),
        ("\n\nTHE GOLD-BUG", "\n\nTHE BLACK CAT"),
        ("\n\n\nThe Nightingale and the Rose", "\n\n\nThe Selfish Giant"),
        ("_Chapter I_", "_Chapter II_"),
    ],
)
def test_headings_begin_chapters(first: str, second: str):
    prose = book(*[PARAGRAPH] * 4)
    found = read_book(book(first, prose, second, prose)).chapters
    assert [chapter.title.split(".")[0] for chapter in found] == [
        h.strip().strip("_").split("\n")[0].split(".")[0] for h in (first, second)
    ]
    assert [chapter.paragraphs for chapter in found] == [[JOINED] * 4] * 2


def test_numerals_alone_are_chapters_over_many_words_and_stanzas_over_few():
    long = book(*[PARAGRAPH] * 8)
    assert [c.title for c in read_book(book("I", long, "II.", long, "III", long)).chapters] == ["I", "II", "III"]
    (poem,) = read_book(book("THE RIME", "I", PARAGRAPH, "II", PARAGRAPH, "III", PARAGRAPH)).chapters
    assert poem.paragraphs == [JOINED] * 3


def test_the_books_own_table_of_contents_names_its_chapters():
    contents = "CONTENTS\n\n  I. The Yellow Face . . . 12\n II. The Final Problem . . . 34\nIII. Silver Blaze . . . 56"
    text = book("A TALE", contents, "\nI. The Yellow Face", PARAGRAPH, "II. The Final Problem", PARAGRAPH)
    found = read_book(book(text, "SILVER BLAZE", PARAGRAPH)).chapters
    assert [chapter.title for chapter in found] == ["I. The Yellow Face", "II. The Final Problem", "SILVER BLAZE"]
    assert all(chapter.paragraphs == [JOINED] for chapter in found)


def test_a_table_of_contents_is_no_chapter():
    entries = "\n".join(f"CHAPTER {n}  The {n} Thing" for n in ("I", "II", "III"))
    chapters = [part for n in ("I", "II", "III") for part in (f"\n\nCHAPTER {n}\n\nThe {n} Thing", PARAGRAPH)]
    found = read_book(book("A TALE", "CONTENTS", entries, *chapters)).chapters
    assert [chapter.title for chapter in found] == [f"CHAPTER {n}. The {n} Thing" for n in ("I", "II", "III")]


def test_speakers_in_capitals_are_no_chapters():
    lines = [part for _ in range(9) for part in ("\n\nDARCY", "You are too hasty, madam, I made no answer yet.")]
    (act,) = read_book(book("ACT I", "A room; the sisters enter, laughing at something.", *lines)).chapters
    assert len(act.paragraphs) == 19


def test_placeholders_notes_and_marks_go():
    text = book(
        "CHAPTER I",
        "[Illustration: A house\nby the sea]",
        "[Transcriber's Note: spelling kept.]",
        "She said _very_ loudly, [Pg 12] and [1] went {34}\nhome--he had _not_ come; a well-\nknown snake_case thing.",
        "* * * * *",
        "[Footnote 1: Nobody knows.]",
        "Transcriber's Note",
        "The following was corrected.",
    )
    (chapter,) = read_book(text).chapters
    assert chapter.paragraphs == [
        "She said very loudly, and went home--he had not come; a well-known snake_case thing."
    ]


@pytest.mark.parametrize(
    ("block", "kept"),
    [
        (
            "[Sidenote: Death of the king.] In this year he died at Winchester.[12]",
            "In this year he died at Winchester.",
        ),
        ("[Illustration: The [old] house] She lived here.[A]", "She lived here."),
        ("[Illustration] [Sidenote: The house\n[a]] She lived\nhere [she said].", "She lived here [she said]."),
        ("[Footnote 1: See p. 3.] [Footnote 2: And [p. 4].]", None),
        ("[Illustration: The [old house] She lived here.", "She lived here."),
        ("[Illustration: A house] * 12", None),
        ("[Illustration: A house", None),
    ],
)
def test_prose_after_a_side_note_or_an_illustration_stays(block: str, kept: str | None):
    (chapter,) = read_book(book("CHAPTER I", PARAGRAPH, block, PARAGRAPH)).chapters
    assert chapter.paragraphs == [JOINED, *([kept] if kept else []), JOINED]


def test_letters_of_an_editor_stay_and_those_of_notes_go():
    text = "[T]he king[A] said that [i]t was the met[t]le of [B] his men.[c]\n[D]All (see [E]) agreed."
    (chapter,) = read_book(book("CHAPTER I", PARAGRAPH, text)).chapters
    assert chapter.paragraphs[1] == "[T]he king said that [i]t was the met[t]le of his men. All (see ) agreed."


def test_a_book_without_headings_is_one_chapter_titled_by_its_first_lines():
    found = read_book(book("THE TAILOR\nOF SOMEWHERE", "By BEATRIX PETTER", PARAGRAPH, PARAGRAPH))
    assert (found.title, found.author) == ("THE TAILOR OF SOMEWHERE", "BEATRIX PETTER")
    assert [chapter.paragraphs for chapter in found.chapters] == [[JOINED, JOINED]]


def test_a_file_without_prose_has_no_chapters():
    assert read_book("").chapters == []
    assert read_book("CONTENTS\n\nI. One\nII. Two").chapters == []


def test_a_book_of_a_script_without_spaces_has_prose():
    (chapter,) = read_book(book("第一章", "天气很冷，钟敲了十三下。", "她抬起头来，说不行。")).chapters
    assert chapter.paragraphs[-1] == "她抬起头来，说不行。"


@given(st.lists(st.lists(st.integers(1, 9), max_size=4), max_size=4), st.integers(1, 7))
def test_a_book_is_split_after_a_number_of_sentences_within_its_paragraphs(sizes: list[list[int]], every: int):
    chapters = [chapter_of(*(" ".join(f"Sentence {n}." for n in range(size)) for size in row)) for row in sizes]
    paragraphs = [paragraph for chapter in chapters for paragraph in chapter.paragraphs]
    pieces = split_by_sentences(chapters, every)
    counts = [sum(len(split_sentences(paragraph)) for paragraph in piece.paragraphs) for piece in pieces]
    assert counts[:-1] == [every] * (len(counts) - 1) and all(0 < count <= every for count in counts)
    found = [sentence for piece in pieces for paragraph in piece.paragraphs for sentence in split_sentences(paragraph)]
    assert found == [sentence for paragraph in paragraphs for sentence in split_sentences(paragraph)]
    assert all(any(part in whole for whole in paragraphs) for piece in pieces for part in piece.paragraphs)
    assert sum(len(piece.paragraphs) for piece in pieces) < len(paragraphs) + len(pieces) + 1


def test_split_sentences_of_a_script_without_spaces_stay_together():
    (first, second) = split_by_sentences([chapter_of("一。二。三。")], 2)
    assert (first.paragraphs, second.paragraphs) == (["一。二。"], ["三。"])


@pytest.mark.parametrize("run", ["\n", "*\n", ".", "[Illustration ", "_", " . ", "[Map] ", "[Map [", "[A]a"])
def test_a_long_run_of_anything_is_read_in_linear_time(run: str):
    start = time.process_time()
    book = read_book(f"CHAPTER I\n\n{PARAGRAPH}\n\n{run * (300_000 // len(run))}x\n\n{PARAGRAPH}")
    assert time.process_time() - start < 8
    assert book.chapters[0].paragraphs[0].startswith("It was a bright cold day")


@pytest.mark.parametrize("note", ["[Illustration: The house", "[Transcriber's Note: kept", "[Footnote 1: See page 3.)"])
def test_a_bracket_that_nobody_closes_takes_nothing_with_it(note: str):
    chapter = f"{PARAGRAPH}\n\n" * 20
    book = read_book(f"CHAPTER I\n\n{chapter}{note}\n\n{chapter}\n\nCHAPTER II\n\n{chapter}")
    assert [len(found.paragraphs) for found in book.chapters] == [40, 20]


def test_a_note_ends_at_the_next_chapter():
    text = f"Transcriber's Note: Spelling was kept.\n\nCHAPTER I\n\n{PARAGRAPH}\n\nCHAPTER II\n\n{PARAGRAPH}\n"
    assert [chapter.title for chapter in read_book(text).chapters] == ["CHAPTER I", "CHAPTER II"]
