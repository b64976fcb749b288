"""Which keys of different sections go together. ``configs.schema.Experiment`` calls it last."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from configs.schema import Experiment


def check_sections(experiment: "Experiment") -> None:
    """Raises ValueError if keys of different sections do not go together; it names them and what to set."""
    teacher, data, train = experiment.teacher, experiment.data, experiment.train
    if (teacher is None) != (experiment.distill is None):
        given, missing = ("distill", "teacher") if teacher is None else ("teacher", "distill")
        raise ValueError(f"{given} is set but {missing} is None: set both to distil, or neither to train alone")
    _check_images(experiment)
    if experiment.self_taught and (train.ema is None or teacher != type(teacher)(weights="ema")):
        raise ValueError(
            "teacher.weights is 'ema', the average of the student's weights: set train.ema, for example to 0.999, "
            "and no other key of teacher"
        )
    if experiment.student.aux and train.aux_weight == 0:
        raise ValueError("student.aux is True but train.aux_weight is 0: the auxiliary head would never learn")
    if teacher is not None and teacher.scale > 1 and data.mixing is not None:
        raise ValueError(
            f"teacher.scale is {teacher.scale:g}: the teacher sees larger crops, which data.mixing does not mix; "
            "set teacher.scale=1 or data.mixing=None"
        )
    if teacher is not None and teacher.cache is not None and data.on_bad_sample == "skip":
        raise ValueError(
            "teacher.cache is set and data.on_bad_sample is 'skip': the cache would keep the teacher's output on "
            "the replacement and use it for the bad sample once its file is fixed; set only one of the two"
        )
    if teacher is not None and teacher.cache is not None and data.distinct_epochs is None:
        raise ValueError(
            "teacher.cache is set but data.distinct_epochs is None: samples never repeat, so nothing in the cache "
            "would be read again; set data.distinct_epochs=1 or more"
        )


def _check_images(experiment: "Experiment") -> None:
    """As ``check_sections``, of labelled and unlabelled images."""
    data, train = experiment.data, experiment.train
    if (data.train_list is None) != (train.batch_size == 0):
        raise ValueError(
            f"data.train_list is {data.train_list!r} and train.batch_size is {train.batch_size}; expected a list "
            "and a positive number of labelled images in a step, or None and 0"
        )
    if train.batch_size == 0 and train.class_weights == "auto":
        raise ValueError("train.class_weights is 'auto', which counts labels, and data.train_list is None")
    there_are_any = data.unlabelled is not None or data.labelled_fraction < 1
    if train.unlabelled_batch and not there_are_any:
        raise ValueError(
            "train.unlabelled_batch is set, and there are no unlabelled images: set data.unlabelled to a list or a "
            "pattern, or data.labelled_fraction below 1"
        )
    if data.unlabelled is not None and not train.unlabelled_batch:
        raise ValueError(
            "data.unlabelled is set but train.unlabelled_batch is 0, so no step would use these images: set both"
        )
    if data.mixing is not None and data.mixing_domain == "unlabelled" and not train.unlabelled_batch:
        raise ValueError(
            "data.mixing is set for unlabelled images, but train.unlabelled_batch is 0: set data.mixing_domain="
            "'labelled', or train.unlabelled_batch"
        )
    if not train.unlabelled_batch:
        if train.batch_size == 0:
            raise ValueError("data.train_list is None, so train.unlabelled_batch and data.unlabelled must be set")
        return
    if experiment.teacher is None:
        raise ValueError(
            "train.unlabelled_batch is set but teacher is None: nothing would learn from unlabelled images; set a "
            "teacher and distill, or train.unlabelled_batch=0 and data.unlabelled=None"
        )
    if all(getattr(method, "pixels", "inside") == "labelled" for method in experiment.methods):
        raise ValueError(
            "train.unlabelled_batch is set, and distill compares labelled pixels only: set distill.pixels='inside'"
        )
    if train.batch_size == 0:
        for method in experiment.methods:
            if getattr(method, "anchor", None) == "labels":
                raise ValueError(
                    f"distill: {method.type} with anchor='labels' learns from labels, and data.train_list is None: "
                    "choose another anchor or method"
                )
    if data.mixing == "classmix" and data.mixing_domain != "labelled" and experiment.teacher.cache is not None:
        raise ValueError(
            "data.mixing='classmix' on unlabelled images reads the teacher's classes before mixing, which "
            "teacher.cache does not keep: choose 'cutmix', or set teacher.cache=None"
        )
