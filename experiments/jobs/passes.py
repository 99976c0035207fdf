"""Count the forward passes of one image that the parts of a job take; a backward pass counts two."""

from experiments.jobs.job import Job

BACKWARD = 2.0  # a backward pass, in forward passes
MEASURED = 18  # forward passes of measuring losses: three parts of each of a dozen blocks, from that block on
SENSED = 24  # of measuring curves, for each size: four layers of each of a dozen blocks, from that block on
GATES = 10  # epochs of gates alone, which go through the dense model, too
BATCH = 64  # of the minibatch solver


def images_of(job: Job) -> tuple[int, int]:
    """Count the images of the training split, and those that one evaluation takes."""
    train, validation = (int(count) for count in job.images.split("+"))
    return train, min(job.limit or validation, validation)


def compression_passes(job: Job) -> float:
    """Count the passes of calibration, measured losses, a search, the refit, gates, and the compensation."""
    if job.recipe is None:
        return job.calibration_samples
    recipe = job.recipe_used()
    refit = 2 * job.calibration_samples if recipe.refit else 0  # through the dense and the smaller model
    calibration = job.calibration_samples * (1 + BACKWARD * recipe.needs_gradient)
    solving = BATCH * recipe.steps if recipe.compensation and recipe.solver == "minibatch" else 0
    measuring = 0 if recipe.measured is None else recipe.measured.rounds * MEASURED * recipe.measured.images
    sensing = 0 if recipe.sense is None else recipe.sense.points * SENSED * recipe.sense.images
    searching = 0 if recipe.search is None else recipe.search.passes(job.calibration_samples)
    gates = 0 if recipe.gradual is None or recipe.labelled else GATES * (2 + BACKWARD) * job.calibration_samples
    return calibration + refit + solving + measuring + sensing + searching + gates


def statistics_passes(job: Job) -> float:
    """Count the passes of a compression, or of its statistics, and of the same on the held-out images."""
    return compression_passes(job) + job.held_out_samples


def comparison_passes(job: Job) -> float:
    """Count the passes of a compression, and of both models on the held-out images and on the evaluation's."""
    return compression_passes(job) + 2 * (job.held_out_samples + images_of(job)[1])
