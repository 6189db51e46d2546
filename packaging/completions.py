#!/usr/bin/env python3
"""Completions for bash, zsh and fish, made from what `selvedge help` prints.

    completions.py BINARY            writes them into packaging/completions
    completions.py --check BINARY    compares them, and the manual page's commands and flags, with the binary; exit code 1 when one is behind
"""
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
MANUAL = HERE / "man" / "selvedge.1"
# What follows a flag, where it is not free text.
FOLDERS = {"resources-path", "components-path", "data-dir"}
FILES = {"config", "log-file", "password-file", "ca-file"}
SWITCHES = {
    "enable-app-health-check", "enable-metrics", "enable-api-logging", "log-as-json", "version", "build-info", "json", "app-ssl", "force", "help",
}
VALUES = {
    "app-protocol": "http h2c grpc",
    "log-level": "debug info warn error fatal",
    "disable-init-endpoints": "config subscribe",
    "mode": "standalone",
}
# Commands that take folders as arguments.
WITH_FOLDERS = {"check", "init"}


def described(binary):
    """Commands (name -> (words that may follow, what it does)) and flags that are served, from the help of the binary."""
    text = subprocess.run([binary, "help"], check=True, capture_output=True, text=True).stdout
    usage, _, flags = text.partition("\nflags ")
    commands, current = {}, None
    for line in usage.splitlines():
        command = re.match(r"selvedge ([a-z]+)(.*)", line)
        if command and command[1] != "the":
            current = command[1]
            # The description follows after two spaces, or on a line of its own.
            words, _, what = command[2].partition("  ")
            inside = re.match(r"\[(.*)\]$", words.strip())
            following = []
            for choice in (inside[1] if inside else "").split("|"):
                word = choice.split()[0] if choice.split() else ""
                if re.fullmatch(r"[a-z]+", word):
                    following.append(word)
            commands[current] = [following, what.strip()]
        elif current and line.startswith("   "):
            commands[current][1] = f"{commands[current][1]} {line.strip()}".strip()
        elif not line.startswith("   "):
            current = None
    served = re.findall(r"^  --([a-z0-9-]+)$", flags, re.M)
    if not commands or not served:
        raise SystemExit(f"{binary} help: found {len(commands)} commands and {len(served)} flags; its form has changed, and this script must follow")
    return commands, served


def head(comment):
    return f"{comment} Made by packaging/completions.py from `selvedge help`; change that, not this."


def bash(commands, flags):
    cases = [f"      {'|'.join(f'--{f}' for f in sorted(names))}) {action}; return ;;" for names, action in (
        (FOLDERS & set(flags), 'COMPREPLY=($(compgen -d -- "$current"))'),
        (FILES & set(flags), 'COMPREPLY=($(compgen -f -- "$current"))'),
    ) if names]
    cases += [f"      --{flag}) COMPREPLY=($(compgen -W '{words}' -- \"$current\")); return ;;" for flag, words in VALUES.items() if flag in flags]
    rest = sorted(set(flags) - FOLDERS - FILES - SWITCHES - set(VALUES))
    cases.append(f"      {'|'.join(f'--{f}' for f in rest)}) return ;;")
    following = [f"      {name}) words='{' '.join(words)}' ;;" for name, (words, _) in commands.items() if words]
    return "\n".join([
        head("#"),
        "_selvedge() {",
        "  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} words=''",
        "  COMPREPLY=()",
        "  if [[ $current == -* ]]; then",
        f"    COMPREPLY=($(compgen -W '{' '.join(f'--{f}' for f in flags)}' -- \"$current\"))",
        "    return",
        "  fi",
        "  case $previous in",
        *cases,
        "  esac",
        "  if [[ $COMP_CWORD -eq 1 ]]; then",
        f"    words='{' '.join(commands)}'",
        "  else",
        "    case ${COMP_WORDS[1]} in",
        f"      {'|'.join(sorted(WITH_FOLDERS & set(commands)))}) COMPREPLY=($(compgen -d -- \"$current\")); return ;;",
        *following,
        "    esac",
        "  fi",
        '  COMPREPLY=($(compgen -W "$words" -- "$current"))',
        "}",
        "complete -o filenames -F _selvedge selvedge",
        "",
    ])


def quoted(text):
    return text.replace("'", "'\\''").replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")


