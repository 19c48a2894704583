"""Chooses compilers and flags for sparsevae_ext._C and runs ninja. Called by setup.py.

torch.utils.cpp_extension is not used: it refuses to compile CUDA under a CPU build of torch, while on
LibTorch's stable ABI one object, built against either, loads under both.

Environment:
    SPARSEVAE_EXT_CUDA=auto|0|1   auto compiles the CUDA kernels when an nvcc is found (default)
    TORCH_CUDA_ARCH_LIST          e.g. "8.0 9.0+PTX"; default: what the toolkit and the kernels support
    CUDA_HOME                     the toolkit to use; default: CUDA_PATH, the nvcc on PATH, /usr/local/cuda
    MAX_JOBS                      compile jobs; default: from cores and free memory
    SPARSEVAE_EXT_CXXFLAGS        more flags for the C++ files (sanitizers)
    SPARSEVAE_EXT_CXXFLAGS_AVX2   the same for the files of one instruction set, after its own; or _AVX512
    SPARSEVAE_EXT_STRICT_CUDA     1: nvcc's warnings, spills, stray doubles are errors; see strict_cuda.py
    SPARSEVAE_EXT_TORCH_DIR       a torch package folder (include/, lib/); default: the torch installed here
    SPARSEVAE_EXT_LOCAL_VERSION   e.g. cu130 makes the version 0.1.0+cu130; must be what is built
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import strict_cuda

TORCH_TARGET_VERSION = "0x020a000000000000"  # 2.10, the first with a versioned stable ABI
MINIMUM_TORCH = (2, 10)
ISA_FLAGS = {
    "avx2": "-mavx2 -mfma -mf16c",
    # -Wno: g++ 12 warns about its own header of intrinsics.
    "avx512": "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c "
    "-Wno-maybe-uninitialized -Wno-uninitialized",
}
GIB_PER_JOB = 1.5
BUILD_TOOLS = ("tools/extension_build.py", "tools/strict_cuda.py")


def find_nvcc() -> Path | None:
    """The nvcc of CUDA_HOME, CUDA_PATH, PATH or /usr/local/cuda, in this order."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [Path(home) / "bin" / "nvcc" for home in homes if home]
    on_path = shutil.which("nvcc")
    if on_path:
        candidates.append(Path(on_path))
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    return next((path for path in candidates if path.is_file()), None)


def cuda_wanted() -> Path | None:
    """The nvcc to use, or None for a CPU build; an error when CUDA is demanded and nvcc missing."""
    choice = os.environ.get("SPARSEVAE_EXT_CUDA", "auto").strip().lower()
    if choice not in ("auto", "0", "1"):
        raise SystemExit(f"SPARSEVAE_EXT_CUDA: expected auto, 0 or 1, but got {choice!r}")
    nvcc = None if choice == "0" else find_nvcc()
    if choice == "1" and nvcc is None:
        raise SystemExit(
            "SPARSEVAE_EXT_CUDA=1, but no nvcc was found: set CUDA_HOME to a CUDA toolkit (12.0 or "
            "newer) or set SPARSEVAE_EXT_CUDA=0 for a build without the CUDA kernels"
        )
    return nvcc


