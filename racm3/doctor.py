"""``racm3 doctor``: what is installed, what is broken, what this machine can do, and what to do about it.

Every check returns findings and changes nothing; ``examine`` runs them all, ``doctor`` prints them.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from racm3.model_folder import SCENES, SHIPPED

MODULES = {"pillow": "PIL", "pylance": "lance"}
"""Name to import where it differs from the distribution's."""


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``broken``: something that is needed does not work; ``note``: it could be better."""

    level: Literal["ok", "note", "broken"]
    what: str
    found: str
    cure: str = ""


def packages(requirements: Iterable[str]) -> list[Finding]:
    """One finding for each requirement (``torch>=2.6``): its version, or why it cannot be used."""
    return [_package(Requirement(line)) for line in requirements]


def _package(requirement: Requirement) -> Finding:
    name, wanted = requirement.name, f"{requirement.name}{requirement.specifier}"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding("broken", name, "is not installed", f"pip install '{wanted}'")
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding("broken", name, f"{version} is installed, {wanted} is needed", f"pip install '{wanted}'")
    try:
        importlib.import_module(MODULES.get(name, name))
    except Exception as error:  # a broken package fails to import in any way it likes
        return Finding("broken", name, f"{version} {_why(error)}", f"pip install --force-reinstall '{wanted}'")
    return Finding("ok", name, version)


def torchvision() -> Finding:
    """racm3 never uses torchvision, but transformers imports it where it is installed."""
    try:
        version = importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return Finding("ok", "torchvision", "is not installed, and not needed")
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # as above; most often a build for another torch
        found = f"{version} {_why(error)}, which breaks the encoder (transformers' CLIPModel)"
        return Finding("broken", "torchvision", found, "racm3 does not need it: pip uninstall torchvision")
    return Finding("ok", "torchvision", f"{version} can be imported")


def _why(error: Exception) -> str:
    first_line = (str(error).splitlines() or [""])[0]
    return f"is installed but cannot be imported ({type(error).__name__}: {first_line})"


def device() -> Finding:
    """Where tensors can live besides the CPU."""
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found = f"{torch.cuda.device_count()} x {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        return Finding("ok", "device", f"cuda: {found}")
    if torch.backends.mps.is_available():
        return Finding("ok", "device", "mps (Apple GPU)")
    if torch.version.cuda is not None:
        cure = "check the driver with nvidia-smi; without a GPU this is fine"
        return Finding("note", "device", f"cpu, although torch is built for CUDA {torch.version.cuda}", cure)
    return Finding("ok", "device", "cpu (this torch is built without CUDA)")


def threads() -> Finding:
    """Threads that torch computes with, against the cores that this process may use."""
    import torch

    used, cores = torch.get_num_threads(), usable_cores()
    found = f"{used} for {cores} usable core{'s' if cores > 1 else ''}"
    if used > cores:
        return Finding("note", "threads", f"{found}: they wait for each other", f"export OMP_NUM_THREADS={cores}")
    if used < cores:
        return Finding("note", "threads", f"{found}: the rest idles", f"export OMP_NUM_THREADS={cores}, or unset it")
    return Finding("ok", "threads", found)


def usable_cores() -> int:
    """Cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def processor() -> Finding:
    """Vector instructions that torch uses, and whether bfloat16 is multiplied in hardware."""
    import torch

    from racm3.training.loop import native_bfloat16

    vectors = torch.backends.cpu.get_cpu_capability()
    fast_bf16 = native_bfloat16()
    found = f"{platform.machine()}, {vectors}, bfloat16 {'in hardware' if fast_bf16 else 'emulated'}"
    if platform.machine() in ("x86_64", "AMD64") and vectors in ("DEFAULT", "NO AVX"):
        return Finding("note", "cpu", found, "without AVX2 everything is several times slower; use a newer machine")
    if not fast_bf16:
        return Finding("note", "cpu", found, "training takes float32 here (loop.dtype=auto), which is slower but right")
    return Finding("ok", "cpu", found)


def compiler() -> Finding:
    """Whether decoding can compile its step."""
    from racm3.generator.native import compiled

    if compiled(4) is None:
        found = "none that compiles the decoding step, which takes about twice as long without"
        return Finding("note", "C compiler", found, "install one, such as gcc (Debian: apt-get install gcc)")
    return Finding("ok", "C compiler", "compiles the decoding step")


def weights(folder: Path = SCENES) -> list[Finding]:
    """One finding for each shipped model: whether its tensors can be read, with their number and size."""
    return [_model(folder / name) for name in SHIPPED]


def _model(folder: Path) -> Finding:
    import safetensors

    what, cure = f"weights of {folder.name}", "install racm3 again, or train it: racm3 train --help"
    path = folder / "model.safetensors"
    if not path.is_file():
        return Finding("broken", what, f"there is no file {path}", cure)
    try:
        with safetensors.safe_open(path, framework="numpy") as tensors:
            count = len(tensors.keys())
    except (OSError, safetensors.SafetensorError) as error:
        return Finding("broken", what, f"{path} cannot be read: {error}", cure)
    if not (folder / "config.json").is_file():
        return Finding("broken", what, f"there is no file {folder / 'config.json'}", cure)
    return Finding("ok", what, f"{count} tensors, {path.stat().st_size / 1e6:.1f} MB")


def glyphs() -> list[Finding]:
    """The drawings of the built-in world, and whether they could be remade here."""
    from racm3.scenes.glyphs import FONT, load_glyphs

    try:
        drawings = Finding("ok", "glyphs", f"{len(load_glyphs().names)} entities")
    except Exception as error:  # a missing file, a damaged one, a Pillow without WebP
        cure = "install racm3 again, and a Pillow with WebP"
        drawings = Finding("broken", "glyphs", f"cannot be read ({error})", cure)
    missing = [] if FONT.exists() else [f"no font {FONT} (Debian: apt-get install fonts-noto-color-emoji)"]
    missing += [] if importlib.util.find_spec("emoji") else ["no emoji package (pip install 'racm3[scenes]')"]
    if missing:
        return [drawings, Finding("note", "remaking glyphs", "; ".join(missing), "only needed for racm3 scenes glyphs")]
    return [drawings, Finding("ok", "remaking glyphs", "font and emoji package are there")]


def examine() -> list[Finding]:
    """All findings. A check that itself fails because a package is broken is left out: the package is reported."""
    found = [Finding("ok", "python", f"{platform.python_version()} at {sys.executable}")]
    try:
        lines = [line for line in importlib.metadata.requires("racm3") or () if "extra ==" not in line]
        found += packages(lines)
    except importlib.metadata.PackageNotFoundError:
        found.append(Finding("broken", "racm3", "is not installed, only found in this folder", "pip install -e ."))
    checks: list[Callable[[], Finding | list[Finding]]] = [
        torchvision,
        device,
        threads,
        processor,
        compiler,
        weights,
        glyphs,
    ]
    for check in checks:
        try:
            result = check()
        except (ImportError, OSError):
            continue
        found += result if isinstance(result, list) else [result]
    return found


def doctor() -> int:
    """Print the findings; 1 if something that is needed is broken, else 0."""
    findings = examine()
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        print(f"{finding.level:<6}  {finding.what:<{width}}  {finding.found}")
        if finding.cure:
            print(f"{'':<6}  {'':<{width}}  -> {finding.cure}")
    broken = [finding.what for finding in findings if finding.level == "broken"]
    print(f"\nbroken: {', '.join(broken)}" if broken else "\nnothing that is needed is broken")
    return 1 if broken else 0
