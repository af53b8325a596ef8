# SPDX-License-Identifier: Apache-2.0
"""Builds the native library with CMake, one definition for Python and C++ people.

Without CMake, a compiler or torch at build time the package installs all the same, says so here and in
`dit-fast info`, and runs on its Python backends. A compiler that fails is an error.
"""

import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class BuildNative(build_ext):
    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"  # one file for every Python

    def build_extension(self, ext: Extension) -> None:
        build = Path(self.build_temp).resolve()
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        configure = ["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"]
        target.unlink(missing_ok=True)  # a library of an older build must not pass for this one's
        try:
            subprocess.run(configure, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            self.warn(f"the native library was NOT built ({error}); dit_fast will run on its Python backends only")
            return
        subprocess.run(["cmake", "--build", str(build), "--target", "dit_fast_native"], check=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(build / "_native.so"), str(target))


class AnyPythonWheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]  # the stable ABI of torch, none of Python


class PlatformDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return True


setup(
    ext_modules=[Extension("dit_fast._native", sources=[])],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": AnyPythonWheel},
    distclass=PlatformDistribution,
)
