"""What the command line's parser says of bad options, in one line with the option, what it must be, and what is near."""

import difflib
import re
from collections.abc import Collection

_WRONG = re.compile(
    r'Parser key "(?P<key>[\w.]+)": (?:'
    r"Expected an? (?P<kind>.+?)\. Got value: (?P<value>.*)|"
    r"Does not validate against any of the Union subtypes Subtypes: \[(?P<kinds>.+?)\] Errors: .*? Given value: (?P<given>.*))"
)
_UNKNOWN = re.compile(r"[Uu]nrecognized arguments: (?P<words>.*)")
_MISSING = re.compile(r"the following arguments are required: (?P<names>.*)")
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}


def explain(message: str, command: str, options: Collection[str], positional: Collection[str] = ()) -> str:
    """The message of jsonargparse, in our words where it is of a known kind. options, positional: the names that there are."""
    line = " ".join(message.split())
    if found := _WRONG.match(line):
        kinds = _kinds(found["kind"] or found["kinds"])
        value = found["value"] if found["kind"] else found["given"]
        return f"{found['key']}={value} must be {kinds}" if kinds else line
    if found := _UNKNOWN.search(line):
        word = found["words"].split()[0]
        if not word.startswith("--"):
            return f"{word!r} is one value too many; vrlvr {command} --help lists what it takes"
        name = word[2:].split("=")[0]
        near = difflib.get_close_matches(name, options, n=1, cutoff=0.0)
        return f"option --{name} does not exist; the nearest one is --{near[0]} (vrlvr {command} --help lists all)"
    if found := _MISSING.search(line):
        names = [name if name in positional else f"--{name}" for name in found["names"].split(", ")]
        return f"{' and '.join(names)} must be given; vrlvr {command} --help tells more"
    return line


def _kinds(said: str) -> str:
    """`<class 'int'>` and Literal's values in words; nothing if there is any other type."""
    literals = re.findall(r"typing\.Literal\[(.*?)\]", said)
    choices = [[choice.strip(" '") for choice in literal.split(",")] for literal in literals]
    classes = [name for name in re.findall(r"<class '(\w+)'>", said) if name != "NoneType"]
    if not (choices or classes) or any(name not in _KINDS for name in classes):
        return ""
    return " or ".join([*(f"one of {', '.join(choice)}" for choice in choices), *(_KINDS[name] for name in classes)])
