"""Names in wikitext by their meaning: tags, sections without prose, pointers to other articles, languages."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _by_first_two_characters(phrases: str) -> dict[str, tuple[str, ...]]:
    grouped: dict[str, tuple[str, ...]] = {}
    for phrase in " ".join(phrases.split()).split("; "):
        grouped[phrase[:2]] = (*grouped.get(phrase[:2], ()), phrase)
    return grouped


#: Extension tags: their content is not wikitext.
RAW_TAGS = _words(
    "ref nowiki math ce chem gallery timeline score imagemap graph hiero pre syntaxhighlight source templatedata "
    "templatestyles mapframe maplink categorytree inputbox indicator dynamicpagelist phonos"
)

#: Tags that are dropped with their content, including nested tags.
DROPPED_TAGS = _words("table h1 h2 h3 h4 h5 h6 references includeonly rt rp caption style script")

#: Lists: dropped as well, unless lists are kept.
LIST_TAGS = _words("ul ol dl")

#: Tags that begin or end a block -> the text that replaces them; the end of a list's item has no mark.
BLOCK_TAGS = {
    **dict.fromkeys(_words("blockquote center div hr p poem section article header tr td th tbody thead"), "\n\n"),
    **dict.fromkeys(LIST_TAGS, "\n\n"),
    **dict.fromkeys(_words("li dt dd"), "\n*"),
    "br": " ",
}

#: Tags that are removed while their content stays in its line.
INLINE_TAGS = _words(
    "abbr b bdi bdo big cite code data del dfn em font i ins kbd mark noinclude nobr onlyinclude q ruby rb rbc rtc s "
    "samp small span strike strong sub sup time translate tt tvar u var wbr languages ref"
)

#: Those of them that are removed before the beginnings of lines are read.
PREPROCESSED_TAGS = _words("noinclude onlyinclude translate tvar languages")

#: Titles of sections whose paragraphs are not part of the article's prose, in lower case.
DROPPED_SECTIONS = frozenset(
    " ".join(title.split())
    for title in """
    references; external links; external link; see also; further reading; notes; footnotes; citations; sources;
    bibliography; notes and references; references and notes; works cited; reference; general references;
    endnotes; citations and references; sources and references; further information; literature cited; links;
    einzelnachweise; weblinks; siehe auch; literatur; quellen; anmerkungen; fußnoten; belege; nachweise;
    références; liens externes; voir aussi; notes et références; bibliographie; articles connexes;
    lien externe; annexes; referencias; enlaces externos; véase también; bibliografía; notas;
    notas y referencias; fuentes; lecturas adicionales; note; collegamenti esterni; voci correlate;
    altri progetti; bibliografia; riferimenti; referências; ligações externas; ver também; notas e referências;
    notes i referències; enllaços externs; vegeu també; referències; bronnen; externe link; externe links;
    zie ook; noten; bronnen, noten en/of     referenties; referenties; voetnoten; bronnen en referenties;
    källor; referenser; externa länkar; se även; noter; litteratur; vidare läsning; fotnoter; referanser;
    eksterne lenker; se også; kilder; referencer; eksterne henvisninger; lähteet; viitteet; aiheesta muualla;
    katso myös; kirjallisuutta; kirjallisuus; przypisy; linki zewnętrzne; zobacz też; uwagi; externí odkazy;
    související články; poznámky; externé odkazy; referencie; pozri aj; jegyzetek; források;
    további információk; kapcsolódó szócikkek; note de subsol; legături externe; vezi și; bibliografie;
    referințe; lectură suplimentară; примечания; ссылки; литература; см. также; источники; сноски;
    библиография; комментарии; примітки; посилання; література; див. також; джерела; бележки; източници;
    външни препратки; вижте също; препратки; референце; извори; спољашње везе; види     још; белешке;
    спољне везе; наводи; надворешни врски; поврзано; izvori; vanjske poveznice; vanjske veze; povezani članci;
    spoljašnje veze; viri; zunanje povezave; sklici; glej tudi; παραπομπές; εξωτερικοί     σύνδεσμοι;
    δείτε επίσης; πηγές; βιβλιογραφία; σημειώσεις; kaynakça; dış bağlantılar; ayrıca bakınız; notlar;
    kaynaklar; istinadlar; xarici keçidlər; həmçinin bax; viited; välislingid; vaata ka; kirjandus; atsauces;
    ārējās saites; skatīt arī; šaltiniai; nuorodos; taip pat skaitykite; tham khảo; liên kết ngoài; xem thêm;
    chú thích; ghi chú; đọc thêm; thư mục; nguồn; nguồn tham khảo; tài liệu tham khảo; catatan kaki;
    pranala     luar; lihat pula; referensi; daftar pustaka; bacaan lanjutan; rujukan; pautan luar; lihat juga;
    脚注; 注釈; 出典; 参考文献; 外部リンク; 関連項目; 関連文献; 注釈・出典; 参照; 注释; 参考资料; 外部链接;
    外部連結; 参见; 參見; 參考文獻; 參考資料; 延伸阅读; 延伸閱讀; 相关条目; 相關條目; 註釋; 注釋; 参考来源;
    來源; 腳註; 扩展阅读; 각주; 같이 보기; 외부 링크; 참고 문헌; 바깥 고리; 주석; 참고 자료; 더 읽어보기;
    อ้างอิง; แหล่งข้อมูลอื่น; ดูเพิ่ม; หมายเหตุ; مراجع; وصلات خارجية; انظر أيضا; انظر أيضًا; المراجع; مصادر;
    هوامش; منابع; پیوند به بیرون; جستارهای وابسته; پانویس; پانویس‌ها; پیوندهای بیرونی; یادداشت‌ها;
    הערות שוליים; קישורים חיצוניים; ראו גם; לקריאה נוספת; ביאורים; सन्दर्भ; संदर्भ; बाहरी कड़ियाँ;
    इन्हें भी देखें; तथ्यसूत्र; তথ্যসূত্র; বহিঃসংযোগ; আরও     দেখুন; மேற்கோள்கள்; வெளி இணைப்புகள்;
    erreferentziak; kanpo estekak; ikus, gainera; notas e referencias; véxase tamén; ligazóns externas;
    referencoj; eksteraj ligiloj; vidu ankaŭ; notoj; referensi dan catatan kaki
    """.replace("\n", " ").split(";")
)

#: Those of them that below the second level may be a subject of the article: such sections are kept.
POSSIBLE_SUBJECTS = _words("literatur литература література litteratur kirjallisuus quellen извори links sources")

#: The beginnings of lines that only point to another article, in lower case.
_POINTERS = """
    see also; see main article; main article:; main articles:; main page:; not to be confused with; this article is
    about; this page is about; for other uses; siehe auch; siehe:; hauptartikel:; article détaillé:; article
    détaillé :; articles détaillés:; articles détaillés :; voir aussi; voir article; pour les articles
    homonymes; vedi anche; voce principale:; per approfondire; lo stesso argomento in dettaglio; véase; artículo
    principal:; para otros usos; ver também; ver artigo principal; artigo principal:; vegeu també; véxase tamén;
    ikus, gainera; zie ook; zie voor; zie verder; hoofdartikel:; se även; huvudartikel:; se også; hovedartikel:;
    hovedartikkel:; katso myös; pääartikkeli:; zobacz też; osobny artykuł:; główny artykuł:; viz též; viz také;
    hlavní článek:; pozri aj; hlavný článok:; lásd még; vezi și; articol principal:; ayrıca bakınız; ana madde:;
    həmçinin bax; vaata ka; skatīt arī; taip pat skaitykite; xem thêm; xem bài; xem chi tiết; bài chi tiết:; bài
    chính:; lihat pula; lihat juga; artikel utama:; см. также; основная статья:; див. також; основна стаття:;
    вижте също; основна статия:; види још; главни чланак:; δείτε επίσης; κύριο λήμμα:; আরও দেখুন; মূল নিবন্ধ:;
    मुख्य लेख:; इन्हें भी देखें; यह भी देखें; انظر أيضا; مقالة رئيسية:; المقالة الرئيسية:; همچنین ببینید; نوشتار
    اصلی:; ראו גם; ערך מורחב:; ดูเพิ่ม; ดูบทความหลัก:; บทความหลัก:; 参见; 參見; 主条目:; 主条目：; 主條目:; 主條目：;
    详见; 詳見; further information:; article principal:; article principal :; подробнее:; подробнее см; докладніше:;
    докладніше див; bővebben:; bővebben lásd
