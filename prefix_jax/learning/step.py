"""The training step.

loss(trainable, frozen, batch): argument 0 alone is differentiated, donated and
given to optax. The backbone of a prefix run is argument 1: it is read, and that is
all that ever happens to it.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import cast, no_type_check

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, PRNGKeyArray

from prefix_jax.config import Parallel, TrainConfig
from prefix_jax.errors import InputError
from prefix_jax.learning.loss import Batch, divisor, loss_sums
from prefix_jax.learning.split import Params, merge
from prefix_jax.mesh import by_rows, is_parted, layout, replicated, traced_under
from prefix_jax.model.backbone import Backbone
from prefix_jax.model.kv import KV


# JAX also fills pytrees with things that are not arrays (shapes, None, flags).
@no_type_check
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that changes in training, and all that a checkpoint of a run holds."""

    step: Int[Array, ""]
    trainable: Params
    opt_state: optax.OptState
    key: PRNGKeyArray
    """Never consumed: a step's randomness is `fold_in(key, step)`."""


Step = Callable[[TrainState, Params, Batch], tuple[TrainState, dict[str, Array]]]


def init_train_state(
    trainable: Params, optimizer: optax.GradientTransformation, key: PRNGKeyArray
) -> TrainState:
    """The state before the first step; optimizer slots for trainable leaves only.

    The leaves are copied: the first step donates the state, and the caller's arrays
    stay valid.
    """
    trainable, key = jax.tree.map(jnp.copy, (trainable, key))
    slots = optimizer.init(cast(optax.Params, trainable))
    return TrainState(jnp.int32(0), trainable, slots, key)


def make_train_step(
    optimizer: optax.GradientTransformation,
    config: TrainConfig = TrainConfig(),
    mesh: Mesh | None = None,
    parallel: Parallel = "jit",
) -> Step:
    """A compiled `step(state, frozen, batch) -> (state, metrics)`.

    Batch rows are split over `mesh`, state and backbone lie as `mesh.layout` puts them;
    without a mesh everything is on the default device. `pmap` runs the same step as one
    program a device of the mesh, which add up their gradients. With a
    `config.accumulate` of A, batches of B rows are cut into A micro-batches of B/A
    whose gradients are added.
    Metrics are f32 scalars: loss (nats per target token), objective (what is
    minimised), grad_norm, target_tokens, skipped. A step whose objective or gradient is
    NaN or infinite is skipped (1): it counts, but leaves what is trained and the
    optimizer's slots as they were. Raises InputError for `pmap` without a mesh, or with
    several processes.
    """
    # A program that has some of the rows only adds up what is summed over rows.
    total = partial(jax.lax.psum, axis_name="data") if parallel == "pmap" else _same

    def objective(trainable, frozen, batch, denominator, key):
        params = merge(trainable, frozen)
        prefix = params.get("prefix")
        backbone = params["backbone"]
        kv = None if prefix is None else prefix.fold(backbone, key=key)
        sums = loss_sums(backbone, kv, batch, label_smoothing=config.label_smoothing)
        return sums.smoothed / denominator, sums.nll

    grad = jax.value_and_grad(objective, has_aux=True)

    def micro_batches(batch):
        cut, rows = config.accumulate, len(batch["tokens"])
        if rows % cut:
            raise InputError(
                f"a batch of {rows} rows cannot be cut into train.accumulate = {cut} "
                f"micro-batches; give a multiple of {cut} rows"
            )
        # Row i goes to micro-batch i mod A: each device keeps its own rows.
        return jax.tree.map(
            lambda x: jnp.moveaxis(
                x.reshape(x.shape[0] // cut, cut, *x.shape[1:]), 1, 0
            ),
            batch,
        )

    def step(state, frozen, batch):
        denominator = divisor(batch, config.normalise, total)
        key = jax.random.fold_in(state.key, state.step)
        if config.accumulate == 1:
            (loss, nll), grads = grad(state.trainable, frozen, batch, denominator, key)
        else:

            def add(total, part):
                # One key: dropout and nested lengths are drawn for the step's prefix.
                result = grad(state.trainable, frozen, part, denominator, key)
                return jax.tree.map(jnp.add, total, result), None

            zero = jax.tree.map(jnp.zeros_like, state.trainable)
            ((loss, nll), grads), _ = jax.lax.scan(
                add,
                ((jnp.float32(0), jnp.float32(0)), zero),
                micro_batches(batch),
            )
        loss, nll, grads = total((loss, nll, grads))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        trainable = cast(Params, optax.apply_updates(state.trainable, updates))
        norm = optax.tree.norm(grads)
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        # Here, because the state of before is donated: nobody has it afterwards.
        trainable, opt_state = jax.tree.map(
            partial(jnp.where, good),
            (trainable, opt_state),
            (state.trainable, state.opt_state),
        )
        tokens = divisor(batch, "token", total)
        metrics = {
            "loss": nll / tokens,
            "objective": loss,
            "grad_norm": norm,
            "target_tokens": tokens,
            "skipped": 1.0 - good,
        }
        return TrainState(state.step + 1, trainable, opt_state, state.key), metrics

    if parallel == "pmap":
        return _one_program_a_device(step, mesh, config.accumulate)
    if mesh is None:
        return jax.jit(step, donate_argnums=0)
    step = traced_under(mesh, step)
    whole, rows = replicated(mesh), by_rows(mesh)
    if is_parted(mesh):

        def constrained(state, frozen, batch):
            new_state, metrics = step(state, frozen, batch)
            place = jax.lax.with_sharding_constraint
            return place(new_state, layout(new_state, mesh)), metrics

        # The state and the backbone stay as they come: laid out (`mesh.layout`).
        return jax.jit(
            constrained,
            donate_argnums=0,
            in_shardings=(None, None, rows),
        )
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(whole, whole, rows),
        out_shardings=(whole, whole),
    )


