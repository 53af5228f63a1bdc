"""Builds the CUDA kernels with CMake where there is an nvcc; the rest of the metadata is in pyproject.toml."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

OLDEST_NVCC = (12, 8)


def find_nvcc() -> str | None:
    """nvcc as CUDACXX, PATH or CUDA_HOME have it, in this order."""
    home = os.environ.get("CUDA_HOME")
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or (home and shutil.which("nvcc", path=f"{home}/bin"))


def unsupported_reason(nvcc: str | None) -> str | None:
    """Why the CUDA kernels cannot be compiled, or None."""
    if nvcc is None:
        return "no nvcc on PATH, in CUDA_HOME or in CUDACXX"
    version = re.search(r"release (\d+)\.(\d+)", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)
    if version is None or tuple(map(int, version.groups())) < OLDEST_NVCC:
        return f"{nvcc} is {version[0] if version else 'of an unknown release'}, sm_120a needs 12.8"
    return None


class CMakeBuild(build_ext):
    """Lets CMake build the extension where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target, build = Path(self.get_ext_fullpath(ext.name)).resolve(), Path(self.build_temp).resolve()
        settings = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_CUDA_COMPILER": find_nvcc(),
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": target.parent,
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
        }
        if "DLLM_CUDA_ARCHS" in os.environ:
            settings["DLLM_CUDA_ARCHS"] = os.environ["DLLM_CUDA_ARCHS"]
        # A build folder remembers the last choice of architectures; -U makes it forget.
        options = ["-UDLLM_CUDA_ARCHS", *(f"-D{name}={value}" for name, value in settings.items())]
        source = Path(__file__).resolve().parent
        subprocess.run(["cmake", "-S", source, "-B", build, "-G", "Ninja", *options], check=True)
        subprocess.run(["cmake", "--build", build], check=True)


reason = unsupported_reason(find_nvcc())
if reason:
    print(f"dllm-kernels: installing without the CUDA kernels, Triton and PyTorch serve instead: {reason}")
setup(
    ext_modules=[] if reason else [Extension("dllm_kernels._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
