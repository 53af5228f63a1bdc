"""Chooses the texts of a corpus among what write_corpus.py kept, counts, and packs them: a text a line, in some .xz files.

    python configs/corpus/select_corpus.py raw/ corpus/

The rules, in this order:

1. mean negative log-probability a token in [LEAST, MOST], no token's beyond RAREST: below are loops and set phrases, above is
   nonsense;
2. no text twice; at most SAME texts with the same opening;
3. a phrase of eight tokens stands in at most PHRASE texts.

index.xz holds, for every text in order, the step from the sample before (uint32) and, behind all of these, its nats a token in
hundredths (uint8).
"""

import argparse
import hashlib
import json
import lzma
import multiprocessing
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import openings
import torch
import write_corpus

LEAST, MOST, RAREST = 0.70, 1.60, 7.0
SAME, PHRASE = 12, 500
FILE, CHUNK = 31 << 19, 30_000
"""Bytes of a file at most; texts of one of its streams."""


def read(path: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    with np.load(path) as file:
        columns = {name: file[name] for name in ("sample", "template", "nats", "rarest", "lengths", "ids", "request")}
        texts = bytes(file["text"]).decode().split("\n") if len(columns["sample"]) else []
    columns["request"] = np.full(len(texts), columns["request"])
    return texts, columns


def grams(ids: torch.Tensor, text: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A hash of each run of n tokens within a text, and its text."""
    # None where there are fewer tokens than a run has.
    count = max(0, len(ids) - n + 1)
    value = torch.zeros(count, dtype=torch.int64, device=ids.device)
    for i in range(n):
        value = value * 6364136223846793005 + ids[i : count + i] + 1442695040888963407
    value = value ^ ((value >> 29) & ((1 << 35) - 1))
    inside = text[:count] == text[n - 1 : n - 1 + count]
    return value[inside], text[:count][inside]


def beyond(value: torch.Tensor, text: torch.Tensor, most: int) -> torch.Tensor:
    """The texts in which a run stands that stood in `most` texts before."""
    pair, order = torch.sort(value, stable=True)
    new = torch.ones_like(pair, dtype=torch.bool)
    new[1:] = pair[1:] != pair[:-1]
    start = torch.cummax(torch.where(new, torch.arange(len(pair), device=pair.device), 0), 0).values
    rank = torch.arange(len(pair), device=pair.device) - start
    return torch.unique(text[order[rank >= most]])


def pack(texts: list[str]) -> bytes:
    return lzma.compress(("\n".join(texts) + "\n").encode(), preset=7)


def statistics(texts: list[str], columns: dict, ids: torch.Tensor, text: torch.Tensor, seed: int) -> dict:
    tokens, nats = len(ids), columns["nats"]
    forms = [openings.TEMPLATES[number][0] for number in columns["template"]]
    first = Counter(" ".join(line.split()[:3]) for line in texts)
    counts = torch.bincount(ids, minlength=49152).double().sort(descending=True).values
    share = counts[counts > 0] / tokens
    some = ids[: min(tokens, 2_000_000)], text[: min(tokens, 2_000_000)]

    def shared(n: int) -> float:
        value, where = grams(ids, text, n)
        _, back, number = torch.unique(value, return_inverse=True, return_counts=True)
        return len(torch.unique(where[number[back] > 1])) / len(texts)

    return {
        "texts": len(texts),
        "tokens": tokens,
        "characters": sum(map(len, texts)),
        "tokens_a_text": {str(q): float(np.quantile(columns["lengths"], q)) for q in (0.05, 0.5, 0.95)},
        "sentences_a_text": round(
            sum(line.count(". ") + line.count("? ") + line.count("! ") + 1 for line in texts) / len(texts), 2
        ),
        "forms": dict(Counter(forms).most_common()),
        "requests": {str(key): value for key, value in sorted(Counter(columns["request"].tolist()).items())},
        "templates": len(set(columns["template"].tolist())),
        "openings": len(set(columns["opening"])),
        "openings_of_one_text": sum(number == 1 for number in Counter(columns["opening"]).values()),
        "first_three_words": {"different": len(first), "most_frequent": first.most_common(12)},
        "self_perplexity": {
            str(q): round(float(np.exp(np.quantile(nats, q))), 3) for q in (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
        },
        "tokens_of_at_most_nats": {
            str(q): int(columns["lengths"][nats <= q].sum()) for q in (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, MOST)
        },
        "distinct_n_of_two_million_tokens": {
            str(n): round(len(torch.unique(grams(*some, n)[0])) / len(grams(*some, n)[0]), 4) for n in (1, 2, 3, 4)
        },
        "different_n_grams": {str(n): len(torch.unique(grams(ids, text, n)[0])) for n in (1, 2, 3, 4)},
        "tokens_that_make_up": {str(q): int((share.cumsum(0) < q).sum()) + 1 for q in (0.5, 0.9, 0.99, 0.999)},
        "unigram_entropy_nats": round(float(-(share * share.log()).sum()), 4),
        "texts_that_share_a_run_with_another": {str(n): round(shared(n), 4) for n in (8, 13, 20, 32)},
        "a_sample_is_the_same_with": {"seed": seed, "group": write_corpus.GROUP, "length": write_corpus.LENGTH},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("raw", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts = [read(path) for path in sorted(options.raw.glob("group-*.npz"))]
    texts = [line for part, _ in parts for line in part]
    columns = {name: np.concatenate([part[name] for _, part in parts]) for name in parts[0][1]}
    left = {"kept by the filters": len(texts)}

    def take(mask: np.ndarray, reason: str) -> None:
        nonlocal texts
        left[reason] = int(len(mask) - mask.sum())
        ends = np.cumsum(columns["lengths"])
        texts = [line for line, good in zip(texts, mask, strict=True) if good]
        columns["ids"] = columns["ids"][np.repeat(mask, columns["lengths"])]
        assert len(columns["ids"]) <= (ends[-1] if len(ends) else 0)
        for name in columns:
            if name != "ids":
                columns[name] = columns[name][mask]

    nats = columns["nats"]
    take((nats >= LEAST) & (nats <= MOST) & (columns["rarest"] <= RAREST), "self-perplexity")
    with ProcessPoolExecutor(max(1, (os.cpu_count() or 2) - 1), multiprocessing.get_context("spawn")) as pool:
        forms = [openings.TEMPLATES[number][0] for number in columns["template"]]
        seeds = [options.seed] * len(forms)
        drawn = list(pool.map(openings.opening, seeds, columns["sample"].tolist(), forms, chunksize=5000))
        columns["opening"] = np.array([opening for _, opening in drawn], dtype=object)
        seen, mask = Counter(), np.zeros(len(texts), bool)
        whole = set()
        for i, (line, opening) in enumerate(zip(texts, columns["opening"], strict=True)):
            if line not in whole and seen[opening] < SAME:
                seen[opening] += 1
                whole.add(line)
                mask[i] = True
        del whole
        take(mask, "equal openings or texts")

        def tensors() -> tuple[torch.Tensor, torch.Tensor]:
            number = torch.arange(len(texts), device=device)
            lengths = torch.from_numpy(columns["lengths"].astype(np.int64)).to(device)
            return torch.from_numpy(columns["ids"].astype(np.int64)).to(device), torch.repeat_interleave(number, lengths)

        mask = np.ones(len(texts), bool)
        mask[beyond(*grams(*tensors(), 8), PHRASE).cpu().numpy()] = False
        take(mask, "frequent phrase")
        streams = list(pool.map(pack, [texts[i : i + CHUNK] for i in range(0, len(texts), CHUNK)]))
    files, sums = [b""], {}
    for stream in streams:
        if len(files[-1]) + len(stream) > FILE:
            files.append(b"")
        files[-1] += stream
    for number, data in enumerate(files):
        (options.out / f"corpus-{number:03d}.txt.xz").write_bytes(data)
        sums[f"corpus-{number:03d}.txt.xz"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    step = np.diff(columns["sample"], prepend=0).astype(np.uint32)
    scaled = np.round(columns["nats"] * 100).astype(np.uint8)
    (options.out / "index.xz").write_bytes(lzma.compress(step.tobytes() + scaled.tobytes(), preset=6))
    runs = [json.loads(path.read_text()) for path in sorted(options.raw.glob("run-*.json"))]
    found = {"runs": runs, "left_out": left, **statistics(texts, columns, *tensors(), options.seed), "files": sums}
    (options.out / "statistics.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps({name: found[name] for name in ("left_out", "texts", "tokens", "characters")}))


if __name__ == "__main__":
    main()
