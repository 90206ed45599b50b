"""The survey's modes: what the student learns in each, as its stages.

Ruffy, Chahal, "The State of Knowledge Distillation for Classification", 2019, https://arxiv.org/abs/1912.10850, and its
public code. Each function says what is the survey's, its numbers for CIFAR-10 at 200 and 350 epochs, and what differs.
Who teaches is in `survey.teaching`; KD stands for (1 - lambda) CE + lambda T^2 KL(teacher || student).
"""

from collections.abc import Callable, Mapping
import types
from typing import Any

from ml_collections import ConfigDict

from smskd_jax.config import method, network, plugin
from smskd_jax.errors import UserError
from smskd_jax.recipes import survey
from smskd_jax.recipes.survey import kd_fields, student_stage


def mode_experiment(args: ConfigDict) -> ConfigDict:
  """One mode as an experiment: the networks that teach in it are trained first."""
  of = survey.teacher_setup(args)
  networks = of.networks | {"student": network(args.student)}
  return survey.make_experiment(args, networks, [*of.stages, *MODES[args.mode](args)])


def nokd(args: ConfigDict) -> list[ConfigDict]:
  """Labels alone. The survey: 89.42 at 200 epochs, 89.34 at 350."""
  return [student_stage(args)]


def kd(args: ConfigDict) -> list[ConfigDict]:
  """KD from one teacher. The survey: 90.33 at 200 epochs, 90.77 at 350."""
  return [student_stage(args, **kd_fields(args, [args.teacher]))]


def allkd(args: ConfigDict) -> list[ConfigDict]:
  """A student for each teacher, from fresh weights. The survey (Table 2): 90.40, from resnet26; 89.50 from resnet18.

  The survey takes the best by the test set, of resnet8 to resnet56; here the report's column "best by validation"
  decides, and `teachers` names them.
  """
  return [
    student_stage(args, f"kd_from_{name}", init="scratch", **kd_fields(args, [name]))
    for name in survey.teacher_names(args)
  ]


def kdparam(args: ConfigDict) -> list[ConfigDict]:
  """A student for each temperature and weight, from fresh weights. Without numbers of the survey.

  Its code sweeps the weight alone: the assignment to the temperature is an annotation, and has no effect.
  """
  grid = [
    (t, w) for t in survey.parse_numbers(args, "temperatures") for w in survey.parse_numbers(args, "weights")
  ]
  return [
    student_stage(
      args, f"kd_T{t:g}_w{w:g}", init="scratch", **kd_fields(args, [args.teacher], temperature=t, weight=w)
    )
    for t, w in grid
  ]


def triplet(args: ConfigDict) -> list[ConfigDict]:
  """The cosine of the logits in the place of the labels. Without numbers of the survey.

  Its documentation calls it a triplet loss; its code has neither negatives nor cross-entropy.
  """
  cosine = method("logits_cosine", weight=1 - args.weight)
  return [student_stage(args, **kd_fields(args, [args.teacher], methods=(cosine,), task_weight=0.0))]


def mkd(args: ConfigDict) -> list[ConfigDict]:
  """KD from several teachers, the mean of their divergences. The survey: 90.34 at 200 epochs.

  Its teachers are resnet26 and a WRN-22-4. weighting=accuracy and weighting=tcp are ours.
  """
  every = plugin("multi_teacher", weighting=args.weighting)
  return [student_stage(args, **kd_fields(args, survey.teacher_names(args), plugins=(every,)))]


def uda(args: ConfigDict) -> list[ConfigDict]:
  """Half KD on the crop and flip, half KD on AutoAugment's view of the whole image. The survey: 90.52 and 91.22.

  The teacher sees the same view as the student, and labels count on both. `consistency` adds the term of the UDA paper
  (Xie et al. 2020), which the survey's code has and does not use.
  """
  consistency = (method("uda", weight=args.consistency),) if args.consistency else ()
  return [
    student_stage(args, **two_view_fields(args), **kd_fields(args, [args.teacher], methods=consistency))
  ]


def uda_nokd(args: ConfigDict) -> list[ConfigDict]:
  """The two views with labels alone. The survey: 90.34 at 350 epochs. Its code has no such mode: ours is a guess."""
  return [student_stage(args, **two_view_fields(args))]


def two_view_fields(args: ConfigDict) -> dict[str, Any]:
  """What a stage of the survey's two views needs: grey fills what AutoAugment leaves empty."""
  crop_flip = {"padding": args.padding, "flip": True}
  return {
    "views": ("crop_flip", "autoaugment"),
    "augment": {"crop_flip": crop_flip, "autoaugment": {"fill": 128}},
  }


