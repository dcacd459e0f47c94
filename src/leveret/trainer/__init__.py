"""The machine that steps a model: batches, the one optimizer step, schedules, checkpoints and the record of a run."""
