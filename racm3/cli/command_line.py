"""From the words of a command to a verb that runs, and from what becomes of it to an exit status."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from tyro.conf import OmitArgPrefixes
from tyro.extras import SubcommandApp

import racm3.cli.data_verbs as data_verbs
import racm3.cli.evaluate_verbs as evaluate_verbs
import racm3.cli.generate_verbs as generate_verbs
import racm3.cli.memory_verbs as memory_verbs
import racm3.cli.train_verbs as train_verbs
import racm3.cli.upkeep_verbs as upkeep_verbs
from racm3.cli.failures import complain, failure
from racm3.cli.option_types import PATHS
from racm3.cli.verb import Verb
from racm3.errors import ConfigError

MODULES = (generate_verbs, train_verbs, memory_verbs, upkeep_verbs, data_verbs, evaluate_verbs)
VERBS = {name: verb for module in MODULES for name, verb in Verb.known.items() if verb.__module__ == module.__name__}
"""Every verb by its words, in the order of the help."""
ABOUT = (
    "Retrieval-augmented multimodal language model: retrieve documents, then generate with them. "
    "The modules that RACM3_PLUGINS names, with commas between, are imported first."
)
GROUPS = {
    "train": "Train one of the models, or see what its training takes.",
    "memory": "Make a memory of documents, change it, search it, see what is in it.",
    "data": "Prepare data to train on.",
    "scenes": "The built-in world, Emoji Scenes.",
    "evaluate": "Measure how good the models are.",
}
MOVED = {
    "plan": "racm3 train plan",
    "scale plan": "racm3 memory plan",
    "scale embed": "racm3 memory add --workers N",
    "scale neighbours": "racm3 memory neighbours --workers N",
    "scale": "racm3 memory add --workers N, racm3 memory neighbours --workers N and racm3 memory plan",
    "import": "racm3 train generator DATA --out FOLDER --set init_from=FOLDER, which names the language model",
    "report": "python -m study",
}
"""How a verb was called, and how it is called now."""
MOVED_FLAGS = {"--grounding": "--context-aware"}
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
"""Keeps other libraries from talking, unless the environment says otherwise."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command, by default the process's own, and return its exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    for old in (" ".join(given[:2]), " ".join(given[:1])):
        if old in MOVED:
            return complain(f"racm3 {old} is now called {MOVED[old]}", 2)
    for flag in (word.partition("=")[0] for word in given):
        if flag in MOVED_FLAGS:
            return complain(f"{flag} is now called {MOVED_FLAGS[flag]}", 2)
    os.environ.update(QUIET | os.environ)
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.filterwarnings("ignore", module="(?!racm3)")
            import_plugins()
            verb: Verb = parser(VERBS).cli(
                args=given, prog="racm3", description=ABOUT, registry=PATHS, config=[OmitArgPrefixes]
            )
            status = verb.run() or 0
            sys.stdout.flush()  # here, where a closed pipe or a full disk is still answered
    except BaseException as error:
        return failure(error)
    return status


def import_plugins() -> None:
    """Import what registers presets, strategies and the like; the current folder is looked in as well."""
    modules = os.environ.get("RACM3_PLUGINS", "").replace(",", " ").split()
    if modules and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(f"RACM3_PLUGINS names {name!r}, which cannot be imported: {error}") from error


def parser(verbs: dict[str, type[Verb]]) -> SubcommandApp:
    """What parses the words of a command, for verbs of one word or of two."""
    app, groups = SubcommandApp(), dict[str, SubcommandApp]()
    for words, verb in verbs.items():
        group, _, name = words.rpartition(" ")
        if group and group not in groups:
            groups[group] = SubcommandApp()
            app.command(groups[group], name=group, help=GROUPS[group])
        command: Any = (groups[group] if group else app).command(name=name)
        command(verb)
    return app
