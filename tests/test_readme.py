"""What the README shows is what there is."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()


def test_the_configuration_shown_is_the_quickstarts() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert blocks[0] == (REPOSITORY / "configs/quickstart.yaml").read_text()


def test_every_command_shown_is_one() -> None:
    from infra.cli import _parser

    shown = set(re.findall(r"^    cloze (\w+) CONFIG", README, re.MULTILINE))
    choices = next(action.choices for action in _parser()._actions if action.choices)
    assert shown == set(choices)
