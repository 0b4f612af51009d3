"""Lines that begin with a colon or a semicolon: what of them is running text, and what is not."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze.pipeline.extract.wikipedia.indented_lines import is_pointer_line, prose_paragraphs
from cloze.pipeline.extract.wikipedia.wikitext import Rules, paragraphs

SENTENCES = [
    "Die Philosophie ist eine sehr alte Wissenschaft.",
    "Il codice viene controllato dopo ogni sostituzione.",
    "Sie war „schön und sehr alt.“",
    "Vivent-ils encore dans cette vieille maison ?",
    "여름과 겨울에는 비가 많이 내린다.",
    "夏も冬も温暖で、降水量は多い。",
    "它研究存在、知识和价值。",
    "यहाँ वर्षा बहुत अधिक होती है।",
    "الفلسفة علم قديم جدا منذ القدم.",
    "Φιλοσοφία είναι μια πολύ παλιά επιστήμη.",
    "Այս քաղաքը շատ հին է։",
    "ទីក្រុងនេះស្ថិតនៅលើច្រាំងទន្លេ។",
    "I have a sore throat.",
]


@pytest.mark.parametrize("sentence", SENTENCES)
@pytest.mark.parametrize("markup", [":{}", ": {}", "::{}", ": {}<ref>A. Smith, p. 3.</ref>", "; Term : {}", "; A\n:{}"])
def test_an_indented_sentence_is_a_paragraph_in_any_language(sentence: str, markup: str):
    assert paragraphs("Before it.\n" + markup.format(sentence) + "\nAfter it.") == ["Before it.", sentence, "After it."]


@pytest.mark.parametrize(
    "term", ["Fläche", "Fläche (2010)", "面積", "12:30", "Area in square km", "Capital city.", "多い。"]
)
@pytest.mark.parametrize("markup", [":{}", ";{}", ";{}:", "; Term : {}", "; A\n: {}", ":::{}\n:::{}"])
def test_a_short_term_or_value_goes(term: str, markup: str):
    assert paragraphs("Before it.\n" + markup.replace("{}", term) + "\nAfter it.") == ["Before it.", "After it."]


def test_text_all_of_whose_paragraphs_are_indented_stays():
    assert paragraphs(":Sie ist alt. Sie fragt nach dem Sein.\n:Auch die Werte gehören dazu.") == [
        "Sie ist alt. Sie fragt nach dem Sein.",
        "Auch die Werte gehören dazu.",
    ]


def test_a_definition_stays_without_its_term_and_a_colon_between_digits_ends_no_term():
    text = "; Maßstab 3:1 : Die Zeichnung ist dreimal so groß.\n;10:30 : Der Zug fährt von Gleis zwei ab."
    assert paragraphs(text) == ["Die Zeichnung ist dreimal so groß.", "Der Zug fährt von Gleis zwei ab."]


def test_a_passage_that_ends_in_no_stop_stays_if_a_sentence_ends_inside_it():
    passage = "The rule is as old as the town. It was written down by the council in these words:"
    assert paragraphs(":" + passage) == [passage]
    assert paragraphs(":areas of the old town in which neither the council nor the guild had a seat or a voice") == []


@pytest.mark.parametrize(
    "line",
    [
        "この城は古くて大きい。（1945年焼失）",
        "「まだ名前は無いという。どこで生れたか」",
        "「我来了，我看见了，我征服了。」——恺撒",
    ],
)
def test_a_sentence_that_ends_in_a_wide_stop_stays_with_the_note_after_it(line: str):
    assert paragraphs(":" + line) == [line]
    assert paragraphs(":城。（1945年焼失した大きい城）") == []


def test_thai_prose_needs_no_stop():
    text = "ปรัชญาเป็นวิชาความรู้ที่เก่าแก่มาก ศึกษาเกี่ยวกับการมีอยู่และความรู้ของมนุษย์ รวมถึงคุณค่าต่าง ๆ ในสังคม"
    assert paragraphs(f":{text}\n: คำสั้น") == [text]


@pytest.mark.parametrize(
    "talk",
    [
        ":I agree with you. --[[User:Bob|Bob]] ([[User talk:Bob|talk]]) 10:00, 1 May 2010 (UTC)\n::So do I for long.",
        ":Sì, sono d'accordo con te. [[Utente:Ugo|Ugo]] 12:30, 5 mag 2010 (CEST)",
        ":Je suis d'accord avec toi. [[Utilisateur:Luc|Luc]] 5 mai 2010 à 12:30 (CET)",
        ":賛成します。記事を分割しましょう。--[[利用者:山田|山田]] 2010年5月1日 (土) 10:00 (UTC)",
        ":No, I do not think so at all. ~~~~",
    ],
)
def test_a_signed_discussion_is_dropped_with_all_replies(talk: str):
    assert paragraphs(f"Prose before it.\n{talk}\n\nProse after it.") == ["Prose before it.", "Prose after it."]


@pytest.mark.parametrize(
    "formula",
    [
        ":<math>F = ma.</math>",
        ":''F'' = ''ma''.",
        ":2 H<sub>2</sub> + O<sub>2</sub> → 2 H<sub>2</sub>O.",
        ":a + b = c, d.",
    ],
)
def test_a_formula_is_no_sentence_and_what_follows_it_on_its_line_may_be_one(formula: str):
    assert paragraphs(f"It is given by\n{formula}\nwhere ''m'' is the mass.") == [
        "It is given by",
        "where m is the mass.",
    ]
    after = ":<math>E</math>, where ''c'' is the speed of light in vacuum."
    assert paragraphs(f"{formula}\n{after}") == ["where c is the speed of light in vacuum."]


def test_a_line_of_verse_is_no_sentence_because_a_stop_is_at_its_end():
    verse = [
        ":The lamp is in the window,",
        ":the moon is on the hill.",
        ":And who is it that wanders,",
        ":so late, so very still",
    ]
    assert paragraphs("He sang:\n" + "\n".join(verse)) == ["He sang:"]
    assert paragraphs("He said:\n:« La ville est belle et grande. »\n:— Le maire de la ville de Paris") == [
        "He said:",
        "« La ville est belle et grande. »",
    ]


@pytest.mark.parametrize(
    "line",
    [
        ":''For the film of this name, see [[Eagle (film)]].''",
        ":''This one tells of birds and of nothing else.''",
        ":For other birds of this name, see [[Eagle]].",
        ": ''Main article: [[Eagle]]''",
        "''See main article [[Eagle]]''",
        ":Siehe auch [[Adler]].",
        ":Article détaillé : [[Aigle]].",
        ":''Xem thêm bài [[Đại bàng]], [[Chim]].''",
        ":詳細は「[[鳥]]」を参照。",
        ":См. также [[Птица]].",
        "Див. також [[:Категорія:Птахи]]",
        "''See also: [[:Category:Birds]]''",
    ],
)
def test_a_line_that_only_leads_elsewhere_goes(line: str):
    assert paragraphs(f"{line}\n\nThe eagle is a bird.") == ["The eagle is a bird."]


@pytest.mark.parametrize(
    "text",
    [
        "Further information about the crash came to light in 1990.",
        "See also the two towers behind the church. They are as old as it is.",
        "詳細は不明である。",
        "Siehe, das Meer war ruhig.",
        "See mainly the blue ones, which are old.",
    ],
)
def test_a_sentence_that_only_begins_like_a_pointer_stays(text: str):
    assert not is_pointer_line(text) and paragraphs(text) == [text]


def test_an_italic_quotation_stays_below_prose():
    assert paragraphs("Er sagte:\n:''Ich habe die Stadt gesehen.''<ref>x</ref>") == [
        "Er sagte:",
        "Ich habe die Stadt gesehen.",
    ]


def test_items_of_a_list_are_dropped_at_any_nesting():
    item = "A sentence about the river stands here."
    marks = ["*", "#", ":*", ":#", "::*", "*:", "#:", "*;", "; Term\n:*", ": * ", ": • ", ":• "]
    assert paragraphs("\n".join(mark + item for mark in marks)) == []
    mixed = f":{SENTENCES[0]}\n:*{item}\n:{SENTENCES[1]}"
    assert paragraphs(mixed) == [SENTENCES[0], SENTENCES[1]]


def test_kept_lists_keep_every_line_as_it_is():
    text = "* a\n: b\n; c : d\n:* e\n: ''For more, see [[f]].''"
    assert paragraphs(text, Rules(keep_lists=True)) == ["a", "b", "c : d", "e", "For more, see f."]


def test_indented_lines_in_a_hidden_section_stay_hidden():
    assert paragraphs(f"A.\n== See also ==\n:{SENTENCES[0]}\n== Life ==\n:{SENTENCES[1]}") == ["A.", SENTENCES[1]]


lines = st.lists(
    st.tuples(
        st.sampled_from([":", "::", ";", ":*", ":#", ": ", ";;:"]),
        st.one_of(st.sampled_from(SENTENCES), st.text(alphabet="aB .:;,*'\x00漢。()", max_size=60)),
    ),
    min_size=1,
    max_size=8,
)


@given(lines, st.booleans())
def test_kept_paragraphs_are_whole_lines_and_no_list_item_is_kept(pairs: list[tuple[str, str]], opening: bool):
    given_lines = [mark + text for mark, text in pairs]
    rest = iter(given_lines)
    for found in prose_paragraphs(given_lines, opening):
        assert any(found in line and "*" not in line[:2] and "#" not in line[:2] for line in rest)


@pytest.mark.parametrize(
    "token",
    [
        ":",
        ";",
        ": a",
        "\n:a",
        "\n;a:b. ",
        "&nbsp;",
        "a ",
        "'' ",
        "\u0e01",
        '." ',
        "a. B ",
        "A sentence is here now.\n:a line is here\n:",
        "1:00 ",
    ],
)
def test_a_megabyte_of_anything_indented_is_read_in_linear_time(token: str):
    start = time.process_time()
    paragraphs(":" + token * (1_000_000 // len(token)))
    assert time.process_time() - start < 8


def test_a_paragraph_that_is_a_sentence_stays_even_if_it_says_where_to_read_more():
    for text in (
        "For the simplest of them in all three notations, see the examples.",
        "語彙については、語彙の項を参照。",
    ):
        assert paragraphs(text) == [text] and paragraphs(f":{text}") == []