def takd(args: ConfigDict) -> list[ConfigDict]:
  """KD along a chain of assistants, each for all epochs. The survey: 90.57 and 90.97, with resnet20 in between.

  The chain is `survey.teaching`'s. An assistant is the best of its epochs by the test set there; here by the validation
  set, or the last without one.
  """
  chain = survey.split_names(args.assistants)
  last = f"assistant_{chain[-1]}" if chain else args.teacher
  return [student_stage(args, **kd_fields(args, [last]))]


def ab(args: ConfigDict) -> list[ConfigDict]:
  """Activation boundaries alone for `ab_epochs`, then KD for all epochs. Without numbers of the survey."""
  boundaries = {"teachers": (args.teacher,), "methods": (method("ab"),), "task_weight": 0.0}
  return [
    student_stage(args, "ab_boundaries", epochs=args.ab_epochs, **boundaries),
    student_stage(args, **kd_fields(args, [args.teacher])),
  ]


def oh(args: ConfigDict) -> list[ConfigDict]:
  """Labels and OFD, its margins from the teacher's batch norms. The survey: 87.09 at 200 epochs, below nokd.

  Its teacher normalises by the statistics of each batch, as in training: teacher_statistics=batch. Ours does so on a
  copy: what it would remember is dropped.
  """
  ofd = method("ofd", weight=1e-3)
  statistics = {"teacher_statistics": args.teacher_statistics}
  return [student_stage(args, teachers=(args.teacher,), methods=(ofd,), **statistics)]


def rkd(args: ConfigDict) -> list[ConfigDict]:
  """KD and RKD of the embeddings. The survey: 90.22 at 200 epochs.

  Its code computes an attention term of weight 50 and does not add it: attention=True does.
  """
  attention = (method("at", weight=50.0),) if args.attention else ()
  relations = method("rkd", distance_weight=25.0, angle_weight=50.0)
  return [student_stage(args, **kd_fields(args, [args.teacher], methods=(relations, *attention)))]


def pkd(args: ConfigDict) -> list[ConfigDict]:
  """KD and 10 times the mean squared error of all stages' maps, laid end to end. Without numbers of the survey."""
  return [student_stage(args, **kd_fields(args, [args.teacher], methods=(method("pkd"),)))]


def sfd(args: ConfigDict) -> list[ConfigDict]:
  """Labels and the distance of the maps' maxima, of the worst image of each batch. The survey: 87.47, below nokd.

  reduction=mean is the sane variant: the mean over the batch.
  """
  return [student_stage(args, teachers=(args.teacher,), methods=(method("sfd", reduction=args.reduction),))]


def stl(args: ConfigDict) -> list[ConfigDict]:
  """The embedding by squared error on the images of `unlabeled`; then the classifier alone, by KD of T = 10 and 0.7.

  The survey: "90.8" in a table that is sorted and has it last. Its code, of an earlier state, has resnet110 as the
  teacher, STL-10 for the images, Adam at 1e-3 and a rate that falls on plateaus; ours is constant.
  """
  if not args.unlabeled:
    raise UserError("config argument unlabeled: mode=stl needs a source of images, as tfds:stl10")
  adam = {"optimizer": {"name": "adam", "learning_rate": 1e-3}, "schedule": {"name": "constant"}}
  embedding = {"images": "unlabeled", "methods": (method("embedding_mse"),), "task_weight": 0.0}
  pretraining = {"teachers": (args.teacher,), "epochs": args.pretrain_epochs, **embedding, **adam}
  on_labels = kd_fields(args, [args.teacher], temperature=10.0, weight=0.7, unlabeled_batch_size=0)
  return [
    student_stage(args, "stl_embedding", **pretraining),
    student_stage(args, trainable="head", **on_labels),
  ]


def blind(args: ConfigDict) -> list[ConfigDict]:
  """lambda T^2 KL on noise that nobody has labelled. A class of the survey's code that no mode of it reaches."""
  return [student_stage(args, views=("noise",), **kd_fields(args, [args.teacher], task_weight=0.0))]


MODES: Mapping[str, Callable[[ConfigDict], list[ConfigDict]]] = types.MappingProxyType({
  function.__name__: function
  for function in (
    nokd, kd, allkd, kdparam, triplet, mkd, uda, uda_nokd, takd, ab, oh, rkd, pkd, sfd, stl, blind,
  )
})  # fmt: skip
