"""T5.1.1 in Flax with the losses, optimizers, trainer and scorer of Flipped Learning.

Imports only jax, flax, optax, orbax and numpy (and tqdm and tensorboardX for what people watch): no TensorFlow,
SeqIO, promptsource or gin. Batches of integer arrays come in, checkpoints and scores go out.

The modules, in the order in which data meets them: `config` (sizes), `layers` and `model` (the network),
`losses`, `optimizer`, `partitioning` (mesh and shardings), `checkpoints`, `trainer`, `scorer`.
"""