def zsh(commands, flags):
    def argument(flag):
        if flag in SWITCHES:
            return f"    '--{flag}'"
        action = "_files -/" if flag in FOLDERS else "_files" if flag in FILES else f"({VALUES[flag]})" if flag in VALUES else ""
        return f"    '*--{flag}=:{flag}:{action}'"

    following = [f"        {name}) compadd {' '.join(words)} ;;" for name, (words, _) in commands.items() if words]
    return "\n".join([
        "#compdef selvedge",
        head("#"),
        "_selvedge() {",
        "  local -a commands flags",
        "  commands=(",
        *[f"    '{name}:{quoted(what)}'" for name, (_, what) in commands.items()],
        "  )",
        "  flags=(",
        *[argument(flag) for flag in flags],
        "  )",
        "  local state",
        "  _arguments $flags '1: :->command' '*: :->rest'",
        "  case $state in",
        "    command) _describe command commands ;;",
        "    rest)",
        "      case $words[2] in",
        f"        {'|'.join(sorted(WITH_FOLDERS & set(commands)))}) _files -/ ;;",
        *following,
        "      esac",
        "      ;;",
        "  esac",
        "}",
        '_selvedge "$@"',
        "",
    ])


def fish(commands, flags):
    def plain(text):
        return text.replace("\\", "\\\\").replace("'", "\\'")

    lines = [head("#"), "complete -c selvedge -f"]
    lines += [f"complete -c selvedge -n __fish_use_subcommand -a {name} -d '{plain(what)}'" for name, (_, what) in commands.items()]
    for name, (words, _) in commands.items():
        if words:
            lines.append(f"complete -c selvedge -n '__fish_seen_subcommand_from {name}' -a '{' '.join(words)}'")
        if name in WITH_FOLDERS:
            lines.append(f"complete -c selvedge -n '__fish_seen_subcommand_from {name}' -a '(__fish_complete_directories)'")
    for flag in flags:
        if flag in SWITCHES:
            how = ""
        elif flag in FOLDERS:
            how = " -x -a '(__fish_complete_directories)'"
        elif flag in FILES:
            how = " -r -F"
        elif flag in VALUES:
            how = f" -x -a '{VALUES[flag]}'"
        else:
            how = " -x"
        lines.append(f"complete -c selvedge -l {flag}{how}")
    return "\n".join(lines) + "\n"


def made(binary):
    """File name -> text."""
    commands, flags = described(binary)
    return {"selvedge.bash": bash(commands, flags), "_selvedge": zsh(commands, flags), "selvedge.fish": fish(commands, flags)}


def manual_problems(binary):
    """What selvedge(1) lacks, or has and the binary lacks."""
    commands, flags = described(binary)
    text = MANUAL.read_text(encoding="utf-8")
    # Every command and every flag has an item of its own there.
    items = re.findall(r"^\.It (.*)$", text, re.M)
    told_flags = {m for item in items for m in re.findall(r"Fl Fl ([a-z0-9-]+)", item)}
    told_commands = {m for item in items for m in re.findall(r"^Nm Cm ([a-z]+)", item)}
    told_words = {m for item in items for m in re.findall(r"Cm ([a-z]+)", item)}
    for name, (words, _) in commands.items():
        if name not in told_commands:
            yield f"selvedge(1) lacks the command {name}"
        yield from (f"selvedge(1) lacks {name} {word}" for word in words if word not in told_words)
    yield from (f"selvedge(1) has the command {name}, which the binary lacks" for name in sorted(told_commands - set(commands)))
    yield from (f"selvedge(1) lacks --{flag}" for flag in flags if flag not in told_flags)
    yield from (f"selvedge(1) has --{flag}, which the binary does not serve" for flag in sorted(told_flags - set(flags)))


def problems(binary):
    """Everything that is behind the binary."""
    for name, text in made(binary).items():
        file = HERE / "completions" / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            yield f"packaging/completions/{name} is not what the binary's help makes: packaging/completions.py BINARY writes it anew"
    yield from manual_problems(binary)


def main():
    arguments = sys.argv[1:]
    check = arguments[:1] == ["--check"]
    if len(arguments) != 1 + check or arguments[-1].startswith("-"):
        sys.exit(__doc__)
    if not check:
        for name, text in made(arguments[-1]).items():
            (HERE / "completions" / name).write_text(text, encoding="utf-8")
        return
    found = list(problems(arguments[-1]))
    for problem in found:
        print(problem)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
