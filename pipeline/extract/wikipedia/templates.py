"""Templates whose arguments are running text -> that text.

One table maps patterns to template names. A configuration extends it for another wiki. Other templates are dropped.
"""

import re
from collections.abc import Mapping

_LINK_OR_PIPE = re.compile(r"\[\[[^\[\]]*\]\]|\|")
_NAMED_ARGUMENT = re.compile(r"\s*+([\w \-]{1,30}?)\s*+=(?!=)\s*")
_ROMAN = re.compile(r"[IVXL]+$")
_FIELD = re.compile(r"\{([^{}]+)\}")
_NUMBER = re.compile(r"(?=.{1,40}$)(?:[-−+]?[\d.,/+ ⁄½¼¾⅓⅔]*\d[\d.,/e]*|[½¼¾⅓⅔])$")

#: Pattern -> names of templates, with ~ for a space. {1} is the first argument, {-1} the last, {a|1} the first of them
#: that is not empty, {*} all of them joined; a pattern of a single word names a function of this file.
_NAMES_BY_PATTERN = {
    "{1}": """
        nowrap nobr nobold nobreak small smaller big larger midsize unicode angbr em strong bold italic italics
        ital bolditalic underline strikethrough mono code tt kbd var samp smallcaps sc aut smcp script
        hebrew he-nikud arabic~script cuneiform keypress key~press abbr abbrv abbreviation tooltip hover vanchor
        visible~anchor
        sic typo not~a~typo as~written proper~name text nts formatnum: formatnum fmtn num number gaps sub sup chem2
        flag flagcountry flagu nihongo2 tlit~text lj linktext lc: uc: ucfirst: lcfirst: nbsp~text em~text first~word
        poem~text verse~translation title~case unité~texte lang-text w w~link ref~label~text begrip
        overline popdf kursiv fett nocaps noitalic normal nowrap~text zitat citaat citation~texte
        читать nobr~text num~text s~text понятно nq citata
        esd versalita citation date- angle~bracket ruby er re citation~needed~span cn~span""",
    "\n\n{text|quote|texte|citat|1}\n\n": """
        quote blockquote cquote quotation quote~box~inline bquote poemquote poem~quote verse~quotation citation~bloc
        citace cita citação citazione citation~longue cytat цитата 引用 quotation~block début~citation centered~quote
        bloc~citation trích~dẫn khối~trích~dẫn zitat-fr""",
    "{2}": """
        lang langue langx font~color color colored~text fontcolor highlight langwithname script/text lang-xx
        angle~bracket~lang lengua idioma lingua""",
    "{-1}": "transl transliteration tlit translit translittération fn~text tsl link-lang",
    "{2|1}": "resize url link~text plain~link plainlink wl wikilink l ship~label internal~link",
    "{3|1}": "le",
    "{lt|1}": "ill interlanguage~link illm interlanguage~link~multi link-interwiki 仮リンク 内部リンク",
    "{texte|fr|1|trad}": "lien lien~interlangue",
    "{текст|text|2|надо|1}": "не~переведено не~переведено~3 не~переведено~5 нп3 нп5",
    "{1} ({2}, {3})": "nihongo nihongo~krt",
    "{1}（{2}）": "読み仮名 ふりがな",
    "{c|t|s|tc|sc|p}": "zh zh-c zh-cn lang-zh",
    "HMS {1}": "hms",
    "USS {1}": "uss",
    "SS {1}": "ss",
    "MS {1}": "ms",
    "MV {1}": "mv",
    "RMS {1}": "rms",
    "SMS {1}": "sms",
    "HMAS {1}": "hmas",
    "HMCS {1}": "hmcs",
    "{1} {2}": "sortname ship",
    "{1} {2} {3}": "date date~de~naissance fecha dts data",
    "{1}/{2}": "sfrac",
    "{1} {2|u|ul}": "unité unidad unit",
    "value": "val",
    "fraction": "frac fraction",
    "1er {1}": "1er",
    "siglo {1}": "siglo",
    "{1}–{2}": "range date~range",
    "c. {1}": "circa c. ca. c",
    "fl. {1}": "fl. floruit fl",
    "r. {1}–{2}": "reign r.",
    "As of {1}": "as~of",
    "lit. '{1}'": "lit literal literal~translation",
    "'{1}'": "gloss",
    "US${1}": "us$ usd",
    "£{1}": "gbp £",
    "€{1}": "€ eur euro",
    "₹{1}": "inr indian~rupee",
    "A${1}": "aud a$",
    "{1}e": "e~ordinal",
    "power": "e ×10^ esp",
    "century": "s s- siècle siècles~simple",
    "{*}": "chem linktext~join",
    "–": "ndash endash en~dash –",
    " – ": "snd spnd sndash spaced~ndash spaced~en~dash spaced~en~dash~space -~ snds",
    "—": "mdash emdash em~dash —",
    " — ": "spaced~mdash spaced~em~dash smd",
    " ": "nbsp spaces space thinsp thin~space hair~space hairsp sp nnbsp zwsp~space wj~space pad",
    " · ": "· dot middot •  bull bullet",
    "'": "' apostrophe",
    "'s": "'s",
    '"': "\"'",
    '"{text|1}"': '"',
    "=": "= equals",
    "|": "pipe",
    "convert": """
        convert cvt convertir unitconv conv converti chuyển~đổi đổi lonlat~convert конвертировать
        maß omzetten převod преврати przelicz""",
}

