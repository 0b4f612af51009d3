import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloze.pipeline.core.storage import Location
from cloze.pipeline.extract.byte_range import ByteRange
from cloze.pipeline.extract.wikipedia.dump import ReadStatus, pages, read_site
from cloze.pipeline.extract.wikipedia.wikitext import Rules, paragraphs
from tests.paths import DATA

EXTRACT = DATA / "extract"
RESIDUE = ("{{", "}}", "[[", "]]", "{|", "|}", "'''", "<ref", "&nbsp;", "&amp;", "( )", "(;")


def one(text: str, **rules) -> str:
    """The only paragraph of a text."""
    (found,) = paragraphs(text, Rules(**rules))
    return found


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("'''Bold''' and ''italic'' and '''''both'''''.", "Bold and italic and both."),
        ("L''''amour''' dure.", "L'amour dure."),
        ("A [[link]], a [[target|label]] and [[bus]]es.", "A link, a label and buses."),
        ("See [[:Category:Birds]] and [[:File:X.jpg|this]].", "See Category:Birds and this."),
        ("Seen.[[de:Baum]] [[Category:Trees]] [[zh-min-nan:X]]", "Seen."),
        ("[[Star: A Tale]] stays.", "Star: A Tale stays."),
        ("The [[commons:File:Map.svg|map]] shows [[Media:A.ogg|the speech]].", "The map shows the speech."),
        ("A [[Bild:x.png|thumb|y]], [[Media:A.ogg]], [[commons:File:B.png]] here.", "A, here."),
        ("At [http://a.org the ''site''], [https://b.org] and [//c.org c].", "At the site, and c."),
        ("A [http://a.org label with [[x|a link]] in it].", "A label with a link in it."),
        ("The [http://a.org Report [PDF] of [[2010]] [en]] said so.", "The Report [PDF] of 2010 [en] said so."),
        ("A [http://a.org] [1] and [http://b.org b [http://c.org c]].", "A [1] and [http://b.org b c]."),
        ("One.<ref name=a>{{cite|x}}</ref> Two.<ref name=a/> Three <ref>a</ref>.", "One. Two. Three."),
        ("H<sub>2</sub>O, x<sup>2</sup>, <small>little</small>, <code>f(x)</code>.", "H2O, x2, little, f(x)."),
        ("A <!-- hidden [[x]] {{ --> word.", "A word."),
        ("If <math>x</math> is, then.", "If is, then."),
        ("Here <nowiki>''[[x]]'' {{y}} &lt;</nowiki> stays.", "Here ''[[x]]'' {{y}} < stays."),
        ("1&ndash;2&nbsp;km, AT&T, &amp;nbsp; &#233; &lt;b&gt;", "1–2 km, AT&T, &nbsp; é <b>"),
        ("It is {{convert|5|km|mi|abbr=on}} or {{convert|3|to|4|ft|m|2}} off.", "It is 5 km or 3 to 4 ft off."),
        ("{{convert|6|ft|2|in}} and {{cvt|20|C}} and {{convert|3|sqmi}}", "6 ft 2 in and 20 °C and 3 sq mi"),
        ("The {{lang|fr|mot [[juste|''juste'']]}} and {{lang-de|Wort}}.", "The mot juste and Wort."),
        ("{{nowrap|5 {{nowrap|[[a|b]] c}}}} d{{snd}}e {{formatnum:1234}}", "5 b c d – e 1234"),
        ("Foo ({{IPA|x}}; born {{birth date|1900|1|2}} in Rome, {{x}}) was.", "Foo (born in Rome) was."),
        ("Foo ({{IPA|x}}) was {{x}}, {{y}}, and ( ) f().", "Foo was, and ( ) f()."),
        (
            "Le 5{{e}} régiment, le {{1er|janvier}}, au {{s|XIX|e}} et {{s|XX}}.",
            "Le 5e régiment, le 1er janvier, au XIXe siècle et XXe siècle.",
        ),
        ("Всего {{s|12 655}} в {{нп5|Институт|Институте|en|Institute}}.", "Всего 12 655 в Институте."),
        ('Er sagte: {{"|Das ist gut.}} Dann.', 'Er sagte: "Das ist gut." Dann.'),
        (
            "{{USS|Enterprise|CV-6}} met {{HMS|Victory}} and {{ship|HMS|Foo|2}}.",
            "USS Enterprise met HMS Victory and HMS Foo.",
        ),
        (
            "{{val|1.2|0.1|e=6|u=W}}, {{val|5|u=km}}, {{frac|8|1|2}} in, {{convert|3+1/2|in|mm}}",
            "1.2×106 W, 5 km, 8 1/2 in, 3+1/2 in",
        ),
        (
            "{{lien|langue=en|trad=John (footballer)|fr=John|texte=Smith}} {{lang-de|text=Wort}} {{le|布|Britton}}",
            "Smith Wort 布",
        ),
        ("東京（{{IPA|x}}、1850年）は東京<ref>x</ref>、{{b}}、大阪。", "東京（1850年）は東京、大阪。"),
        ("Text [[Bild:a b.jpg|thumb|Ein [[Turm]] hier]] und [[:Bild:x.png]].", "Text und Bild:x.png."),
        ("字-{H|zh-cn:甲;zh-tw:乙}-字。", "字字。"),
        ("A{{dead}} b {{unknown|c}} d {{unknown}}.", "A b d."),
        ("A{{x|<ref>b}}{{y</ref>c}} d.<ref name='e'>[[f|{{g}}</ref>", "A d."),
        ("{{{1|x}}} a {{b|{{{1}}}}} c {{{{d}}}} e }}} f", "a c e f"),
        ("The set {{lang|el|{α}}} and {{nowrap|[{b}}}].", "The set {α} and [{b}]."),
        ("字-{zh-hant:甲; zh-hans:{{lang|ja|乙}}}-字。", "字甲字。"),
        ("Line one\nline two.", "Line one line two."),
        ("One.\n<!-- note -->\nStill one.", "One. Still one."),
        ("A __NOTOC__ word __БЕЗОГЛ__ snake__case.", "A word snake__case."),
        ("漢字-{zh-hans:汉;zh-hant:漢}-字。", "漢字汉字。"),
        ("Град -{sr-ec:Београд; sr-el:Beograd}- и -{SR: Ниш}-.", "Град Београд и Ниш."),
        ("Su -{crh-latn:Qırım}- ve -{srpski: ne}-.", "Su Qırım ve srpski: ne."),
        ("A <span style='x'>b</span><br/>c <foo>d</foo> 1 < 2.", "A b c <foo>d</foo> 1 < 2."),
        ("The [[a|b]] (or [[c|d]]; e) f.", "The b (or d; e) f."),
    ],
)
def test_running_text_keeps_its_words(markup: str, text: str):
    assert one(markup) == text


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("[[MeToo movement|#MeToo]] is a movement.", "#MeToo is a movement."),
        ("[[!!!]] is a band.", "!!! is a band."),
        ("[[x|''#b'']] and [[x|:c]].", "#b and :c."),
        ("[[:Category:Birds|: birds]] fly.", ": birds fly."),
        ("[http://a.org *NSYNC] sang.", "*NSYNC sang."),
        ("[[Equals sign|=]] is written as =", "= is written as ="),
        ("<nowiki/>#MeToo is one.", "#MeToo is one."),
        ("<small>* With [[playoffs]].</small>", "* With playoffs."),
        ("<span class=x><b>; So</b></span> it is.", "; So it is."),
        ("One\n<i>| two</i>.", "One | two."),
    ],
)
def test_what_a_link_or_a_tag_shows_at_the_beginning_of_a_line_is_text(markup: str, text: str):
    assert one(markup) == text


