"""The training step on PyTorch, as PEFT's users have it and as well as we can write it.

Each side is a function of the rows of text and the options that gives a step, which
takes the next batch and returns the examples in it.
"""

import itertools
import tempfile
from collections.abc import Callable

import numpy as np
import peft
import torch
import transformers
from reports import random_backbone
from texts import LEARNING_RATE, examples_in, packed
from transformers.cache_utils import DynamicCache

import prefix_jax as pj
from prefix_jax.data.tokens import Row


def load_torch(options) -> transformers.GPT2LMHeadModel:
    with tempfile.TemporaryDirectory() as folder:
        pj.save_backbone(folder, random_backbone(options.shape, options.dtype))
        model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    # The published model has dropout; without it both sides do the same work.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.nn.Module.to(model, device)
    return model.eval()


def autocast(model, options):
    return torch.autocast(
        model.device.type, torch.bfloat16, enabled=options.dtype == "bfloat16"
    )


def as_peft(rows: list[Row], options) -> Callable[[], int]:
    """PEFT as its users run it: padded batches, logits of all tokens, eager."""

    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=options.prefix_length
    )
    model = peft.get_peft_model(load_torch(options), config)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], LEARNING_RATE
    )
    order = itertools.cycle(np.random.default_rng(0).permutation(len(rows)))

    def run() -> int:
        chosen = [rows[next(order)] for _ in range(options.batch_size)]
        width = max(len(row.tokens) for row in chosen)
        shape = options.batch_size, width
        tokens, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        labels = np.full(shape, -100)
        for number, row in enumerate(chosen):
            length = len(row.tokens)
            tokens[number, :length], mask[number, :length] = row.tokens, 1
            labels[number, :length][row.loss_mask] = row.tokens[row.loss_mask]
        given = {"input_ids": tokens, "attention_mask": mask, "labels": labels}
        given = {k: torch.from_numpy(v).to(model.device) for k, v in given.items()}
        with autocast(model, options):
            loss = model(**given).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        return options.batch_size

    return run


def as_torch(rows: list[Row], options) -> Callable[[], int]:
    """The best we can write: packed, logits of target tokens, fused AdamW."""

    model = load_torch(options)
    shape, length = model.config, options.prefix_length
    dims = (shape.n_layer, 2, shape.n_head, length, shape.n_embd // shape.n_head)
    prefix = torch.nn.Parameter(0.02 * torch.randn(dims, device=model.device))
    optimizer = torch.optim.AdamW([prefix], LEARNING_RATE, fused=True)
    batches = packed(rows, options.pack, options.batch_size)

    def loss_of(tokens, segments, positions, targets):
        size, width = tokens.shape
        cache = DynamicCache()
        for layer in range(shape.n_layer):
            keys, values = prefix[layer, :, None].expand(-1, size, -1, -1, -1)
            cache.update(keys, values, layer)
        causal = torch.ones(width, width, dtype=torch.bool, device=tokens.device).tril()
        own = causal & (segments[:, :, None] == segments[:, None, :])
        seen = torch.cat([own.new_ones(size, width, length), own], -1)[:, None]
        hidden = model.transformer(
            tokens,
            past_key_values=cache,
            attention_mask=seen,
            position_ids=positions + length,
            use_cache=True,
        ).last_hidden_state[:, :-1]
        logits = model.lm_head(hidden[targets])
        return torch.nn.functional.cross_entropy(logits.float(), tokens[:, 1:][targets])

    if options.compile:
        loss_of = torch.compile(loss_of, dynamic=False)

    def run() -> int:
        batch = next(batches)
        segments = batch["segments"]
        number = np.arange(segments.shape[1])
        begins = np.diff(segments, axis=1, prepend=-1) != 0
        starts = np.maximum.accumulate(np.where(begins, number, 0), axis=1)
        given = (
            batch["tokens"].astype(np.int64),
            segments,
            number - starts,
            batch["loss_mask"][:, 1:],
        )
        with autocast(model, options):
            loss = loss_of(*(torch.from_numpy(x).to(model.device) for x in given))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        return examples_in(batch)

    return run


def peak_bytes() -> int | None:
    """Most memory that tensors took on the GPU; None on a CPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
