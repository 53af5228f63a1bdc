"""Compares the decode step with transformers: python configs/corpus/check_decoder.py SmolLM2-135M-Instruct.Q4_1.gguf

Prints the worst relative error of the logits over 40 positions of 8 rows, and the largest mean Kullback-Leibler divergence.
On a CPU the plain step is checked; on a card the kernels too. Without a file a small random model is checked, on a CPU with
Triton's interpreter (TRITON_INTERPRET=1) the kernels too.
"""

import os
import sys
from pathlib import Path

import torch

import decoder


def main() -> None:
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if len(sys.argv) > 1:
        model = decoder.load(Path(sys.argv[1]))[0].to(device)
    else:
        from transformers import LlamaConfig, LlamaForCausalLM

        shape = dict(hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=6144, num_hidden_layers=2, tie_word_embeddings=True, **shape))
        for name, value in model.named_parameters():
            with torch.no_grad():
                value.mul_(3) if "norm" not in name else value.add_(0.2 * torch.randn_like(value))
        model = model.to(device).eval()
    rows, length, before = 8, 40, 66
    prefix = torch.randint(20, model.config.vocab_size, (before,), device=device)
    tokens = torch.randint(20, model.config.vocab_size, (length, rows), device=device)
    with torch.no_grad():
        truth = model(torch.cat([prefix.expand(rows, -1), tokens.T], 1)).logits[:, before:].float()
    d = decoder.Decoder(model, device)
    for fused in (False, True):
        if fused and device.type == "cpu" and not os.environ.get("TRITON_INTERPRET"):
            continue
        batch = decoder.Batch(d, rows, length, before, top_k=5, temperature=1.0)
        batch.put_prefix(*d.prefix(prefix.tolist()))
        batch.fused, error, divergence = fused, 0.0, 0.0
        for at in range(length):
            batch.at.fill_(at)
            logits, true = batch.logits(tokens[at]).float(), truth[:, at]
            error = max(error, float((logits - true).norm() / true.norm()))
            p, q = true.log_softmax(-1), logits.log_softmax(-1)
            divergence = max(divergence, float((p.exp() * (p - q)).sum(-1).mean()))
        uniform = torch.rand(rows, device=device)
        drawn = batch._draw(logits.to(d.head.dtype), uniform)[0]
        batch.fused = False
        same = bool((drawn == batch._draw(logits.to(d.head.dtype), uniform)[0]).all())
        print(f"{'kernels' if fused else 'plain'}: relative error {error:.2g}, divergence {divergence:.2g}, draws alike {same}")


if __name__ == "__main__":
    main()