@pytest.mark.parametrize(
    "markup",
    [
        "<noinclude>* item</noinclude>",
        "<!-- note -->* item",
        "{{nowrap|* item}}",
        "* [[x|#item]]",
        "<small>\n* item\n</small>",
        "<onlyinclude>{|\n| [[x|*cell]]\n|}</onlyinclude>",
        "<b>\n== References ==\n</b>\nSmith wrote.",
    ],
)
def test_lists_after_markup_that_shows_nothing_are_lists(markup: str):
    assert paragraphs(markup) == []


@pytest.mark.parametrize(
    "markup",
    [
        "== Heading ==",
        "* item\n** item\n# one\n; term\n: said",
        "{|class=x\n|-\n! a !! b\n|\n{| nested\n| c\n|}\n| d\n|}",
        "<table><tr><td>a<table><tr><td>b</td></tr></table></td></tr></table>",
        "{{Infobox\n| name = [[x]]\n| text = {{lang|fr|y}}\n|}}",
        "[[File:A.jpg|thumb|A [[caption|with]] [http://x.org links] and [[Image:b.png]].]]",
        "<gallery>\nA.jpg|one\n</gallery>\n<math>a</math>\n<references/>\n<references><ref>x</ref></references>",
        "{{reflist}}\n[[Category:A]]\n[[fr:B]]\n----\n__TOC__",
        "<ul><li>a</li><li>b</li></ul>",
        "<syntaxhighlight lang=c>int a;</syntaxhighlight><pre>b</pre><timeline>c</timeline>",
        "|} \n| stray = row\n|-\n! a !! b",
        "== References ==\nSmith wrote.\n=== More ===\nJones wrote.",
        "",
        "'''\n\n''''''\n&nbsp;\n—",
    ],
)
def test_markup_without_running_text_leaves_nothing(markup: str):
    assert paragraphs(markup) == []


