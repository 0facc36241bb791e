"""What the command line says of itself: settings, versions, benchmarks, completion for bash."""

from __future__ import annotations

import ast
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from framework.config import CONF, group_options, setting_keys
from framework.errors import UserError
from framework.keys import like

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "jobs" / "bench"
PACKAGES = ("torch", "vllm", "deepspeed", "ray", "transformers")


def describe_keys(words: Sequence[str], config_dir: Path | None = None) -> str:
    """Return the settings of a job, two lines each; a word without "=" is the beginning of those that are wanted.

    Raises UserError, with what is near, if none begins so.
    """
    prefixes = [word for word in words if "=" not in word and not word.startswith("~")]
    keys = setting_keys([word for word in words if word not in prefixes], config_dir)
    chosen = [key for key in keys if not prefixes or any(key.name.startswith(prefix) for prefix in prefixes)]
    if not chosen:
        near = like(prefixes[0].rpartition(".")[2], (key.name for key in keys))
        groups = sorted({key.name.partition(".")[0] for key in keys})
        hint = f"did you mean {', '.join(near[:4])}? " if near else ""
        raise UserError("PREFIX", prefixes[0], f"{hint}settings begin with {', '.join(groups)}")
    return "\n".join(map(str, chosen))


def describe_version() -> str:
    """Return the versions of this code and of the engines under it, in one line."""
    parts = [f"framework {_version('framework')}", *_commit(), f"Python {platform.python_version()}"]
    return ", ".join([*parts, *(f"{name} {_version(name)}" for name in PACKAGES)])


def benchmarks() -> dict[str, str]:
    """Return the benchmarks by name, with the first line of what each says of itself; none is imported."""
    files = sorted(file for file in BENCHMARKS.glob("*.py") if not file.stem.startswith("_"))
    docs = {file.stem: ast.get_docstring(ast.parse(file.read_text())) or "" for file in files}
    return {name: doc.strip().partition("\n")[0] for name, doc in docs.items()}


def completion(commands: Sequence[str]) -> str:
    """Return a bash script that completes commands, benchmarks, groups with their options, and settings."""
    groups = sorted(str(folder.relative_to(CONF)) for folder in CONF.rglob("*") if folder.is_dir())
    words = {f"{group}={option}" for group in groups for option in group_options(group)}
    for job in group_options("job"):
        words |= {f"{key.name}=" for key in setting_keys([f"job={job}"]) if "[]" not in key.name}
    return f"""# eval "$(framework completion bash)"
_framework() {{
    local word="${{COMP_LINE:0:COMP_POINT}}" IFS=$'\\n'
    word="${{word##* }}"
    case "$COMP_CWORD:${{COMP_WORDS[1]}}" in
        1:*) COMPREPLY=($(compgen -W $'{_listed(commands)}' -- "$word")) ;;
        *:bench) COMPREPLY=($(compgen -W $'{_listed(benchmarks())}' -- "$word")) ;;
        *:plan|*:run|*:submit|*:keys) COMPREPLY=($(compgen -W $'{_listed(sorted(words))}' -- "$word")) ;;
        *) COMPREPLY=($(compgen -f -- "$word")) ;;
    esac
    # bash takes "=" for the end of a word: give back only what is behind the last one.
    [[ $word == *=* && $COMP_WORDBREAKS == *=* ]] && COMPREPLY=("${{COMPREPLY[@]#"${{word%"${{word##*=}}"}}"}}")
    [[ ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace
    return 0
}}
complete -F _framework framework"""


def _listed(words: Sequence[str] | dict[str, str]) -> str:
    return "\\n".join(words)


def _version(package: str) -> str:
    for name in (package, f"{package}-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "not installed"


def _commit() -> list[str]:
    """The commit that this code lies at, if it lies in a repository."""
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [f"commit {done.stdout.strip()}"]
