"""The training step on PyTorch, as PEFT's users have it and as well as we can write it.

Each side is a function of the rows of text and the options that gives one which takes
steps until so many examples are done, waits for the last, and returns how many were.
"""

import functools
import itertools
import tempfile
from collections.abc import Callable

import numpy as np
import peft
import torch
import transformers
from reports import random_gpt2
from texts import LEARNING_RATE, examples_in, packed
from transformers.cache_utils import DynamicCache

import prefix_jax as pj
from prefix_jax.data.tokens import Row


def load_torch(options, attention: str = "sdpa") -> transformers.GPT2LMHeadModel:
    with tempfile.TemporaryDirectory() as folder:
        pj.save_backbone(folder, random_gpt2(options.shape, options.dtype))
        model = transformers.GPT2LMHeadModel.from_pretrained(
            folder, dtype=getattr(torch, options.dtype), attn_implementation=attention
        )
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


def as_peft(rows: list[Row], options) -> Callable[[int], int]:
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
        return options.batch_size

    return in_turn(run, model)


def as_torch(rows: list[Row], options, side: str) -> Callable[[int], int]:
    """The best we can write: packed, logits of target tokens, fused AdamW."""

    flex = side == "torch_flex"
    if flex:
        transformers.AttentionInterface.register("prefix_flex", flex_attend)
    model = load_torch(options, "prefix_flex" if flex else "sdpa")
    shape, length = model.config, options.prefix_length
    dims = (shape.n_layer, 2, shape.n_head, length, shape.n_embd // shape.n_head)
    prefix = torch.nn.Parameter(0.02 * torch.randn(dims, device=model.device))
    optimizer = torch.optim.AdamW([prefix], LEARNING_RATE, fused=True)
    batches = packed(rows, options.pack, options.batch_size)

    def seen_by(segments):
        size, width = segments.shape
        if flex:
            return flex_mask(segments, length)
        causal = torch.ones(width, width, dtype=torch.bool, device=model.device).tril()
        own = causal & (segments[:, :, None] == segments[:, None, :])
        return torch.cat([own.new_ones(size, width, length), own], -1)[:, None]

    def loss_of(tokens, seen, positions, targets, labels):
        size = len(tokens)
        cache = DynamicCache()
        for layer in range(shape.n_layer):
            keys, values = prefix[layer, :, None].expand(-1, size, -1, -1, -1)
            cache.update(keys, values, layer)
        hidden = model.transformer(
            tokens,
            past_key_values=cache,
            **({"block_mask": seen} if flex else {"attention_mask": seen}),
            position_ids=positions + length,
            use_cache=True,
        ).last_hidden_state
        logits = model.lm_head(hidden.flatten(0, 1)[targets])
        return torch.nn.functional.cross_entropy(logits.float(), labels)

    if side != "torch":
        # The number of targets differs from batch to batch; nothing else does.
        loss_of = torch.compile(loss_of)

    def run() -> int:
        batch = next(batches)
        segments = batch["segments"]
        number = np.arange(segments.shape[1])
        begins = np.diff(segments, axis=1, prepend=-1) != 0
        starts = np.maximum.accumulate(np.where(begins, number, 0), axis=1)
        tokens = batch["tokens"].astype(np.int64)
        found = np.flatnonzero(np.pad(batch["loss_mask"][:, 1:], [(0, 0), (0, 1)]))
        labels = np.roll(tokens, -1, 1).ravel()[found]
        given = tokens, segments, number - starts, found, labels
        tokens, segments, positions, targets, labels = (
            torch.from_numpy(x).to(model.device) for x in given
        )
        if side != "torch":
            for x in (targets, labels):
                torch._dynamo.mark_dynamic(x, 0)
        with autocast(model, options):
            seen = seen_by(segments)
            loss = loss_of(tokens, seen, positions, targets, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return examples_in(batch)

    return in_turn(run, model)


def in_turn(run: Callable[[], int], model) -> Callable[[int], int]:
    """Steps for so many examples, of which only the last is waited for."""

    def steps(wanted: int) -> int:
        examples = 0
        while examples < wanted:
            examples += run()
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return examples

    return steps


def flex_attend(module, query, key, value, mask, *, block_mask, scaling=None, **unused):
    """Flex attention, which transformers' GPT-2 lacks."""
    from torch.nn.attention.flex_attention import flex_attention

    mixed = flex_attention(query, key, value, block_mask=block_mask, scale=scaling)
    return mixed.transpose(1, 2).contiguous(), None


@functools.cache
def _compiled_mask():
    from torch.nn.attention.flex_attention import create_block_mask

    return torch.compile(create_block_mask)


def flex_mask(segments: torch.Tensor, length: int):
    """Flex attention's mask of packed rows that see a prefix of `length`."""

    def sees(row, head, query, key):
        own = torch.clamp(key - length, min=0)
        same = segments[row, query] == segments[row, own]
        return (key < length) | ((own <= query) & same)

    size, width = segments.shape
    return _compiled_mask()(
        sees, size, None, width, length + width, device=segments.device
    )


def peak_bytes() -> int | None:
    """Most memory that tensors took on the GPU; None on a CPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
