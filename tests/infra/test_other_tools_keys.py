from pathlib import Path

import pytest

from cloze.infra.other_tools_keys import KEY_HINTS
from cloze.infra.run_config import RunConfig
from cloze.pipeline.core.config import load
from cloze.pipeline.core.errors import UserError
from cloze.pipeline.core.unknown_keys import key_paths

CONFIG = Path(__file__).parents[2] / "configs/quickstart.yaml"


@pytest.mark.parametrize("alias", KEY_HINTS)
def test_a_hint_names_keys_that_exist_and_fits_on_a_line(alias: str) -> None:
    hint = KEY_HINTS[alias]
    assert set(hint.keys) <= set(key_paths(RunConfig))
    assert hint.keys or hint.note
    assert "\n" not in str(hint) and len(str(hint)) < 120


@pytest.mark.parametrize("alias", KEY_HINTS)
def test_a_hint_is_for_a_key_that_is_not_a_key_of_its_section(alias: str) -> None:
    assert alias not in RunConfig.model_fields
    assert f"pretrain.{alias}" not in key_paths(RunConfig)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "pretrain.per_device_train_batch_size=8",
            "unknown key; use pretrain.micro_batch_size or finetune.batch_size "
            "(the former per worker, the latter of all workers)",
        ),
        ("pretrain.gradient_checkpointing=true", "unknown key; use pretrain.activation_checkpointing"),
        ("finetune.authors.num_train_epochs=3", "unknown key; use finetune.epochs or pretrain.phases.steps or "),
        ("report_to=wandb", "unknown key; remove it (every run writes metrics.jsonl and TensorBoard files)"),
        (
            "pretrain.learning_rate=1e-4",
            "is not a key of this section; it belongs to pretrain.phases or pretrain.optimizer or finetune",
        ),
        ("seed=1", "is not a key of this section; it belongs to examples or pretrain or finetune"),
    ],
)
def test_a_key_of_another_program_is_answered_with_ours(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(RunConfig, CONFIG, [override])
    assert str(caught.value).startswith(f"{override}: {override.partition('=')[0].replace('authors', '0')}: {message}")


def test_a_key_of_another_program_is_named_with_its_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "more.yaml"
    file.write_text("pretrain:\n  fp16: true\n")
    with pytest.raises(UserError) as caught:
        load(RunConfig, CONFIG, [str(file)])
    assert str(caught.value) == (
        f"{file}:2: pretrain.fp16: unknown key; use pretrain.precision or finetune.precision (for example bf16)"
    )