def cuda_version(nvcc: Path) -> tuple[int, int]:
    """(major, minor) of the toolkit."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"release (\d+)\.(\d+)", text)
    if not match:
        raise SystemExit(f"cannot read the CUDA version from `{nvcc} --version`: {text.strip()!r}")
    return int(match[1]), int(match[2])


def cuda_paths(nvcc: Path) -> tuple[Path, Path]:
    """(include, lib) folders of the toolkit; nvcc may be a wrapper, so it is asked where it lives."""
    text = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull],
        capture_output=True,
        text=True,
    ).stderr
    match = re.search(r"^#\$ TOP=(.+)$", text, re.MULTILINE)
    home = Path(match[1].strip()) if match else nvcc.resolve().parent.parent
    home = home if home.is_absolute() else (nvcc.resolve().parent / home)
    home = home.resolve()
    for include in (home / "include", home / "targets" / f"{platform.machine()}-linux" / "include"):
        if (include / "cuda_runtime.h").is_file():
            break
    else:
        raise SystemExit(f"no cuda_runtime.h under {home}: is the CUDA toolkit complete?")
    debian = (
        home / "lib" / f"{platform.machine()}-linux-gnu"
    )  # and Ubuntu: the toolkit lies in /usr
    for lib in (home / "lib64", home / "lib", include.parent / "lib", debian):
        if (lib / "libcudart_static.a").is_file():
            return include, lib
    raise SystemExit(f"no libcudart_static.a under {home}: is the CUDA toolkit complete?")


def system_include(folder: Path) -> list[str]:
    """The flag for the toolkit's headers; Debian's are where every compiler looks.

    Named in a flag, that folder would come before the one of the C++ headers, which then miss its stdlib.h.
    """
    return [] if folder == Path("/usr/include") else [f"-isystem{folder}"]


def local_version() -> str:
    """The local part of the version: "" or "cu130"; only a release asks for one."""
    local = os.environ.get("SPARSEVAE_EXT_LOCAL_VERSION", "").strip()
    if local and not re.fullmatch(r"cu\d{3}", local):
        raise SystemExit(
            f"SPARSEVAE_EXT_LOCAL_VERSION: expected nothing or cu and three digits, but got {local!r}"
        )
    return local


def check_local_version(local: str, nvcc: Path | None) -> None:
    """A version may not name a CUDA that is not the one compiled in."""
    if not local:
        return
    built = "cu{}{}".format(*cuda_version(nvcc)) if nvcc else "a build without CUDA"
    if built != local:
        raise SystemExit(
            f"SPARSEVAE_EXT_LOCAL_VERSION={local}, but this would be {built}: set CUDA_HOME to the "
            "toolkit of that version"
        )


def torch_home() -> tuple[Path, str]:
    """(folder, version) of the torch whose headers are used; it is never imported.

    Only include/, libtorch_cpu and libc10 of it are read, and none of them depends on Python or on CUDA,
    so that the folder may be another Python's, or of a torch whose own dependencies are missing.
    """
    wish = os.environ.get("SPARSEVAE_EXT_TORCH_DIR")
    if wish:
        home = Path(wish)
    else:
        spec = importlib.util.find_spec("torch")
        if spec is None or spec.origin is None:
            raise SystemExit(
                "sparsevae_ext needs torch's headers to build, and torch is not installed here. "
                "Install torch>=2.10 first, then: pip install --no-build-isolation sparsevae-ext"
            )
        home = Path(spec.origin).parent
    home = home.resolve()
    try:
        text = (home / "version.py").read_text()
    except OSError as error:
        raise SystemExit(f"no torch package in {home}: {error}") from None
    match = re.search(r"^__version__ = '(.+)'$", text, re.MULTILINE)
    version = match[1] if match else "unknown"
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers and (int(numbers[1]), int(numbers[2])) < MINIMUM_TORCH:
        raise SystemExit(
            f"sparsevae_ext needs torch >= 2.10 to build, but {home} is torch {version}"
        )
    return home, version


def architectures(version: tuple[int, int]) -> list[str]:
    """TORCH_CUDA_ARCH_LIST's notation: ["8.0", "9.0", "12.0+PTX"]."""
    wish = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if wish:
        for arch in wish:
            if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", arch):
                raise SystemExit(
                    f"TORCH_CUDA_ARCH_LIST: expected numbers such as 8.0 or 9.0+PTX, but got {arch!r}"
                )
        return wish
    return default_architectures(version)


def default_architectures(version: tuple[int, int]) -> list[str]:
    """One per generation, and PTX for what is newer; a release names more (wheel_matrix.json)."""
    return ["8.0", "9.0", "10.0+PTX"] if version >= (12, 8) else ["8.0", "9.0+PTX"]


