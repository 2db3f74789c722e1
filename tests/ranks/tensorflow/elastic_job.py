"""The program of an elastic job under TensorFlow; see ``tests.ranks.elastic_plan``."""

from __future__ import annotations

import sys
from typing import Any

import horovod.tensorflow as hvd
import horovod.tensorflow.keras as hvd_keras
import numpy as np
import tensorflow as tf

import hvd_compress
from tests.ranks.elastic_plan import Plan
from tests.ranks.tensorflow.training import digest, gather, loss_of, network


def main() -> None:
    tf.config.threading.set_inter_op_parallelism_threads(2)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    hvd.init()
    plan = Plan.of(sys.argv, hvd, gather)
    compression = plan.compression()
    exact = isinstance(compression, hvd_compress.Dense)
    model = network()
    optimizer = tf.keras.optimizers.SGD(0.3)
    if plan.keras:
        optimizer = hvd_keras.DistributedOptimizer(optimizer, compression=compression)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step_of(inputs: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(inputs, training=True))
        if plan.keras:
            optimizer.minimize(loss, model.trainable_variables, tape=tape)
            return loss, [], []
        mine = tf.gradients(loss, model.trainable_variables)
        tape = hvd.DistributedGradientTape(tape, compression=compression)
        means = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(means, model.trainable_variables, strict=True))
        return loss, mine, means

    def train(state: Any) -> None:
        while state.step < plan.steps:
            plan.before(state, compression)
            inputs, labels = plan.batch(state.step)
            loss, mine, means = step_of(tf.constant(inputs), tf.constant(labels))
            if exact:
                for number, (own, mean) in enumerate(zip(mine, means, strict=True)):
                    expected = hvd.allreduce(own, name=f"oracle{number}", op=hvd.Average)
                    np.testing.assert_allclose(mean, expected, rtol=1e-6, atol=1e-7)
            plan.check(digest(model), compression)
            state.step += 1
            plan.note(state.step, float(loss))
            state.commit()

    state = hvd.elastic.TensorFlowKerasState(model, optimizer, step=0, **plan.kept(compression))
    hvd.elastic.run(train)(state)


if __name__ == "__main__":
    main()
