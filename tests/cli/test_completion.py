"""`fare-hf completion`, in a real bash, and in a real zsh where there is one."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from fare_hf.cli.main import COMMANDS, OF_A_TRAINING, main

ASK = 'COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}}-1)); _fare_hf; echo "${{COMPREPLY[@]}}"'
CASES = {
    "fare-hf tr": "train",
    "fare-hf train --res": "--resume_from_checkpoint",
    "fare-hf train --norm ''": "linf l2",
    "fare-hf train --embedding t": "tokens",
    "fare-hf convert --to op": "open_clip",
    "fare-hf completion ''": "bash zsh",
    "fare-hf push --no": "--no-private",
    "fare-hf swap ''": "",
}
"""Words typed so far, the last one unfinished -> what is offered; nothing: the shell's own file names."""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh"):
        with (folder / shell).open("w") as file, redirect_stdout(file):
            main(["completion", shell])
    return folder


def test_bash_completes_commands_options_and_choices(scripts: Path) -> None:
    asked = "\n".join(ASK.format(words=words) for words in ["fare-hf ''", *CASES])
    lines = [f"source {scripts / 'bash'}", "complete -p fare-hf", asked]
    found = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True)
    registered, commands, *said = found.stdout.split("\n")
    assert found.stderr == "" and registered == "complete -o default -F _fare_hf fare-hf"
    assert set(commands.split()) == {*COMMANDS, *OF_A_TRAINING}
    assert dict(zip(CASES, said, strict=False)) == CASES


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh_reads_the_same_script(scripts: Path) -> None:
    """Its `bashcompinit` sets the words as bash does."""
    asked = "\n".join(ASK.format(words=words) for words in CASES)
    text = (
        f"setopt KSH_ARRAYS SH_WORD_SPLIT\nautoload -U compinit && compinit -u -D\nsource {scripts / 'zsh'}\n{asked}"
    )
    found = subprocess.run(["zsh", "-f", "-c", text], capture_output=True, text=True)
    assert found.stderr == ""
    for (typed, offered), said in zip(CASES.items(), found.stdout.split("\n"), strict=False):
        # It offers what begins as what is typed, and leaves that to the shell.
        begun = shlex.split(typed)[-1]
        assert " ".join(word for word in said.split() if word.startswith(begun)) == offered