def test_prose_around_dropped_markup_stays():
    table, box = "{|\n| cell {{x|\n|}}\n|}", "{{Box|a={{b}}|c=[[File:x.jpg|[[y]]]]}}"
    text = f"Before.\n{table}\nBetween.\n{box}\n\nAfter [[File:z.jpg|cap]] it."
    assert paragraphs(text) == ["Before.", "Between.", "After it."]


def test_a_dropped_section_ends_at_the_next_heading_of_its_level():
    text = "A.\n== See also ==\nB.\n=== Sub ===\nC.\n== History ==\nD.\n== Примечания ==\nE."
    assert paragraphs(text) == ["A.", "D."]


def test_a_heading_takes_no_text_of_its_line_with_it():
    text = (
        "== Life ==He was born.\n== Work == \nHe wrote.\n== Weblinks ==He links.\nMore.\n==Death==\nHe died.\n=a= b = c"
    )
    assert paragraphs(text) == ["He was born.", "He wrote.", "He died. =a= b = c"]


def test_a_title_that_may_be_a_subject_hides_its_section_only_at_the_top():
    text = "A.\n== Kultur ==\n=== Literatur ===\nFrüh.\n== Literatur ==\nSmith schrieb.\n== Pranala luar ==\nSitus."
    assert paragraphs(text) == ["A.", "Früh."]


def test_headings_and_lists_can_be_kept():
    text = "A.\n== History ==\n* ''B''\n* C"
    assert paragraphs(text, Rules(keep_headings=True, keep_lists=True)) == ["A.", "History", "B", "C"]


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<ul><li>First item.</li>\n<li>Second [[x|''one'']].</li></ul>", ["First item.", "Second one."]),
        ("A.<ol><li>B<ul><li>C</li></ul>\n</ol>D.", ["A.", "B", "C", "D."]),
        ("<dl><dt>Term<dd>Said</dd> more</dl>", ["Term", "Said", "more"]),
        ("A {{b|<ul><li>c</li></ul>}} <table><tr><td><ul><li>d</table> e.", ["A e."]),
    ],
)
def test_lists_in_html_are_kept_as_those_in_wikitext(markup: str, text: list[str]):
    assert paragraphs(markup, Rules(keep_lists=True)) == text


def test_local_names_of_namespaces_hide_their_links():
    text = "A [[Tập_tin:x.jpg|nhỏ|B [[c]]]] d [[Thể loại:E]]."
    assert one(text, hidden_namespaces=frozenset({"tập tin", "thể loại"})) == "A d."
    assert one("Ein [[Medium:A.ogg|Ton]].", linked_namespaces=frozenset({"medium"})) == "Ein Ton."


def test_a_user_names_more_templates():
    assert one("Ein {{Zitat-x|Wort|lang=de}} hier.", templates={"zitat-x": "„{1}“"}) == "Ein „Wort“ hier."


def test_a_quote_is_a_paragraph_of_its_own():
    assert paragraphs("He said: {{quote|text=Go now.|author=X}} So.") == ["He said:", "Go now.", "So."]


def test_dropped_templates_are_counted():
    dropped: Counter[str] = Counter()
    paragraphs("{{Cite_web|x}} {{cite web}} {{Lang|fr|a}} {{DEFAULTSORT:b}}", dropped=dropped)
    assert dropped == {"cite web": 2, "defaultsort:": 1}


OPENINGS = [
    "{{",
    "[[",
    "{|",
    "\n{|",
    "<ref>",
    "'''",
    "<!--",
    "<math>",
    "<nowiki>",
    "[http://x ",
    "{{lang|fr|",
    "<table>",
    "[[File:",
]
CLOSINGS = ["}}", "]]", "|}", "\n|}", "</ref>", "-->", "</math>", "</nowiki>", "]", "|", "\n", "=", "</table>"]


@given(st.lists(st.sampled_from([*OPENINGS, *CLOSINGS, "word", " "]), max_size=60))
def test_no_markup_raises_and_prose_outside_it_stays(tokens: list[str]):
    text = "Kept before.\n\n" + "".join(tokens)
    assert paragraphs(text)[0].startswith("Kept before.")


@given(st.lists(st.sampled_from([*OPENINGS[:5], "<ref>", "<table>"]), max_size=30))
def test_openings_without_an_end_lose_no_prose(tokens: list[str]):
    found = "\n".join(paragraphs("Kept before.\n\n" + " between ".join(tokens) + "\n\nKept after."))
    assert found.startswith("Kept before.") and found.endswith("Kept after.")
    assert found.count("between") == max(0, len(tokens) - 1)