"""

#: First two characters -> the beginnings.
POINTER_BEGINNINGS = _by_first_two_characters(_POINTERS)

#: The endings of such lines.
POINTER_ENDINGS = (
    "を参照",
    "も参照",
    "を参照のこと",
    "を参照されたい",
    "を見よ",
    "redirects here",
    "참고하십시오",
    "문서를 참고",
)

#: Prefixes of interlanguage links.
LANGUAGE_CODES = _words(
    """
    aa ab ace ady af ak als alt am ami an ang ann anp ar arc ary arz as ast atj av avk awa ay az azb ba ban bar
    bat-smg bbc bcl bdr be be-tarask be-x-old bew bg bh bi bjn blk bm bn bo bpy br bs btm bug bxr ca cbk-zam cdo
    ce ceb ch cho chr chy ckb co cr crh cs csb cu cv cy da dag de dga din diq dsb dtp dty dv dz ee el eml en eo
    es et eu ext fa fat ff fi fiu-vro fj fo fon fr frp frr fur fy ga gag gan gcr gd gl glk gn gom gor got gpe
    gsw gu guc gur guw gv ha hak haw he hi hif ho hr hsb ht hu hy hyw hz ia iba id ie ig igl ii ik ilo inh io is
    it iu ja jam jbo jv ka kaa kab kbd kbp kcg kg kge ki kj kk kl km kn knc ko koi kr krc ks ksh ku kus kv kw ky
    la lad lb lbe lez lfn lg li lij lld lmo ln lo lrc lt ltg lv lzh mad mai map-bms mdf mg mh mhr mi min mk ml
    mn mni mnw mo mos mr mrj ms mt mus mwl my myv mzn na nah nan nap nds nds-nl ne new ng nia nl nn no nov nqo
    nr nrm nso nup nv ny oc olo om or os pa pag pam pap pcd pcm pdc pdt pfl pi pih pl pms pnb pnt ps pt pwn qu
    rm rmy rn ro roa-rup roa-tara rsk ru rue rup rw sa sah sat sc scn sco sd se sg sgs sh shi shn shy si simple
    sk skr sl sm smn sn so sq sr srn ss st stq su sv sw syl szl szy ta tay tcy tdd te tet tg th ti tig tk tl tly
    tn to tpi tr trv ts tt tum tw ty tyv udm ug uk ur uz ve vec vep vi vls vo vro wa war wo wuu xal xh xmf yi yo
    yue za zea zgh zh zh-classical zh-min-nan zh-yue zu
    """
)