#: Template name -> pattern.
BUILTIN = {name.replace("~", " "): pattern for pattern, names in _NAMES_BY_PATTERN.items() for name in names.split()}

# The separators between the numbers of {{convert}}.
_SEPARATORS = {
    "to": " to ",
    "-": "–",
    "–": "–",
    "and": " and ",
    "&": " and ",
    "or": " or ",
    "x": " × ",
    "*": " × ",
    "×": " × ",
    "by": " by ",
    "+/-": " ± ",
    "±": " ± ",
    "to(-)": " to ",
}

# {{convert}}'s unit codes -> their symbols.
_UNITS = {
    "km2": "km²",
    "m2": "m²",
    "cm2": "cm²",
    "mm2": "mm²",
    "mi2": "sq mi",
    "sqmi": "sq mi",
    "sqft": "sq ft",
    "sqkm": "km²",
    "sqm": "m²",
    "ft2": "sq ft",
    "m3": "m³",
    "km3": "km³",
    "cm3": "cm³",
    "ft3": "cu ft",
    "cuft": "cu ft",
    "cumi": "cu mi",
    "cuin": "cu in",
    "cuyd": "cu yd",
    "C": "°C",
    "F": "°F",
    "K": "K",
    "C-change": "°C",
    "F-change": "°F",
    "PD/sqkm": "/km²",
    "PD/sqmi": "/sq mi",
    "/sqkm": "/km²",
    "/sqmi": "/sq mi",
    "kph": "km/h",
    "km/h": "km/h",
    "USgal": "US gal",
    "impgal": "imp gal",
    "floz": "fl oz",
    "lbf": "lbf",
    "kg/m3": "kg/m³",
    "g/cm3": "g/cm³",
    "m3/s": "m³/s",
    "cuft/s": "cu ft/s",
    "nmi": "nmi",
    "ST": "short tons",
    "LT": "long tons",
    "t": "t",
}


def render(pattern: str, body: str, gap: str) -> str:
    """The text of a template, from the text after its name; `gap` if it has none."""
    given = arguments(body)
    function = _FUNCTIONS.get(pattern)
    return function(given, gap) if function else _fill(pattern, given, gap)


def arguments(body: str) -> dict[str, str]:
    """Arguments by name, or by number from 1 and, from the end, from -1. Pipes inside links do not separate."""
    values, start = [], 0
    for match in _LINK_OR_PIPE.finditer(body):
        if match[0] == "|":
            values.append(body[start : match.start()])
            start = match.end()
    values.append(body[start:])
    arguments: dict[str, str] = {}
    positional = []
    for value in values:
        if match := _NAMED_ARGUMENT.match(value):
            arguments[match[1].lower()] = value[match.end() :].strip()
        else:
            positional.append(value.strip())
    for number, value in enumerate(positional, 1):
        arguments.setdefault(str(number), value)
        arguments[str(number - 1 - len(positional))] = value
    arguments["*"] = "".join(positional)
    return arguments


def _fill(pattern: str, given: Mapping[str, str], gap: str) -> str:
    """Replace each {2|text} in a pattern by the first of these arguments that is not empty; by a gap if all are."""

    def value(match: re.Match[str]) -> str:
        return next((found for key in match[1].split("|") if (found := given.get(key, "").strip(gap))), gap)

    return _FIELD.sub(value, pattern)


def _convert(given: Mapping[str, str], gap: str) -> str:
    """{{convert|5|to|10|km|mi}} -> "5 to 10 km": the quantity as it is written, not converted."""
    words: list[str] = []
    number = 1
    while (value := given.get(str(number))) is not None:
        number += 1
        if _NUMBER.match(value):
            words.append(value)
        elif value in _SEPARATORS:
            words.append(_SEPARATORS[value])
        else:
            words.append(" " + _UNITS.get(value, value))
            following = given.get(str(number), "")
            if not _NUMBER.match(following) or str(number + 1) not in given:
                break
            words.append(" ")  # 6 ft 2 in
    return "".join(words) or gap


def _century(given: Mapping[str, str], gap: str) -> str:
    """French {{s|XIX|e}}; in Russian {{s|...}} only prevents line breaks."""
    number = given.get("1", "")
    return f"{number}{given.get('2') or 'e'} siècle" if _ROMAN.match(number) else number or gap


def _fraction(given: Mapping[str, str], gap: str) -> str:
    """{{frac|8|1|2}} -> 8 1/2; {{frac|2}} -> 1/2."""
    numbers = [given[key] for key in "123" if key in given]
    if len(numbers) < 2:
        return f"1/{numbers[0]}" if numbers else gap
    return " ".join([*numbers[:-2], "/".join(numbers[-2:])])


def _power(given: Mapping[str, str], gap: str) -> str:
    """English {{e|6}} is a power of ten, French {{e}} ends an ordinal."""
    exponent = given.get("1", "").strip(gap)
    return f"×10{exponent}" if _NUMBER.match(exponent) else exponent or "e"


def _value(given: Mapping[str, str], gap: str) -> str:
    """{{val|1.2|0.1|e=6|u=W}}, without its uncertainty."""
    power = f"×10{given['e']}" if "e" in given else ""
    unit = given.get("u") or given.get("ul", "")
    return f"{given.get('1', gap)}{power} {unit}".strip()


_FUNCTIONS = {"century": _century, "convert": _convert, "fraction": _fraction, "power": _power, "value": _value}