WORDS = ["one", "two", "über", "漢字", "it's", "(a)", "U.S.", "3,5", "x²", "R&D"]
words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join)
markup = st.recursive(
    words,
    lambda inner: st.one_of(
        # MediaWiki knows no link inside a link: of three in each other a bar may stay
        inner.map(lambda x: x if x.count("[[") > 1 else f"[[Target|{x}]]"),
        inner.map(lambda x: f"'''{x}'''"),
        inner.map(lambda x: f"''{x}''"),
        inner.map(lambda x: f"{{{{nowrap|{x}}}}}"),
        inner.map(lambda x: f"{{{{lang|fr|{x}}}}}"),
        inner.map(lambda x: f"<small>{x}</small>"),
        inner.map(lambda x: f"x{{{{unknown|{x}}}}}x"),
        inner.map(lambda x: f"x<ref>{x}</ref>x"),
        inner.map(lambda x: f"x[[File:A.jpg|thumb|{x}]]x"),
        inner.map(lambda x: f"x<!-- {x.replace('-->', '')} -->x"),
        st.tuples(inner, inner).map(" ".join),
    ),
    max_leaves=12,
)


@given(markup)
def test_balanced_markup_leaves_none_of_its_characters(text: str):
    for paragraph in paragraphs(text):
        assert not any(mark in paragraph for mark in (*RESIDUE, "''", "|", "\x00", "  ")), paragraph


@given(st.lists(words, min_size=1, max_size=5))
def test_plain_prose_is_kept_as_it_is(blocks: list[str]):
    assert paragraphs("\n\n".join(blocks)) == blocks


@given(st.text())
def test_any_text_at_all_is_read(text: str):
    for paragraph in paragraphs(text):
        assert paragraph == paragraph.strip() != ""
        assert "\n" not in paragraph and "\x00" not in paragraph


@pytest.mark.parametrize(
    "token",
    [
        *OPENINGS,
        *CLOSINGS,
        "{{nowrap|x ",
        "''",
        "a'''b''",
        "''a'''b\n",
        "'",
        "(",
        "(\x00",
        "[[a|x ",
        "<ref/>,",
        ", {{x}}",
        "&amp",
        "{{x|",
        "* ",
        "==",
        "[//x [a] ",
        "[//x [a",
        "\n<b>*",
        "<b>",
        "[[#x|*]]",
    ],
)
def test_a_megabyte_of_any_mark_is_read_in_linear_time(token: str):
    text = "Kept before.\n\n" + token * (1_000_000 // len(token)) + "\n\nKept after."
    start = time.process_time()
    found = paragraphs(text)
    assert time.process_time() - start < 8
    assert found[0] == "Kept before."


@pytest.mark.parametrize(
    ("before", "run", "after"),
    [
        ("=", " ", "x"),
        ("[//", "a", ""),
        ("[[", "/", ""),
        ("<", "a", ""),
        ("<ref", "1", ""),
        ("{{convert|", " ", "}}"),
        ("{{convert|", "1", "x}}"),
        ("{{lang|fr|", " ", "}}"),
        ("-{a|", "b", ""),
    ],
)
def test_a_long_run_of_one_character_is_read_in_linear_time(before: str, run: str, after: str):
    """What a regular expression that tries every way of dividing the run would need hours for."""
    start = time.process_time()
    found = paragraphs(f"Kept before.\n\n{before}{run * 300_000}{after}\n\nKept after.")
    assert time.process_time() - start < 8
    assert found[0] == "Kept before." and found[-1] == "Kept after."


def test_real_articles_leave_no_markup():
    for name in ("enwiki.xml.bz2", "nlwiki.xml", "viwiki-cut.xml.xz"):
        location = Location(str(EXTRACT / name))
        site = read_site(location)
        rules = Rules(hidden_namespaces=frozenset(site.namespace_names(6) | site.namespace_names(14)))
        for page in pages(location, ByteRange(0, location.size()), site, ReadStatus()):
            assert page
            for paragraph in paragraphs(page.text, rules) if page.namespace == 0 else []:
                assert not any(mark in paragraph for mark in RESIDUE), (page.title, paragraph)


def test_a_real_article_reads_as_its_page_does():
    location = Location(str(EXTRACT / "enwiki.xml.bz2"))
    site = read_site(location)
    found = {p.title: p.text for p in pages(location, ByteRange(0, location.size()), site, ReadStatus()) if p}
    text = paragraphs(found["Allioideae"])
    assert text[0] == (
        "Allioideae is a subfamily of monocot flowering plants in the family Amaryllidaceae, order Asparagales. It was "
        "formerly treated as a separate family, Alliaceae. The subfamily name is derived from the generic name of the "
        "type genus, Allium."
    )
    assert len(text) == 13
    assert text[-1].startswith("When the APG III system was published in 2009, the alternative circumscriptions were")