def _same(tree):
    return tree


def _one_program_a_device(step: Step, mesh: Mesh | None, accumulate: int) -> Step:
    """`step`, with the batch's rows dealt out to the devices of the mesh by pmap."""
    if mesh is None or jax.process_count() > 1:
        raise InputError(
            'mesh.parallel is "pmap", which needs a mesh and a single process (there '
            f'are {jax.process_count()}); use "jit"'
        )
    run = jax.pmap(
        step,
        axis_name="data",
        in_axes=(None, None, 0),
        out_axes=None,
        devices=list(mesh.devices.flat),
        donate_argnums=0,
    )

    def dealt(state, frozen, batch):
        number, rows = mesh.size, len(batch["tokens"])
        if rows % (number * accumulate):
            raise InputError(
                f"a batch of {rows} rows cannot be dealt out to {number} devices in "
                f"train.accumulate = {accumulate} micro-batches each; give a multiple "
                f"of {number * accumulate} rows"
            )
        parts = jax.tree.map(lambda x: x.reshape(number, -1, *x.shape[1:]), batch)
        return run(state, frozen, parts)

    return dealt


def make_eval_step(
    mesh: Mesh | None = None,
) -> Callable[[Backbone, KV | None, Batch], dict[str, Array]]:
    """A compiled `evaluate(backbone, prefix, batch)`.

    Gives `nll`, summed over the batch in nats, and `tokens`, the number of targets;
    `row_nll` and `row_tokens` [B] are the same of each row; `nll` alone has a gradient
    (first order, reverse mode). With a bank of prefixes the batch has `prefix_ids` [B],
    and a row's sums are those that its prefix gives alone.
    """

    def evaluate(backbone, prefix, batch):
        targets = batch["loss_mask"][:, 1:]
        sums = loss_sums(backbone, prefix, batch)
        return {
            "nll": sums.nll,
            "tokens": targets.sum(),
            "row_nll": sums.row_nll,
            "row_tokens": targets.sum(-1),
        }

    if mesh is None:
        return jax.jit(evaluate)
    whole, rows = replicated(mesh), by_rows(mesh)
    where = None if is_parted(mesh) else whole
    evaluate = traced_under(mesh, evaluate)
    return jax.jit(evaluate, in_shardings=(where, where, rows), out_shardings=whole)
