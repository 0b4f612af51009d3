import hashlib
import random

import numpy as np
import pytest

from cloze.pipeline.dedup.minhash import (
    MIN_SHINGLES,
    NUM_PERMUTATIONS,
    band_keys,
    compute_signatures,
    group_near_duplicates,
    join_groups,
    shingles,
)


def prose(seed: int, words: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdefghij", k=4)) for _ in range(words)]


@pytest.mark.parametrize("fraction", [0.5, 0.8, 0.95])
def test_signatures_agree_as_often_as_texts_resemble_one_another(fraction: float):
    words = prose(1, 2000)
    union = round(2000 / fraction)
    first, second = compute_signatures([" ".join(words), " ".join(words + prose(2, union - 2000))])
    assert (first == second).mean() == pytest.approx(
        fraction, abs=4 * (fraction * (1 - fraction) / NUM_PERMUTATIONS) ** 0.5 + 1 / 256
    )


def test_case_punctuation_and_compatibility_forms_do_not_count():
    plain, other = compute_signatures(
        ["the ship's fine crew left at dawn for home", "The SHIP’S ﬁne crew — left, at dawn; for home!"]
    )
    assert plain.any() and (plain == other).all()


@pytest.mark.parametrize("text", ["我们在海上度过了漫长的一天", "พวกเราใช้เวลาทั้งวันในทะเล"])
def test_scripts_without_spaces_are_cut_by_character(text: str):
    assert shingles([text])[1][-1] == len(text) - 4


def test_signatures_do_not_change():
    texts = [
        "The SHIP’S ﬁne crew — left, at dawn; for home!",
        "我们在海上度过了漫长的一天",
        "พวกเราใช้เวลาทั้งวันในทะเล",
        "ｶﾞﾗｽの東京2020年 and 12½ °C is word—word 𠀀𠀁",
    ]
    digest = hashlib.sha256(compute_signatures(texts).tobytes()).hexdigest()
    assert digest == "d80b93beb3e6a4e7b31f0cc4038dd86f910c5f00f3290b304644b10b39c95348", "raise dedup's VERSION"


def test_a_text_of_too_few_shingles_has_no_signature():
    signatures = compute_signatures(
        [" ".join(prose(1, MIN_SHINGLES + 3)), " ".join(prose(1, MIN_SHINGLES + 4)), "", "!?"]
    )
    assert signatures.any(axis=1).tolist() == [False, True, False, False]


def test_a_signature_does_not_depend_on_the_other_texts():
    texts = [" ".join(prose(seed, 20 + seed)) for seed in range(50)]
    together = compute_signatures(texts)
    assert all(
        (compute_signatures([text])[0] == signatures).all() for text, signatures in zip(texts, together, strict=True)
    )


def test_texts_that_resemble_one_another_are_grouped_and_the_others_are_not():
    texts = [" ".join([*prose(n % 10, 200), *prose(100 + n, 5)]) for n in range(300)]
    signatures = compute_signatures(texts)
    owners = np.repeat(np.arange(len(texts)), band_keys(signatures).shape[1])
    assert (group_near_duplicates(band_keys(signatures).ravel(), owners, signatures, 0.8) == np.arange(300) % 10).all()


def test_chains_of_pairs_are_joined_to_their_smallest():
    pairs = np.array([[5, 4], [4, 3], [7, 8], [3, 5]])
    assert join_groups(np.arange(9), pairs).tolist() == [0, 1, 2, 3, 3, 3, 6, 7, 7]
