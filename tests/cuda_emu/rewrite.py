"""Turns the two constructs of CUDA C++ that no macro can reach into plain C++.

``kernel<T><<<grid, block, shared, stream>>>(args)`` becomes a call of ``cuda_emu::launch`` and
``extern __shared__ T x[];`` a pointer to the emulated dynamic shared memory. Everything else of a
.cu file is compiled as it stands.
"""

from __future__ import annotations

import re

_DYNAMIC_SHARED = re.compile(r"extern\s+__shared__\s+(?:__align__\(\d+\)\s+)?([\w:]+)\s+(\w+)\[\];")


def _closing(text: str, start: int) -> int:
    """Position of the parenthesis that closes the one at ``start``."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    raise ValueError("unbalanced parentheses in a kernel launch")


def _split_arguments(text: str) -> list[str]:
    """Splits at the commas that are not inside brackets."""
    parts, depth = [""], 0
    for ch in text:
        depth += (ch in "([{") - (ch in ")]}")
        if ch == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += ch
    return [part.strip() for part in parts]


def _kernel_start(text: str, end: int) -> int:
    """Start of the kernel's name, template arguments included, that ends before ``end``."""
    while text[end - 1].isspace():
        end -= 1
    if text[end - 1] == ">":
        depth = 0
        while True:
            end -= 1
            depth += (text[end] == ">") - (text[end] == "<")
            if depth == 0:
                break
    while re.match(r"[\w:]", text[end - 1]):
        end -= 1
    return end


def rewrite(text: str, source_name: str) -> str:
    """The source with its launches replaced; line numbers keep referring to ``source_name``."""
    text = _DYNAMIC_SHARED.sub(
        r"\1* \2 = static_cast<\1*>(cuda_emu::dynamic_shared_memory());", text
    )
    while (at := text.find("<<<")) >= 0:
        start = _kernel_start(text, at)
        end = text.index(">>>", at)
        config = [*_split_arguments(text[at + 3 : end]), "0", "0"][:4]
        call = text.index("(", end)
        close = _closing(text, call)
        name = text[start:at].strip()
        launch = (
            f"cuda_emu::launch({', '.join(config)}, "
            f'[&] {{ {name}({text[call + 1 : close]}); }}, "{name}")'
        )
        # A launch that was spread over lines must not shift those after it.
        launch += "\n" * (text.count("\n", start, close) - launch.count("\n"))
        text = text[:start] + launch + text[close + 1 :]
    return f'#line 1 "{source_name}"\n{text}'