def gencode_flags(archs: list[str]) -> list[str]:
    """Nvcc's -gencode flags for TORCH_CUDA_ARCH_LIST's notation."""
    flags = []
    for arch in archs:
        number = arch.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def cuda_flags(archs: list[str]) -> list[str]:
    """Nvcc's flags for every .cu file."""
    flags = ["-O3", "-lineinfo", "-std=c++20", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
    return [*flags, *gencode_flags(archs)]


def object_name(source: Path, csrc: Path) -> str:
    """The object's name in its folder."""
    return str(source.relative_to(csrc)).replace("/", "_") + ".o"


def isa_flags(source: Path) -> str:
    """The instruction set that a file is compiled for, from the end of its name; "" for the baseline."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return ""
    for isa, flags in ISA_FLAGS.items():
        if source.stem.endswith(f"_{isa}"):
            return f"{flags} {os.environ.get(f'SPARSEVAE_EXT_CXXFLAGS_{isa.upper()}', '')}".rstrip()
    return ""


def jobs() -> int:
    """MAX_JOBS, or as many as cores and free memory allow."""
    if os.environ.get("MAX_JOBS"):
        return max(1, int(os.environ["MAX_JOBS"]))
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        meminfo = Path("/proc/meminfo").read_text()
        gib = int(re.search(r"MemAvailable:\s+(\d+)", meminfo)[1]) / 2**20  # type: ignore[index]
    except (OSError, TypeError):
        gib = 4.0
    return max(1, min(cores, int(gib / GIB_PER_JOB)))


def commit(root: Path) -> str:
    """The commit that is built, with "+dirty" when sources differ from it; an sdist carries its own."""
    kept = root / "COMMIT"
    if kept.is_file():
        return kept.read_text().strip()

    def git(*args: str) -> str:
        out = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True)
        return out.stdout.strip() if out.returncode == 0 else ""

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        dirty = git("status", "--porcelain", "--", "csrc", "setup.py", *BUILD_TOOLS)
    except OSError:
        return "unknown"
    return (head + ("+dirty" if dirty else "")) if head else "unknown"


def write_if_changed(path: Path, text: str) -> None:
    """Keeps the time stamp of a file whose content stays, so that ninja sees nothing to do."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def ninja_path(path: Path | str) -> str:
    """A path in ninja's own escaping."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def build_tools() -> tuple[str, list[str]]:
    """(pybind11's include folder, the command for ninja); one message for what is missing.

    The Python package's ninja comes first: another version's log would make it compile all again.
    """
    packages = {name: importlib.util.find_spec(name) is not None for name in ("pybind11", "ninja")}
    binary = None if packages["ninja"] else shutil.which("ninja")
    missing = [
        name for name, there in packages.items() if not there and not (name == "ninja" and binary)
    ]
    if missing:
        raise SystemExit(
            f"building sparsevae_ext without build isolation also needs {' and '.join(missing)}: "
            "pip install setuptools ninja pybind11"
        )
    import pybind11

    return pybind11.get_include(), [binary] if binary else [sys.executable, "-m", "ninja"]


def build(root: Path, target: Path, build_root: Path) -> None:
    """Compiles csrc/ into `target`.

    Few objects know of Python, and only those of csrc/cuda know of CUDA. The others lie in one folder per
    machine and serve every Python, with and without CUDA: a wheel more costs two files and a link.
    """
    torch_dir, torch_version = torch_home()
    pybind11_include, ninja = build_tools()
    nvcc = cuda_wanted()
    check_local_version(local_version(), nvcc)
    cxx = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if not cxx:
        raise SystemExit("no C++ compiler was found: install g++ or set CXX")
    csrc = root / "csrc"
    python = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    variant = f"{python}-{'cuda' if nvcc else 'cpu'}"
    work = build_root / platform.machine()
    work.mkdir(parents=True, exist_ok=True)

    cxx_version = subprocess.run(
        [*cxx.split(), "--version"], capture_output=True, text=True, check=True
    )
    facts: dict[str, object] = {
        "torch": torch_version,
        "torch_target": "2.10",
        "python": platform.python_version(),
        "compiler": cxx_version.stdout.splitlines()[0],
        "commit": commit(root),
        "cuda": None,
        "cuda_archs": [],
    }
    more_flags = os.environ.get("SPARSEVAE_EXT_CXXFLAGS", "")
    cxx_flags = [
        "-O3 -g1 -std=c++20 -fPIC -fvisibility=hidden -ffp-contract=off",
        "-Wall -Wextra -Wno-unused-parameter -Wno-missing-field-initializers",
        f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
        f"-isystem {ninja_path(torch_dir / 'include')}",
        more_flags,
    ]
    # The build facts' folder is not a system one: ninja must see that the header changed.
    python_flags = (
        f"-isystem {ninja_path(sysconfig.get_paths()['include'])} "
        f"-isystem {ninja_path(pybind11_include)} -I{ninja_path(work / variant)}"
    )
    libs = [f"-L{ninja_path(torch_dir / 'lib')}", "-ltorch_cpu", "-lc10"]
    # (source, folder of its object, further flags)
    units: list[tuple[Path, str, str]] = []
    for folder in (".", "host"):
        units += [(path, variant, python_flags) for path in sorted((csrc / folder).glob("*.cpp"))]
    for folder in ("ops", "cpu", "cpu/isa"):
        units += [
            (path, "common", isa_flags(path)) for path in sorted((csrc / folder).glob("*.cpp"))
        ]
    nvcc_flags: list[str] = []
    strict = strict_cuda.wanted()
    if nvcc:
        version = cuda_version(nvcc)
        archs = architectures(version)
        include, lib = cuda_paths(nvcc)
        facts["cuda"] = "{}.{}".format(*version)
        facts["cuda_archs"] = archs
        folder = strict_cuda.cuda_folder(version, strict)
        glue_flags = " ".join(["-DUSE_CUDA", *map(ninja_path, system_include(include))])
        units += [(path, folder, glue_flags) for path in sorted((csrc / "cuda").glob("*.cpp"))]
        for path in sorted((csrc / "cuda").glob("*.cu")):
            units.append((path, folder, " ".join(strict_cuda.strict_flags(path) if strict else [])))
        nvcc_flags = cuda_flags(archs)
        libs += [f"-L{ninja_path(lib)}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]

    write_if_changed(
        work / variant / "sparsevae_build_facts.h",
        '#pragma once\n#define SPARSEVAE_BUILD_FACTS R"json(' + json.dumps(facts) + ')json"\n',
    )
    nvcc_command = "$nvcc -MMD -MF $out.d $cudaflags -c $in -o $out"
    if strict:
        # The same text for every Python, or else a wheel for another one would compile all again.
        nvcc_command = '"$$SPARSEVAE_EXT_PYTHON" $strict_cuda $in $out $nvcc $cudaflags $more'
    lines = [
        "ninja_required_version = 1.3",
        f"cxx = {cxx}",
        f"nvcc = {nvcc or ''}",
        f"strict_cuda = {ninja_path(Path(strict_cuda.__file__))}",
        f"cxxflags = {' '.join(cxx_flags)}",
        f"cudaflags = {' '.join(nvcc_flags)}",
        "more =",
        "rule cxx",
        "  command = $cxx -MMD -MF $out.d $cxxflags $more -c $in -o $out",
        "  description = c++ $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule cuda",
        f"  command = {nvcc_command}",
        "  description = nvcc $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        # Not stripped of symbols it uses, but none of its own are exported except the module's entry.
        f"  command = $cxx -shared {more_flags} $in -o $out " + " ".join(libs),
        "  description = link $out",
        "",
    ]
    objects = []
    for source, folder, more in units:
        objects.append(ninja_path(f"{folder}/{object_name(source, csrc)}"))
        rule = "cuda" if source.suffix == ".cu" else "cxx"
        lines += [f"build {objects[-1]}: {rule} {ninja_path(source)}", f"  more = {more}"]
    built = work / variant / "_C.so"
    product = ninja_path(built.relative_to(work))
    lines += [f"build {product}: link {' '.join(objects)}", f"default {product}", ""]
    write_if_changed(work / "build.ninja", "\n".join(lines))

    n_jobs = jobs()
    cuda_text = (
        f"CUDA {facts['cuda']} ({nvcc}) for {' '.join(facts['cuda_archs'])}" if nvcc else "no CUDA"
    )  # type: ignore[arg-type]
    print(
        f"sparsevae_ext: {len(units)} files, {n_jobs} jobs, {facts['compiler']}, "
        f"headers of torch {facts['torch']} (runs with torch >= 2.10), {cuda_text}",
        flush=True,
    )
    env = os.environ | {"SPARSEVAE_EXT_PYTHON": sys.executable}
    if subprocess.run([*ninja, "-C", str(work), f"-j{n_jobs}"], env=env).returncode:
        raise SystemExit("sparsevae_ext: compiling the extension failed; the first error is above")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists() or target.stat().st_mtime_ns != built.stat().st_mtime_ns:
        # Replace, never write into a file that a running process may have mapped.
        partial = target.with_name(target.name + ".partial")
        shutil.copy2(built, partial)
        os.replace(partial, target)
