"""Builds sparsevae_ext._C. Everything else about the package is static metadata in pyproject.toml."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

import extension_build  # noqa: E402  (tools/ is not on the path of an isolated build)


class NinjaBuildExt(build_ext):
    """Compiles csrc/ with ninja; nvcc is called directly, so no CUDA build of torch is needed."""

    def build_extension(self, ext: Extension) -> None:
        if importlib.util.find_spec("torch") is None:
            raise SystemExit(
                "sparsevae_ext needs torch's headers to build, and torch is not installed here. "
                "Install torch>=2.10 first, then: pip install --no-build-isolation sparsevae-ext"
            )
        target = Path(self.get_ext_fullpath(ext.name))
        build_dir = os.environ.get("SPARSEVAE_EXT_BUILD_DIR", ROOT / "build")
        extension_build.build(ROOT, target, Path(build_dir))


setup(
    ext_modules=[Extension("sparsevae_ext._C", sources=[])],
    cmdclass={"build_ext": NinjaBuildExt},
)
