"""Tests for unwanted documents: the fraction of letters, disambiguation pages, the language."""

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cloze.pipeline.core.errors import UserError
from cloze.pipeline.text import words

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

_MIN_PROBABILITY = 0.9  # correct predictions for Wikipedia's articles of 20 words and more have at least 0.8
_MIN_WORDS = 20  # for which a language is predicted
_CLASSIFIED_CHARACTERS = 4000  # from the beginning of a text


def _names(text: str) -> frozenset[str]:
    return frozenset(name.replace("~", " ") for name in text.split())


#: Templates that mark a page as a disambiguation page, in lower case.
DISAMBIGUATION_TEMPLATES = _names("""
    disambiguation disambig disamb dab disambiguation~page disambiguation~cleanup disambig-cleanup hndis geodis
    human~name~disambiguation place~name~disambiguation road~disambiguation roaddis school~disambiguation schooldis
    hospital~disambiguation hospitaldis letter-number~combination~disambiguation lndis letter-numbercombdisambig
    letter–number~combination~disambiguation mathdab mathematical~disambiguation mathematics~disambiguation
    biology~disambiguation
    species~latin~name~disambiguation species~latin~name~abbreviation~disambiguation taxonomy~disambiguation
    genus~disambiguation chinese~title~disambig call~sign~disambiguation callsigndis number~disambiguation numberdis
    station~disambiguation airport~disambiguation church~disambiguation caselaw~disambiguation music~disambiguation
    synagogue~disambiguation political~party~disambiguation tndis
    begriffsklärung bkl
    homonymie homonymie~de~personnes homonymie~de~localités homonymie~de~clubs~sportifs homonymie~dynastique
    homonymie~de~toponyme homonymie~d'établissements~scolaires homonymie~de~monument homonymie~de~bateaux
    arrondissements~homonymes cantons~homonymes batailles~homonymes saints~homonymes villes~homonymes titres~homonymes
    édifices~religieux~homonymes îles~homonymes paronymie
    desambiguación desambig desamb disambigua desambiguação desambiguació pàgina~de~desambiguació homónimos
    homonimia argipen discretiva dezambiguizare
    dp doorverwijspagina dubbelsinnig neibetsjuttings gren grensida förgrening förgreningssida namngrensida
    trebokstavsförgrening flertydig flertydigside peker pekerside fleirtyding aðgreining täsmennyssivu
    täpsustuslehekülg
    ujednoznacznienie strona~ujednoznaczniająca rozcestník rozlišovacia~stránka egyért egyértelműsítő~lap razdvojba
    razločitev višeznačna~odrednica вишезначна~одредница вишезначна пояснение пояснителна~страница појаснување
    неоднозначность однофамильцы список~однофамильцев тёзки неоднозначність неадназначнасць nuorodinis
    nozīmju~atdalīšana αποσαφήνιση երկիմաստություն მრავალმნიშვნელოვანი айрық
    anlam~ayrımı dəqiqləşdirmə apartigilo idirdhealú gwahaniaethu kthjellim
    פירושונים توضيح صفحة~توضيح ابهام‌زدایی ضد~ابہام बहुविकल्पी बहुविकल्पी~शब्द দ্ব্যর্থতা~নিরসন
    பக்கவழி~நெறிப்படுத்தல் అయోమయ~నివృత్తి വിവക്ഷകൾ แก้ความกำกวม แก้กำกวม
    định~hướng trang~định~hướng disambiguasi nyahkekaburan
    aimai 曖昧さ回避 人名の曖昧さ回避 地名の曖昧さ回避 消歧义 消歧義 消歧义页 消歧義頁 동음이의 동명이인 동음이의어~문서
""")

#: The words in brackets at the end of a disambiguation page's title, in lower case.
DISAMBIGUATION_TITLES = _names("""
    disambiguation begriffsklärung homonymie desambiguación disambigua desambiguação desambiguació homónimos
    homonimia argipen doorverwijspagina dubbelsinnig olika~betydelser flertydig pekerside andre~betydninger
    täsmennyssivu ujednoznacznienie rozcestník rozlišovacia~stránka egyértelműsítő~lap razdvojba razločitev
    višeznačna~odrednica вишезначна~одредница пояснение значения значення неадназначнасць dezambiguizare
    αποσαφήνιση anlam~ayrımı dəqiqləşdirmə apartigilo פירושונים توضيح ابهام‌زدایی ضد~ابہام बहुविकल्पी
    দ্ব্যর্থতা~নিরসন แก้ความกำกวม định~hướng disambiguasi nyahkekaburan 曖昧さ回避 消歧义 消歧義 동음이의
""")


def is_disambiguation(title: str, text: str, templates: Iterable[str], more: frozenset[str] = frozenset()) -> bool:
    """Whether a page's title, magic word or dropped templates mark it as a disambiguation page.

    `more` are the names of additional templates that do.
    """
    _, bracket, suffix = title.lower().rpartition("(")
    if bracket and suffix.removesuffix(")") in DISAMBIGUATION_TITLES:
        return True
    if "__DISAMBIG__" in text or not DISAMBIGUATION_TEMPLATES.isdisjoint(templates):
        return True
    return not more.isdisjoint(templates)


def letter_fraction(text: str) -> float:
    """The fraction of letters, with their combining marks, among the characters that are not white space. Variation
    selectors above U+E0000 count as other characters."""
    kinds = words.lookup(_character_kinds(), words.code_points(text))
    others = len(kinds) - np.count_nonzero(kinds)
    letters = np.count_nonzero(kinds == 1)
    return letters / max(1, letters + others)


@cache
def _character_kinds() -> npt.NDArray[np.uint8]:
    """For each code point: 1 for a letter or combining mark, 2 for white space, 0 for anything else."""
    categories = words.categories()
    kinds = np.isin(categories, tuple(b"LM")).astype(np.uint8)
    kinds[[code for code in range(len(categories)) if chr(code).isspace()]] = 2
    return kinds


def detect_language(text: str) -> str:
    """The ISO 639 code of a text's language; empty if it is not certain."""
    start = text[:_CLASSIFIED_CHARACTERS]
    if start.isascii() and words.count_words(start) < _MIN_WORDS:
        return ""
    code, probability = _identifier().classify(start)
    return str(code) if probability >= _MIN_PROBABILITY else ""


def check_languages(codes: Iterable[str]) -> None:
    """Raises UserError for a language that cannot be detected."""
    if unknown := sorted(set(codes) - set(_identifier().labels)):
        known = ", ".join(sorted(_identifier().labels))
        raise UserError(f"only_languages: {', '.join(unknown)}: cannot be detected; choose from {known}")


@cache
def _identifier() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
