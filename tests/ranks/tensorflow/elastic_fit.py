"""The program of an elastic job in which ``model.fit`` trains, with Horovod's callbacks; see
``tests.ranks.elastic_plan``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import horovod.tensorflow.keras as hvd
import tensorflow as tf

from tests.ranks.elastic_plan import RATE, Plan, batch
from tests.ranks.tensorflow.elastic_steps import Steps
from tests.ranks.tensorflow.training import gather, loss_of, network

EPOCH = 4
"""Steps of an epoch."""


class Checks(tf.keras.callbacks.Callback):
    """Checks each step, and stops after the last of the plan."""

    def __init__(self, plan: Plan, state: Any, steps: Steps) -> None:
        super().__init__()
        self._plan, self._state, self._steps = plan, state, steps

    def on_train_batch_begin(self, number: int, logs: Any = None) -> None:
        self._steps.before(self._state)
        inputs, labels = batch(self._state.step, hvd.rank())
        with tf.GradientTape() as tape:
            loss = loss_of(labels, self.model(inputs, training=True))
        self._loss, self._own = float(loss), tape.gradient(loss, self.model.trainable_variables)

    def on_train_batch_end(self, number: int, logs: Any = None) -> None:
        self._steps.after(self._state, self._loss, self._own)
        self.model.stop_training = self._state.step == self._plan.steps


def batches(step: int) -> Iterator[tuple[Any, Any]]:
    """Yield this worker's batches from ``step`` on."""
    while True:
        yield batch(step, hvd.rank())
        step += 1


def main() -> None:
    tf.config.threading.set_inter_op_parallelism_threads(2)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    hvd.init()
    plan = Plan.of(sys.argv, hvd, gather)
    compression = plan.compression()
    model = network()
    optimizer = hvd.DistributedOptimizer(tf.keras.optimizers.SGD(RATE), compression=compression)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, loss=loss_of)
    steps = Steps(plan, model, compression)

    def train(state: Any) -> None:
        plan.begin([variable.numpy() for variable in model.trainable_variables])
        if state.step < plan.steps:
            model.fit(
                batches(state.step),
                steps_per_epoch=EPOCH,
                epochs=plan.steps,
                callbacks=[
                    Checks(plan, state, steps),
                    hvd.elastic.CommitStateCallback(state),
                    hvd.elastic.UpdateBatchStateCallback(state),
                    hvd.elastic.UpdateEpochStateCallback(state),
                ],
                verbose=0,
            )

    state = hvd.elastic.KerasState(model, batch=0, epoch=0, step=0, **plan.kept(compression))
    hvd.elastic.run(train)(state)


if __name__ == "__main__":
    main()
